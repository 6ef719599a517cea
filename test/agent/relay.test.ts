import { createHash, randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t, { type Test } from "tap";
import { RelayClock } from "../../agent/migration/relay-clock.js";
import { openSourceRelay } from "../../agent/migration/relay-source.js";
import { openTargetRelay } from "../../agent/migration/relay-target.js";
import type { SourceRelay, TargetRelay } from "../../agent/migration/relay.js";
import { SystemClock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { epoch, migrationId, millis, vmId } from "../../model/ids.js";

const clock = new SystemClock({ keepAlive: true });
const migration = migrationId(vmId("web1"), epoch(7));
const secret = randomBytes(32);

interface Pair {
  readonly source: SourceRelay;
  readonly target: TargetRelay;
  /** Where the source's hypervisor writes. */
  readonly from: Socket;
  /** What the target's hypervisor accepted. */
  readonly to: Socket;
}

interface Bench {
  readonly directory: string;
  readonly intruders: string[];
  listen(): Promise<TargetRelay>;
  open(target: TargetRelay, options?: { readonly secret?: Uint8Array; readonly vm?: string }): Promise<SourceRelay>;
  pair(): Promise<Pair>;
}

function bench(test: Test): Bench {
  const directory = mkdtempSync(join(tmpdir(), "careof-relay-"));
  const incoming = join(directory, "incoming");
  const accepted: Socket[] = [];
  let arrived: (socket: Socket) => void = () => undefined;
  const hypervisor: Server = createServer({ allowHalfOpen: true }, (socket) => {
    accepted.push(socket);
    socket.on("error", () => socket.destroy());
    arrived(socket);
  });
  const relays: (SourceRelay | TargetRelay)[] = [];
  const intruders: string[] = [];
  test.teardown(() => {
    for (const relay of relays) relay.cut(new CareofError("shutting-down", "the test is over"));
    for (const socket of accepted) socket.destroy();
    hypervisor.close();
    rmSync(directory, { recursive: true, force: true });
  });
  const made: Bench = {
    directory, intruders,
    async listen() {
      if (!hypervisor.listening) await new Promise<void>((resolve) => { hypervisor.listen(incoming, resolve); });
      const target = await openTargetRelay({ migration, secret, address: "127.0.0.1", port: 0, socket: incoming, clock, onIntruder: (detail) => intruders.push(detail) });
      relays.push(target);
      return target;
    },
    async open(target, options = {}) {
      const name = options.vm === undefined ? migration : migrationId(vmId(options.vm), epoch(7));
      const source = await openSourceRelay({
        migration: name, secret: options.secret ?? secret, address: "127.0.0.1", port: target.port, socket: join(directory, "outgoing"), clock, limits: { connectMs: millis(2000) },
      });
      relays.push(source);
      return source;
    },
    async pair() {
      const target = await made.listen();
      const coming = new Promise<Socket>((resolve) => { arrived = resolve; });
      const source = await made.open(target);
      const from = connect({ path: source.socket, allowHalfOpen: true });
      from.on("error", () => from.destroy());
      return { source, target, from, to: await coming };
    },
  };
  return made;
}

async function bytesFrom(socket: Socket, length: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  let have = 0;
  return await new Promise((resolve) => {
    const take = (part: Buffer): void => {
      parts.push(part);
      have += part.length;
      if (have < length) return;
      socket.off("data", take);
      resolve(Buffer.concat(parts));
    };
    socket.on("data", take).resume();
  });
}

const pause = async (ms: number): Promise<void> => { await new Promise((resolve) => setTimeout(resolve, ms)); };
const ended = async (socket: Socket): Promise<void> => { await new Promise<void>((resolve) => { socket.resume().once("end", resolve).once("close", resolve); }); };

void t.test("carries every byte in order, both ways at once, past slow readers", async (test) => {
  const { source, from, to } = await bench(test).pair();
  const down = randomBytes(24 << 20);
  const up = randomBytes(3 << 20);
  to.pause();
  from.write(down);
  to.write(up);
  await pause(200);
  test.ok(source.bytes < down.length, "a reader that does not read holds the writer back");
  const [gotDown, gotUp] = await Promise.all([bytesFrom(to, down.length), bytesFrom(from, up.length)]);
  const hash = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");
  test.equal(hash(gotDown), hash(down));
  test.equal(hash(gotUp), hash(up));
  test.equal(source.bytes, down.length);
});

void t.test("the gate holds the way back and only that", async (test) => {
  const { source, from, to } = await bench(test).pair();
  source.hold();
  to.write("ack");
  from.write("memory");
  test.equal(String(await bytesFrom(to, 6)), "memory", "the way there stays open");
  let early = 0;
  const count = (part: Buffer): void => { early += part.length; };
  from.on("data", count);
  await pause(100);
  test.equal(early, 0, "nothing has passed the gate");
  from.off("data", count);
  const rest = bytesFrom(from, 3);
  test.equal(source.open(), 3);
  test.equal(String(await rest), "ack");
  test.equal(source.open(), 0, "opening again does nothing");
});

void t.test("the end of the target's hypervisor waits behind the gate too", async (test) => {
  const { source, from, to } = await bench(test).pair();
  source.hold();
  let over = false;
  from.on("end", () => { over = true; });
  from.resume();
  to.end("bye");
  await pause(80);
  test.notOk(over);
  source.open();
  await ended(from);
  test.pass("the end came through after opening");
});

void t.test("RELEASE is the last word, behind all data", async (test) => {
  const { source, target, from, to } = await bench(test).pair();
  const data = randomBytes(1 << 20);
  from.write(data);
  const all = bytesFrom(to, data.length);
  while (source.bytes < data.length) await pause(2);
  await source.release({ migration, epoch: epoch(7), stopAt: millis(1234.5) });
  test.same(await target.released, { migration, epoch: epoch(7), stopAt: 1234.5 });
  test.ok((await all).equals(data));
  test.equal(await target.closed, null, "an orderly end");
  test.equal(await source.closed, null);
  await test.rejects(source.release({ migration, epoch: epoch(7), stopAt: millis(0) }), { code: "relay-failed" });
  test.notOk(existsSync(source.socket));
});

void t.test("a hypervisor that dies is seen by the other one", async (test) => {
  const { target, from, to } = await bench(test).pair();
  from.destroy();
  await ended(to);
  let released = false;
  target.released.then(() => { released = true; }, () => undefined);
  await pause(20);
  test.notOk(released, "the end of a stream is no release");
});

void t.test("cut: both hypervisors lose their connection at once, and nobody is released", async (test) => {
  const { source, target, from, to } = await bench(test).pair();
  const cause = new CareofError("timed-out", "the test cuts");
  const both = Promise.all([ended(from), ended(to)]);
  source.cut(cause);
  await both;
  test.equal(await source.closed, cause);
  test.match(await target.closed, { code: "relay-failed" });
  test.notOk(existsSync(source.socket));
  source.cut(cause);
  test.pass("cutting twice is the same as once");
});

void t.test("cut from the target's side", async (test) => {
  const { source, target, from } = await bench(test).pair();
  const gone = ended(from);
  target.cut(new CareofError("cancelled-by-operator", "no"));
  await gone;
  test.match(await source.closed, { code: "relay-failed" });
});

void t.test("who does not know the secret is refused, and the rightful source still gets in", async (test) => {
  const made = bench(test);
  const target = await made.listen();
  await test.rejects(made.open(target, { secret: randomBytes(32) }), { code: "relay-failed", retryable: true });
  await test.rejects(made.open(target, { vm: "other" }), { code: "relay-failed" });
  test.equal(made.intruders.length, 2);
  test.notOk(existsSync(join(made.directory, "outgoing")), "nothing is left of the attempts");
  const plain = connect(target.port, "127.0.0.1");
  plain.write(randomBytes(64));
  await ended(plain);
  const source = await made.open(target);
  test.ok(existsSync(source.socket));
});

void t.test("a second source is refused, with the right secret too", async (test) => {
  const made = bench(test);
  const { target } = await made.pair();
  await test.rejects(made.open(target), { code: "relay-failed" });
});

void t.test("nobody listens", async (test) => {
  const made = bench(test);
  const target = await made.listen();
  target.cut(new CareofError("shutting-down", "gone"));
  await test.rejects(made.open(target), { code: "relay-failed", retryable: true });
});

void t.test("the clocks of one machine do not differ", async (test) => {
  const { target } = await bench(test).pair();
  await pause(100);
  const reading = target.clock();
  test.ok(reading !== null && Math.abs(reading.offset) <= reading.error, JSON.stringify(reading));
  test.ok(reading !== null && reading.error < 20, JSON.stringify(reading));
});

void t.test("the clock keeps the sample that is best now", (test) => {
  const compared = new RelayClock();
  test.equal(compared.reading(millis(0)), null);
  compared.answered(millis(0), millis(1005), millis(10));
  test.same(compared.reading(millis(10)), { offset: 1000, error: 5 });
  compared.answered(millis(20), millis(1500), millis(900));
  test.equal(compared.reading(millis(900))?.offset, 1000, "a worse one changes nothing");
  compared.answered(millis(100_000), millis(101_006), millis(100_010));
  test.equal(compared.reading(millis(100_010))?.offset, 1001, "but drift makes an old one worse");
  compared.answered(millis(50), millis(0), millis(40));
  test.equal(compared.reading(millis(100_010))?.offset, 1001, "an answer before its question is none");
  test.end();
});

void t.test("strangers who connect and say nothing keep the source out for seconds, not for minutes", async (test) => {
  const made = bench(test);
  const target = await made.listen();
  const strangers = Array.from({ length: 8 }, () => connect({ host: "127.0.0.1", port: target.port }).on("error", () => undefined));
  test.teardown(() => { for (const stranger of strangers) stranger.destroy(); });
  await Promise.all(strangers.map((stranger) => new Promise((resolve) => { stranger.once("connect", resolve); })));
  await test.rejects(made.open(target), { code: "relay-failed" }, "all places are taken");
  const gone = Promise.all(strangers.map((stranger) => new Promise((resolve) => { stranger.once("close", resolve); stranger.resume(); })));
  const waited = await Promise.race([gone.then(() => true), pause(6000).then(() => false)]);
  test.ok(waited, "they are shown out");
  await made.open(target);
  await target.connected;
});
