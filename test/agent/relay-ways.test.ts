import { randomBytes } from "node:crypto";
import { connect, createServer, type Socket } from "node:net";
import t, { type Test } from "tap";
import { WAY_FIRST_BYTE, HANDSHAKE_MS } from "../../agent/migration/relay-listener.js";
import { WAY_TOKEN_BYTES } from "../../proto/relay-framing.js";
import { epoch, millis } from "../../model/ids.js";
import { bench, bytesFrom, ended, migration, pause } from "./relay-bench.js";

/** What can go wrong with the connections beside the authenticated ones, by which the hypervisor's stream goes, sealed or in clear. What it shall do is in relay.test.ts. */

/** Sealed, and in clear. */
function both(what: string, run: (test: Test, clear: boolean) => Promise<void>): void {
  for (const clear of [false, true]) void t.test(clear ? `${what}, in clear` : what, (test) => run(test, clear));
}

/** Stands in the path between the two relays, and knows which connections are ways; they go on from the address `waysFrom`, and what comes by them goes through `change`. */
async function path(test: Test, to: () => number, waysFrom = "127.0.0.1", change: (part: Buffer) => Buffer = (part) => part): Promise<{ readonly port: number; readonly ways: Socket[]; readonly seen: () => string }> {
  const ways: Socket[] = [];
  const all: Socket[] = [];
  let seen = "";
  const server = createServer({ allowHalfOpen: true }, (source) => {
    source.once("data", (first: Buffer) => {
      const isWay = first[0] === WAY_FIRST_BYTE;
      if (isWay) ways.push(source);
      const target = connect({ host: "127.0.0.1", port: to(), allowHalfOpen: true, localAddress: isWay ? waysFrom : "127.0.0.1" });
      for (const [one, other] of [[source, target], [target, source]] as const) {
        all.push(one);
        one.on("error", () => undefined).on("close", () => { other.resetAndDestroy(); });
      }
      seen += first.toString("latin1");
      target.write(first);
      source.on("data", (part: Buffer) => { seen += part.toString("latin1"); });
      if (isWay) source.on("data", (part: Buffer) => { target.write(change(part)); }).on("end", () => { target.end(); });
      else source.pipe(target);
      target.pipe(source);
    });
  });
  test.teardown(() => {
    for (const socket of all) socket.destroy();
    server.close();
  });
  await new Promise<void>((resolve) => { server.listen(0, "127.0.0.1", resolve); });
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  return { port: address.port, ways, seen: () => seen };
}

both("the way there goes beside the channel, and is seen in the path only where that was wanted; the way back never is", async (test, clear) => {
    let port = 0;
    const between = await path(test, () => port);
    const { from, to } = await bench(test, clear).pair({ through: (target) => { port = target; return between.port; } });
    from.write("the guest's memory");
    to.write("the way back");
    test.equal(String(await bytesFrom(to, 18)), "the guest's memory");
    test.equal(String(await bytesFrom(from, 12)), "the way back");
    test.equal(between.seen().includes("the guest's memory"), clear);
    test.notOk(between.seen().includes("the way back"));
    test.equal(between.ways.length, 1);
});

both("a way that is lost ends the move on both sides", async (test, clear) => {
  for (const which of ["main", "further", "disk"] as const) {
    let port = 0;
    const between = await path(test, () => port);
    const made = await bench(test, clear).pair({ through: (target) => { port = target; return between.port; } });
    const channel = which === "main" ? made : await made[which]();
    channel.from.write("memory");
    await bytesFrom(channel.to, 6);
    const gone = Promise.all([ended(made.from), ended(made.to)]);
    between.ways.at(-1)?.resetAndDestroy();
    channel.from.write("more");
    const [source, target] = await Promise.all([made.source.closed, made.target.closed]);
    test.match([source, target], [{ code: "relay-failed" }, { code: "relay-failed" }], which);
    await gone;
  }
});

