import { randomBytes } from "node:crypto";
import { connect, createServer, type Socket } from "node:net";
import t, { type Test } from "tap";
import { CLEAR_MARK, HANDSHAKE_MS } from "../../agent/migration/relay-listener.js";
import { CLEAR_TOKEN_BYTES } from "../../proto/relay-framing.js";
import { epoch, millis } from "../../model/ids.js";
import { bench, bytesFrom, ended, migration, pause } from "./relay-bench.js";

/** Of the stream in clear, what can go wrong with the connections beside the authenticated ones. What it shall do is in relay.test.ts, for both ways. */

/** Stands in the path between the two relays, and knows which connections are in clear; they go on from the address `clearFrom`. */
async function path(test: Test, to: () => number, clearFrom = "127.0.0.1"): Promise<{ readonly port: number; readonly clear: Socket[]; readonly seen: () => string }> {
  const clear: Socket[] = [];
  const all: Socket[] = [];
  let seen = "";
  const server = createServer({ allowHalfOpen: true }, (source) => {
    source.once("data", (first: Buffer) => {
      const isClear = first[0] === CLEAR_MARK;
      if (isClear) clear.push(source);
      const target = connect({ host: "127.0.0.1", port: to(), allowHalfOpen: true, localAddress: isClear ? clearFrom : "127.0.0.1" });
      for (const [one, other] of [[source, target], [target, source]] as const) {
        all.push(one);
        one.on("error", () => undefined).on("close", () => { other.resetAndDestroy(); });
      }
      seen += first.toString("latin1");
      target.write(first);
      source.on("data", (part: Buffer) => { seen += part.toString("latin1"); });
      source.pipe(target);
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
  return { port: address.port, clear, seen: () => seen };
}

void t.test("only what was announced goes in clear: the way there, and nothing without being told to", async (test) => {
  for (const clear of [true, false]) {
    let port = 0;
    const between = await path(test, () => port);
    const { from, to } = await bench(test, clear).pair({ through: (target) => { port = target; return between.port; } });
    from.write("the guest's memory");
    to.write("the way back");
    test.equal(String(await bytesFrom(to, 18)), "the guest's memory");
    test.equal(String(await bytesFrom(from, 12)), "the way back");
    test.equal(between.seen().includes("the guest's memory"), clear);
    test.equal(between.clear.length, clear ? 1 : 0);
  }
});

void t.test("a connection in clear that is lost ends the move on both sides", async (test) => {
  for (const which of ["main", "further", "disk"] as const) {
    let port = 0;
    const between = await path(test, () => port);
    const made = await bench(test, true).pair({ through: (target) => { port = target; return between.port; } });
    const channel = which === "main" ? made : await made[which]();
    channel.from.write("memory");
    await bytesFrom(channel.to, 6);
    const gone = Promise.all([ended(made.from), ended(made.to)]);
    between.clear.at(-1)?.resetAndDestroy();
    channel.from.write("more");
    const [source, target] = await Promise.all([made.source.closed, made.target.closed]);
    test.match([source, target], [{ code: "relay-failed" }, { code: "relay-failed" }], which);
    await gone;
  }
});

void t.test("who comes in clear and was not announced is refused, and the source still gets in", async (test) => {
  const made = bench(test, true);
  const { from, to } = await made.pair({
    before: async ({ port }) => {
      const strangers: readonly (readonly [string, Buffer, RegExp])[] = [
        ["another token", Buffer.concat([Uint8Array.of(CLEAR_MARK), randomBytes(CLEAR_TOKEN_BYTES)]), /came in clear, and was not expected/],
        ["neither", Buffer.from("GET /somewhere/else HTTP/1.1\r\nhost: there\r\n\r\n"), /wrong version number|http request/],
        ["less than a token", Buffer.of(CLEAR_MARK, 1, 2), /did not say in time/],
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

void t.test("by postcopy all of it comes, behind RELEASE too", async (test) => {
  const { source, target, from, to } = await bench(test, true).pair();
  source.stall();
  await source.taken();
  source.flow();
  source.releaseEarly({ migration, epoch: epoch(7), stopAt: millis(1) });
  await target.released;
  const data = randomBytes(8 << 20);
  from.write(data);
  test.ok((await bytesFrom(to, data.length)).equals(data));
});

void t.test("RELEASE waits for every byte of every channel, however slowly it is read", async (test) => {
  for (const clear of [true, false]) for (const which of ["main", "further", "disk"] as const) {
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
    test.ok(got >= sent, `${which}, ${clear ? "in clear" : "encrypted"}`);
  }
});

void t.test("a way in clear that falls silent ends the move, whether RELEASE waits for it or nobody does", async (test) => {
  for (const waits of [true, false]) {
    let port = 0;
    const between = await path(test, () => port);
    const { source, target, from, to } = await bench(test, true).pair({ through: (there) => { port = there; return between.port; } });
    from.write("memory");
    await bytesFrom(to, 6);
    between.clear.at(-1)?.unpipe().pause();
    from.write("what does not come");
    while (source.bytes < 25) await pause(5);
    if (waits) await source.release({ migration, epoch: epoch(7), stopAt: millis(1) });
    test.match(await target.closed, { code: "relay-failed", message: /nothing came in clear for/ });
    await source.closed;
  }
});

void t.test("a target's hypervisor that takes nothing any more holds nobody up", async (test) => {
  const made = await bench(test, true).pair();
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

void t.test("stalled before its hypervisor has come, it reads nothing", async (test) => {
  const made = await bench(test, true).pair();
  made.source.stall();
  const channel = await made.further();
  channel.from.write("waits");
  await pause(100);
  test.equal(made.source.bytes, 1);
  made.source.flow();
  test.equal(String(await bytesFrom(channel.to, 5)), "waits");
});

void t.test("the token of a connection in clear is of use to its channel's host alone", async (test) => {
  let port = 0;
  const between = await path(test, () => port, "127.0.0.2");
  const made = bench(test, true);
  const target = await made.listen();
  port = target.port;
  const source = await made.open(target, { port: between.port });
  connect({ path: source.socket }).on("error", () => undefined).write("memory");
  test.match(await source.closed, { code: "relay-failed", message: /does not take the stream in clear/ });
  test.match(made.intruders.join("\n"), /^127\.0\.0\.2:.*came in clear, and was not expected/m);
});

void t.test("both sides have to mean the same", async (test) => {
  const made = bench(test, true);
  const target = await made.listen();
  await test.rejects(made.open(target, { clear: false }), { code: "relay-failed" });
  await pause(10);
  test.match(made.intruders.join("\n"), /encrypted/);
});
