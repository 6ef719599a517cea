import { createHash, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { connect } from "node:net";
import { connect as connectTls } from "node:tls";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { RelayClock } from "../../agent/migration/relay-clock.js";
import { RELAY_TLS } from "../../agent/migration/relay-connection.js";
import { RELAY_LIMITS, RELAY_VERSION } from "../../agent/migration/relay.js";
import { CareofError } from "../../model/errors.js";
import { epoch, migrationId, millis, vmId } from "../../model/ids.js";
import { encodeRelay, WAY_TOKEN_BYTES, type RelayFrame } from "../../proto/relay-framing.js";
import { bench, bytesFrom, ended, migration, pause, secret } from "./relay-bench.js";

/** Encrypted, and in clear. */
function both(what: string, run: (test: Test, clear: boolean) => Promise<void>): void {
  for (const clear of [false, true]) void t.test(clear ? `${what}, in clear` : what, (test) => run(test, clear));
}

both("carries every byte in order, both ways at once, past slow readers", async (test, clear) => {
  const { source, from, to } = await bench(test, clear).pair();
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
  test.equal(source.bytes, 1 + down.length);
});

both("the gate holds the way back and only that", async (test, clear) => {
  const { source, from, to } = await bench(test, clear).pair();
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

both("the end of the target's hypervisor waits behind the gate too", async (test, clear) => {
  const { source, from, to } = await bench(test, clear).pair();
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

both("RELEASE is the last word, behind all data, also for a hypervisor that reads slowly", async (test, clear) => {
  const { source, target, from, to } = await bench(test, clear).pair();
  // More than a socket holds, less than what makes the relay wait.
  const data = randomBytes(900 << 10);
  to.pause();
  from.write(data);
  while (source.bytes < 1 + data.length) await pause(2);
  await source.release({ migration, epoch: epoch(7), stopAt: millis(1234.5) });
  const read = bytesFrom(to, data.length);
  test.same(await target.released, { migration, epoch: epoch(7), stopAt: 1234.5 });
  test.equal(await target.closed, null, "an orderly end");
  test.ok((await read).equals(data));
  test.equal(await source.closed, null);
  await test.rejects(source.release({ migration, epoch: epoch(7), stopAt: millis(0) }), { code: "relay-failed" });
  test.notOk(existsSync(source.socket));
});

both("RELEASE in the midst of a stream: both ways go on behind it, and either end is seen", async (test, clear) => {
  for (const breaks of ["source", "target", "relay"] as const) {
    const { source, target, from, to } = await bench(test, clear).pair();
    from.write("state");
    test.equal(String(await bytesFrom(to, 5)), "state");
    source.releaseEarly({ migration, epoch: epoch(7), stopAt: millis(1) });
    test.same(await target.released, { migration, epoch: epoch(7), stopAt: 1 });
    from.write("pages");
    test.equal(String(await bytesFrom(to, 5)), "pages");
    to.write("more");
    test.equal(String(await bytesFrom(from, 4)), "more");
    if (breaks === "relay") {
      target.cut(new CareofError("relay-failed", "cut"));
      await Promise.all([ended(from), ended(to), source.closed, target.closed]);
    } else {
      (breaks === "source" ? from : to).destroy();
      await ended(breaks === "source" ? to : from);
    }
    test.pass(`the other side sees that the ${breaks} ends`);
  }
});

both("a hypervisor that dies is seen by the other one", async (test, clear) => {
  const { target, from, to } = await bench(test, clear).pair();
  from.destroy();
  await ended(to);
  let released = false;
  target.released.then(() => { released = true; }, () => undefined);
  await pause(20);
  test.notOk(released, "the end of a stream is no release");
});

both("cut: both hypervisors lose their connection at once, and nobody is released", async (test, clear) => {
  const { source, target, from, to } = await bench(test, clear).pair();
  const cause = new CareofError("timed-out", "the test cuts");
  const both = Promise.all([ended(from), ended(to)]);
  source.cut(cause);
  await both;
  test.equal(await source.closed, cause);
  test.match(await target.closed, { code: "relay-failed", message: /hung up before its release: the test cuts/ }, "and the other side is told why");
  test.notOk(existsSync(source.socket));
  source.cut(cause);
  test.pass("cutting twice is the same as once");
});

both("cut from the target's side", async (test, clear) => {
  const { source, target, from } = await bench(test, clear).pair();
  const gone = ended(from);
  target.cut(new CareofError("cancelled-by-operator", "no"));
  await gone;
  test.match(await source.closed, { code: "relay-failed", message: /hung up: no$/ });
});

both("who does not know the secret is refused, and the rightful source still gets in", async (test, clear) => {
  const made = bench(test, clear);
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

both("a second source is refused, with the right secret too", async (test, clear) => {
  const made = bench(test, clear);
  const { target } = await made.pair();
  await test.rejects(made.open(target), { code: "relay-failed" });
});

both("further channels carry their own bytes, both ways, past one another", async (test, clear) => {
  const { source, target, from, to, further, disk } = await bench(test, clear).pair();
  const channels = [await further(), await further(), await disk(), await disk()];
  const bytes = channels.map(() => randomBytes(3 << 20));
  const back = channels.map(() => randomBytes(1 << 20));
  channels.forEach((channel, i) => { channel.from.write(bytes[i] ?? ""); channel.to.write(back[i] ?? ""); });
  from.write("main");
  const got = await Promise.all(channels.flatMap((channel, i) => [bytesFrom(channel.to, 3 << 20).then((all) => bytes[i]?.equals(all)), bytesFrom(channel.from, 1 << 20).then((all) => back[i]?.equals(all))]));
  test.same(got, got.map(() => true));
  test.equal(String(await bytesFrom(to, 4)), "main");
  test.equal(source.bytes, 1 + 2 * (3 << 20) + 4);
  test.equal(source.diskBytes, 2 * (3 << 20));
  // One that ends takes nothing with it, and its bytes stay counted.
  const gone = ended(channels[2]?.to ?? to);
  channels[2]?.from.end();
  await gone;
  const closed = ended(channels[2]?.from ?? from);
  channels[2]?.to.end();
  await closed;
  channels[3]?.from.write("more");
  test.equal(String(await bytesFrom(channels[3]?.to ?? to, 4)), "more");
  test.equal(source.diskBytes, 2 * (3 << 20) + 4);
  from.write("main");
  test.equal(String(await bytesFrom(to, 4)), "main");
  test.ok(target.port > 0);
});

both("a channel whose reader does not read holds up no other", async (test, clear) => {
  const { source, from, to, further, disk } = await bench(test, clear).pair();
  const copied = await disk();
  const more = await further();
  copied.to.pause();
  copied.from.write(randomBytes(24 << 20));
  await pause(200);
  test.ok(source.diskBytes < 24 << 20, "its own writer is held back");
  const data = randomBytes(4 << 20);
  from.write(data);
  more.from.write(data);
  test.ok((await bytesFrom(to, data.length)).equals(data), "the main stream flows");
  test.ok((await bytesFrom(more.to, data.length)).equals(data));
  source.stall();
  source.hold();
  to.write("ack");
  const rest = bytesFrom(copied.to, 24 << 20);
  test.equal((await rest).length, 24 << 20, "and gate and stall are the main stream's alone");
  more.to.write("ack");
  test.equal(String(await bytesFrom(more.from, 3)), "ack");
});

both("RELEASE counts when every channel has ended", async (test, clear) => {
  const { source, target, from, to, further } = await bench(test, clear).pair();
  const more = await further();
  const data = randomBytes(24 << 20);
  const all = bytesFrom(to, 5);
  from.write("state");
  test.equal(String(await all), "state");
  more.to.pause();
  more.from.write(data);
  for (let before = -1; source.bytes !== before || before < 1 << 20;) {
    before = source.bytes;
    await pause(100);
  }
  let released = false;
  target.released.then(() => { released = true; }, () => undefined);
  await source.release({ migration, epoch: epoch(7), stopAt: millis(1) });
  await pause(100);
  test.notOk(released, "a channel has not been read to its end");
  more.to.resume();
  test.same(await target.released, { migration, epoch: epoch(7), stopAt: 1 });
  test.equal(await target.closed, null);
  test.equal(await source.closed, null);
});

both("a channel that is lost ends the move on both sides", async (test, clear) => {
  const made = bench(test, clear);
  const target = await made.listen(false);
  const source = await made.open(target);
  const client = connect(source.diskSocket).on("error", () => undefined);
  await ended(client);
  test.match(await source.closed, { code: "relay-failed" }, "the target has no disks to copy");
  test.match(await target.closed, { code: "relay-failed" });
  test.match(made.intruders, [/channel "disk"/]);
  test.notOk(existsSync(source.diskSocket));
});

void t.test("who knows the secret and speaks wrongly is cut off, alone", async (test) => {
  const made = bench(test);
  const target = await made.listen();
  const hello = (channel: "main" | "stream" | "disk", version = RELAY_VERSION, vm = "web1"): RelayFrame => ({ type: "hello", version, migration: migrationId(vmId(vm), epoch(7)), channel, way: randomBytes(WAY_TOKEN_BYTES), inClear: false });
  const say = async (frames: readonly RelayFrame[]): Promise<void> => {
    const socket = connectTls({ ...RELAY_TLS, host: "127.0.0.1", port: target.port, pskCallback: () => ({ psk: secret, identity: migration }), checkServerIdentity: () => undefined });
    socket.on("error", () => undefined).once("secureConnect", () => { for (const part of frames.flatMap((frame) => encodeRelay(frame))) socket.write(part); });
    await new Promise<void>((resolve) => { socket.resume().once("close", () => { resolve(); }); });
  };
  const before = [[], [{ type: "data", data: Uint8Array.of(1) }], [hello("main", 2, "other")], [hello("disk")], [hello("stream")]] satisfies RelayFrame[][];
  await Promise.all(before.map(say));
  const source = await made.open(target);
  await Promise.all([[hello("main")], [{ type: "release", migration, epoch: epoch(7), stopAt: millis(1), sent: 0 } as const]].map(say));
  test.equal(made.intruders.length, before.length - 1 + 2, "all but the silent one had something to say");
  const from = connect(source.socket);
  from.write("still here");
  await target.connected;
  test.ok(existsSync(source.socket));
  let lost = false;
  target.closed.then(() => { lost = true; }, () => undefined);
  await say([hello("stream"), hello("stream")]);
  await target.closed;
  test.ok(lost, "but a channel that breaks the rules later is a channel lost");
  from.destroy();
});

both("cut: further channels too", async (test, clear) => {
  const { source, target, further, disk } = await bench(test, clear).pair();
  const channels = [await further(), await disk()];
  const all = Promise.all(channels.flatMap(({ from, to }) => [ended(from), ended(to)]));
  source.cut(new CareofError("timed-out", "the test cuts"));
  await all;
  test.match(await target.closed, { code: "relay-failed" });
});

both("nobody listens", async (test, clear) => {
  const made = bench(test, clear);
  const target = await made.listen();
  target.cut(new CareofError("shutting-down", "gone"));
  await test.rejects(made.open(target), { code: "relay-failed", retryable: true });
});

void t.test("the clocks of one machine do not differ", async (test) => {
  const { target } = await bench(test).pair();
  await pause(100);
  const reading = target.clock();
  test.ok(reading !== null && Math.abs(reading.offset) <= reading.error, JSON.stringify(reading));
  test.ok(reading !== null && reading.error < 100, JSON.stringify(reading));
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

void t.test("strangers who connect and say nothing do not keep the source out, and are shown out", async (test) => {
  const made = bench(test);
  const target = await made.listen();
  const places = 8 + 2 * (1 + RELAY_LIMITS.maxChannels);
  const strangers = Array.from({ length: places + 12 }, () => connect({ host: "127.0.0.1", port: target.port }).on("error", () => undefined));
  test.teardown(() => { for (const stranger of strangers) stranger.destroy(); });
  const gone = Promise.all(strangers.map((stranger) => new Promise((resolve) => { stranger.once("close", resolve); stranger.resume(); })));
  await Promise.all(strangers.map((stranger) => new Promise((resolve) => { stranger.once("connect", resolve); })));
  await made.open(target);
  await target.connected;
  test.equal(made.intruders.filter((detail) => detail.includes("gave way")).length, 13, "one of the places is the source's");
  const waited = await Promise.race([gone.then(() => true), sleep(30_000, false, { ref: false })]);
  test.ok(waited, "nobody waits longer than a handshake may take");
});