void t.test("who comes with a stream and was not announced is refused, and the source still gets in", async (test) => {
  const made = bench(test);
  const { from, to } = await made.pair({
    before: async ({ port }) => {
      const strangers: readonly (readonly [string, Buffer, RegExp])[] = [
        ["another token", Buffer.concat([Uint8Array.of(WAY_FIRST_BYTE), randomBytes(WAY_TOKEN_BYTES)]), /came with a stream, and was not expected/],
        ["neither", Buffer.from("GET /somewhere/else HTTP/1.1\r\nhost: there\r\n\r\n"), /wrong version number|http request/],
        ["less than a token", Buffer.of(WAY_FIRST_BYTE, 1, 2), /did not say in time/],
        ["nothing", Buffer.alloc(0), /did not say in time/],
      ];
      for (const [what, says, reason] of strangers) {
        const stranger = connect({ host: "127.0.0.1", port });
        stranger.on("error", () => undefined);
        stranger.write(says);
        const begun = Date.now();
        await ended(stranger);
        test.match(made.intruders.splice(0).join("\n"), reason, what);
        if (says.length < 4) test.ok(Date.now() - begun >= HANDSHAKE_MS - 100, "as long as in a handshake");
      }
    },
  });
  from.write("memory");
  test.equal(String(await bytesFrom(to, 6)), "memory");
});

both("by postcopy all of it comes, behind RELEASE too", async (test, clear) => {
  const { source, target, from, to } = await bench(test, clear).pair();
  source.stall();
  await source.taken();
  source.flow();
  source.releaseEarly({ migration, epoch: epoch(7), stopAt: millis(1) });
  await target.released;
  const data = randomBytes(8 << 20);
  from.write(data);
  test.ok((await bytesFrom(to, data.length)).equals(data));
});

both("RELEASE waits for every byte of every channel, however slowly it is read", async (test, clear) => {
  for (const which of ["main", "further", "disk"] as const) {
    const made = await bench(test, clear).pair();
    const channel = which === "main" ? made : await made[which]();
    channel.to.pause();
    channel.from.write(randomBytes(24 << 20));
    const { source } = made;
    const said = (): number => (which === "disk" ? source.diskBytes : source.bytes);
    for (let before = -1; before !== said();) {
      before = said();
      await pause(100);
    }
    const sent = said() - (which === "disk" ? 0 : 1);
    const release = source.release({ migration, epoch: epoch(7), stopAt: millis(1) });
    let got = 0;
    channel.to.on("data", (part: Buffer) => { got += part.length; }).resume();
    await Promise.all([release, made.target.released]);
    while (got < sent) await pause(5);
    test.ok(got >= sent, which);
  }
});

both("a way that falls silent ends the move, whether RELEASE waits for it or nobody does", async (test, clear) => {
  let port = 0;
  const between = await path(test, () => port);
  const { source, target, from, to } = await bench(test, clear).pair({ through: (there) => { port = there; return between.port; } });
  from.write("memory");
  await bytesFrom(to, 6);
  between.ways.at(-1)?.removeAllListeners("data").pause();
  from.write("what does not come");
  while (source.bytes < 25) await pause(5);
  // Each takes its time, and is the same for both: one of them with each.
  if (clear) await source.release({ migration, epoch: epoch(7), stopAt: millis(1) });
  test.match(await target.closed, { code: "relay-failed", message: /nothing of the stream came for/ });
  await source.closed;
});

both("a target's hypervisor that takes nothing any more holds nobody up", async (test, clear) => {
  const made = await bench(test, clear).pair();
  const disk = await made.disk();
  disk.to.destroy();
  const gone = new Promise((resolve) => { disk.from.once("close", resolve).resume(); });
  disk.from.end(randomBytes(24 << 20));
  await gone;
  // It has written all; the last of it may still lie in its socket.
  while (made.source.diskBytes < 24 << 20) await pause(5);
  test.equal(made.source.diskBytes, 24 << 20, "what it had to say was heard to its end");
  made.to.destroy();
  made.from.write(randomBytes(24 << 20));
  while (made.source.bytes < 24 << 20) await pause(5);
  await made.source.release({ migration, epoch: epoch(7), stopAt: millis(1) });
  test.match(await made.target.released, { epoch: 7 });
});

both("stalled before its hypervisor has come, it reads nothing", async (test, clear) => {
  const made = await bench(test, clear).pair();
  made.source.stall();
  const channel = await made.further();
  channel.from.write("waits");
  await pause(100);
  test.equal(made.source.bytes, 1);
  made.source.flow();
  test.equal(String(await bytesFrom(channel.to, 5)), "waits");
});

both("the token of a way is of use to its channel's host alone", async (test, clear) => {
  let port = 0;
  const between = await path(test, () => port, "127.0.0.2");
  const made = bench(test, clear);
  const target = await made.listen();
  port = target.port;
  const source = await made.open(target, { port: between.port });
  connect({ path: source.socket }).on("error", () => undefined).write("memory");
  test.match(await source.closed, { code: "relay-failed", message: /does not take the stream/ });
  test.match(made.intruders.join("\n"), /^127\.0\.0\.2:.*came with a stream, and was not expected/m);
});

void t.test("both sides have to mean the same", async (test) => {
  const made = bench(test, true);
  const target = await made.listen();
  await test.rejects(made.open(target, { clear: false }), { code: "relay-failed" });
  await pause(10);
  test.match(made.intruders.join("\n"), /encrypted/);
});

void t.test("a sealed way that is tampered with ends the move, and nothing of that comes out", async (test) => {
  const cases: readonly (readonly [string, (part: Buffer) => Buffer])[] = [
    ["a bit is changed", (part) => { part.writeUInt8(part.readUInt8(part.length - 1) ^ 1, part.length - 1); return part; }],
    ["a record is left out", () => Buffer.alloc(0)],
    ["a record comes twice", (part) => Buffer.concat([part, part])],
    ["what nobody has sealed", (part) => Buffer.concat([Buffer.of(0, 0, 0, 20), Buffer.alloc(20), part])],
    ["a length that none has", (part) => Buffer.concat([Buffer.alloc(4, 255), part])],
  ];
  for (const [what, change] of cases) {
    let port = 0;
    let changing = false;
    const between = await path(test, () => port, "127.0.0.1", (part) => {
      const wanted = changing;
      changing = false;
      return wanted ? change(part) : part;
    });
    const { source, target, from, to } = await bench(test).pair({ through: (there) => { port = there; return between.port; } });
    from.write("before");
    await bytesFrom(to, 6);
    let out = "";
    to.on("data", (part: Buffer) => { out += part.toString("latin1"); });
    changing = true;
    from.write("this one");
    while (source.bytes < 15) await pause(2);
    await pause(20);
    from.write("and the next");
    test.match(await target.closed, { code: "relay-failed", message: /the stream broke: what came was not sealed as the next record/ }, what);
    await source.closed;
    test.ok("this one".startsWith(out), `${what}: ${out}`);
  }
});

void t.test("a sealed way that is cut off behind a record is missed by RELEASE", async (test) => {
  let port = 0;
  const between = await path(test, () => port, "127.0.0.1");
  const { source, target, from, to } = await bench(test).pair({ through: (there) => { port = there; return between.port; } });
  from.write("memory");
  await bytesFrom(to, 6);
  const way = between.ways.at(-1);
  way?.removeAllListeners("data").resume();
  from.write("what is left out");
  while (source.bytes < 23) await pause(2);
  await pause(20);
  way?.emit("end");
  await source.release({ migration, epoch: epoch(7), stopAt: millis(1) });
  test.match(await target.closed, { code: "relay-failed", message: /ended before all of it had come/ });
});
