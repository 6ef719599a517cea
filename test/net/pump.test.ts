import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { openSync, readdirSync } from "node:fs";
import type { Socket } from "node:net";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import t, { type Test } from "tap";
import { SEAL_KEY_BYTES } from "../../net/pump-seal.js";
import { Pump, type PumpEvents, type PumpSeal } from "../../net/pump.js";
import { descriptorOfSocket } from "../../net/socket-descriptor.js";
import { socketPair } from "./socket-pair.js";

/** More than two sockets and a pipe hold. */
const MUCH = 16 << 20;

/** Of a process of its own. */
const IMPORTS = `
    import { once } from "node:events";
    import { connect, createServer } from "node:net";
    import { Pump } from ${JSON.stringify(pathToFileURL(join(import.meta.dirname, "..", "..", "net", "pump.js")).href)};
    import { descriptorOfSocket } from ${JSON.stringify(pathToFileURL(join(import.meta.dirname, "..", "..", "net", "socket-descriptor.js")).href)};`;

interface Made {
  /** Writes to the pump. */
  readonly writer: Socket;
  /** Reads what it has carried. */
  readonly reader: Socket;
  readonly pump: Pump;
  /** The pump's own ends, as Node knows them. */
  readonly ends: readonly [Socket, Socket];
  readonly heard: string[];
  /** Says where it goes. */
  readonly go: () => void;
}

async function make(test: Test, waits = false, seal: PumpSeal = { kind: "none" }): Promise<Made> {
  const [writer, from] = await socketPair(test);
  const [reader, to] = await socketPair(test);
  const heard: string[] = [];
  const events: PumpEvents = {
    onReadable: () => { heard.push("readable"); },
    onRefused: () => { heard.push("refused"); },
    onOver: (broken) => { heard.push(broken === null ? "ended" : broken.code === "malformed-relay" ? "malformed" : "broken"); },
  };
  const pump = new Pump(descriptorOfSocket(from), events, seal);
  test.teardown(() => { pump.close(); });
  const go = (): void => { pump.to(descriptorOfSocket(to)); };
  if (!waits) go();
  return { writer, reader, pump, ends: [from, to], heard, go };
}

/** What may come before it is said where it goes. */
function over({ heard }: Pick<Made, "heard">): string[] {
  return heard.filter((word) => word !== "readable");
}

async function until(what: () => boolean): Promise<void> {
  while (!what()) await new Promise((resolve) => { setTimeout(resolve, 5); });
}

async function read(reader: Socket, length: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  let have = 0;
  for await (const part of reader.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    parts.push(part);
    have += part.length;
    if (have >= length) break;
  }
  return Buffer.concat(parts);
}

void t.test("every byte, in order; a reader that does not read holds back its own writer, and nobody else", async (test) => {
  const [slow, other] = [await make(test), await make(test)];
  const data = randomBytes(MUCH);
  slow.writer.write(data);
  other.writer.write(data);
  test.ok((await read(other.reader, MUCH)).equals(data), "past one that stands");
  test.ok(slow.pump.read < MUCH && slow.pump.written < slow.pump.read + 1, "which has taken so much and no more");
  const reached = slow.pump.reached(MUCH);
  test.ok((await read(slow.reader, MUCH)).equals(data));
  await reached;
  test.match([slow.pump.read, slow.pump.written], [MUCH, MUCH]);
  test.strictSame(over(slow), []);
});

/** One pump that seals and one that opens, one behind the other; what `change` makes of each part of what is sealed. */
async function sealed(test: Test, change: (part: Buffer, index: number) => Buffer = (part) => part, keys = [Buffer.alloc(SEAL_KEY_BYTES, 1), Buffer.alloc(SEAL_KEY_BYTES, 1)] as const): Promise<readonly [Made, Made]> {
  const [seals, opens] = [await make(test, false, { kind: "seal", key: keys[0] }), await make(test, false, { kind: "open", key: keys[1] })];
  let index = 0;
  seals.reader.on("data", (part: Buffer) => { if (!opens.writer.write(change(part, index++))) seals.reader.pause(); });
  opens.writer.on("drain", () => { seals.reader.resume(); });
  return [seals, opens];
}

void t.test("sealed and opened: every byte, in order, and counted as what it was, however it is cut on the way", async (test) => {
  const data = randomBytes(MUCH);
  for (const [what, cut] of [["as it comes", null], ["byte by byte, to begin with", 400]] as const) {
    const [seals, opens] = await sealed(test, (part, index) => {
      if (index > 0 || cut === null) return part;
      for (let at = 0; at < cut; at++) opens.writer.write(part.subarray(at, at + 1));
      return part.subarray(cut);
    });
    let seen = 0;
    seals.reader.on("data", (part: Buffer) => { seen += part.length; });
    seals.writer.end(data);
    test.ok((await read(opens.reader, MUCH)).equals(data), what);
    await until(() => over(seals).length > 0);
    opens.writer.end();
    await until(() => over(opens).length > 0);
    test.match([seals.pump.read, seals.pump.written, opens.pump.read, opens.pump.written], [MUCH, MUCH, MUCH, MUCH]);
    test.strictSame([over(seals), over(opens)], [["ended"], ["ended"]]);
    test.ok(seen > MUCH && seen < MUCH * 1.01, "little more than it was");
  }
});

void t.test("what was sealed under another key, or otherwise, does not come out", async (test) => {
  const cases: readonly (readonly [string, (part: Buffer) => Buffer, Buffer<ArrayBuffer>])[] = [
    ["another key", (part) => part, Buffer.alloc(SEAL_KEY_BYTES, 2)],
    ["the length", (part) => { part.writeUInt32BE(part.readUInt32BE(0) - 1, 0); return part; }, Buffer.alloc(SEAL_KEY_BYTES, 1)],
    ["no room for a tag", (part) => { part.writeUInt32BE(16, 0); return part; }, Buffer.alloc(SEAL_KEY_BYTES, 1)],
    ["the first byte", (part) => { part.writeUInt8(part.readUInt8(4) ^ 0x80, 4); return part; }, Buffer.alloc(SEAL_KEY_BYTES, 1)],
    ["the tag", (part) => { part.writeUInt8(part.readUInt8(part.length - 1) ^ 1, part.length - 1); return part; }, Buffer.alloc(SEAL_KEY_BYTES, 1)],
  ];
  for (const [what, change, key] of cases) {
    const [seals, opens] = await sealed(test, change, [Buffer.alloc(SEAL_KEY_BYTES, 1), key]);
    seals.writer.write("what nobody else may say");
    await until(() => over(opens).length > 0);
    test.strictSame([over(opens), opens.pump.read, opens.pump.written], [["malformed"], 0, 0], what);
  }
});

void t.test("a sealing pump is held back by who does not read, and stalls, like any other", async (test) => {
  const [seals, opens] = await sealed(test);
  seals.writer.write(randomBytes(MUCH));
  await new Promise((resolve) => { setTimeout(resolve, 150); });
  const stood = seals.pump.read;
  test.ok(stood < MUCH, "nobody reads");
  opens.pump.stall();
  seals.pump.stall();
  opens.reader.resume();
  await new Promise((resolve) => { setTimeout(resolve, 60); });
  const stalled = seals.pump.read;
  await new Promise((resolve) => { setTimeout(resolve, 30); });
  test.equal(seals.pump.read, stalled);
  seals.pump.flow();
  opens.pump.flow();
  await opens.pump.reached(MUCH);
  test.equal(opens.pump.written, MUCH);
});

void t.test("where it goes may be said later: that there is something is told once, and nothing is read before", async (test) => {
  const { writer, reader, pump, heard, go } = await make(test, true);
  writer.write("first");
  await until(() => heard.length > 0);
  writer.write("second");
  await new Promise((resolve) => { setTimeout(resolve, 30); });
  test.strictSame(heard, ["readable"]);
  test.equal(pump.read, 0);
  go();
  test.equal(String(await read(reader, 11)), "firstsecond");
});

void t.test("stalled it reads nothing, and then reads on", async (test) => {
  const { writer, reader, pump } = await make(test);
  writer.write("one");
  test.equal(String(await read(reader, 3)), "one");
  pump.stall();
  await new Promise((resolve) => { setTimeout(resolve, 30); });
  writer.write("two");
  await new Promise((resolve) => { setTimeout(resolve, 30); });
  test.equal(pump.read, 3);
  pump.flow();
  test.equal(String(await read(reader, 3)), "two");
});

void t.test("its end comes behind its last byte; what was waited for in vain is let go", async (test) => {
  const { writer, reader, pump, heard, ends } = await make(test);
  writer.end(Buffer.alloc(MUCH, 7));
  const reached = pump.reached(MUCH + 1);
  const got = await read(reader, MUCH);
  test.equal(got.length, MUCH);
  await reached;
  test.strictSame(over({ heard }), ["ended"]);
  test.equal(ends[1].destroyed, false, "to shut the other side is the owner's");
});

void t.test("either side that is gone is told, once", async (test) => {
  const reads = await make(test);
  reads.reader.destroy();
  reads.writer.write("anything");
  await until(() => over(reads).length > 0);
  const idle = await make(test);
  idle.reader.destroy();
  await until(() => over(idle).length > 0);
  test.strictSame([over(reads), over(idle)], [["refused"], ["refused"]], "also while nothing is to be carried");
  const [reader, to] = await socketPair(test);
  idle.writer.write("more");
  idle.pump.to(descriptorOfSocket(to));
  test.equal(String(await read(reader, 4)), "more", "it goes on to somewhere else");
  reads.pump.to(openSync("/dev/null", "w"));
  reads.writer.end(Buffer.alloc(MUCH));
  await until(() => over(reads).length > 1);
  test.strictSame(over(reads), ["refused", "ended"]);
  test.equal(reads.pump.written, MUCH + 8);
});

void t.test("closed, it has let go of its descriptors, and says nothing any more", async (test) => {
  const first = await make(test);
  first.pump.close();
  const before = readdirSync("/proc/self/fd").length;
  const many: Made[] = [];
  for (let at = 0; at < 10; at++) many.push(await make(test, at % 2 === 0));
  for (const { writer } of many) writer.write("on its way");
  for (const { pump, ends } of many) {
    pump.close();
    pump.close();
    for (const end of ends) end.destroy();
  }
  for (const { writer, reader } of many) for (const socket of [writer, reader]) socket.destroy();
  await until(() => readdirSync("/proc/self/fd").length <= before);
  test.pass("all of them");
  test.strictSame(many.flatMap(over), []);
});

void t.test("without a descriptor left a pump is refused, and those that there are go on", (test) => {
  const program = `${IMPORTS}
    import { openSync, writeSync } from "node:fs";
    let carried = "";
    const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (from) => {
      const pump = new Pump(descriptorOfSocket(from), { onRefused: () => undefined, onOver: () => undefined });
      pump.to(descriptorOfSocket(from));
      client.on("data", (part) => {
        carried += part;
        if (carried === "before, and after") { writeSync(1, carried); process.exit(0); }
        if (carried !== "before, ") return;
        const last = [];
        try { for (;;) last.push(openSync("/dev/null")); } catch { writeSync(1, "full: "); }
        try { new Pump(last.at(-1), { onRefused: () => undefined, onOver: () => undefined }); } catch (thrown) { writeSync(1, thrown.code + ": "); }
        client.write("and after");
      });
      client.write("before, ");
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const client = connect(server.address().port, "127.0.0.1");`;
  const ran = spawnSync("prlimit", ["--nofile=100:100", process.execPath, "--input-type=module", "--eval", program], { encoding: "utf8", timeout: 60_000 });
  test.match(ran, { status: 0, stdout: "full: kernel-refused: before, and after" });
  test.end();
});

void t.test("without its thread every pump is over, and has let go of its descriptors", (test) => {
  const program = `${IMPORTS}
    import { closeSync, openSync, readdirSync, writeSync } from "node:fs";
    const server = createServer({ pauseOnConnect: true }, (from) => {
      const before = readdirSync("/proc/self/fd").length;
      const last = [];
      try { for (;;) last.push(openSync("/dev/null")); } catch {}
      // Enough for a pump, too few for a thread to load what it consists of.
      for (const each of last.splice(-8)) closeSync(each);
      const pump = new Pump(descriptorOfSocket(from), { onRefused: () => undefined, onOver: (cause) => {
          for (const each of last.splice(0)) closeSync(each);
          pump.to(descriptorOfSocket(from));
          pump.close();
          setTimeout(() => { writeSync(1, cause.code + " " + (readdirSync("/proc/self/fd").length - before)); process.exit(0); }, 300);
        } });
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const client = connect(server.address().port, "127.0.0.1").on("error", () => undefined);
    await once(client, "connect");`;
  const ran = spawnSync("prlimit", ["--nofile=100:100", process.execPath, "--input-type=module", "--eval", program], { encoding: "utf8", timeout: 60_000 });
  test.match(ran, { status: 0, stdout: "kernel-refused 0" });
  test.end();
});

void t.test("a process ends although a pump waits", (test) => {
  const program = `${IMPORTS}
    const server = createServer({ pauseOnConnect: true }, (from) => {
      new Pump(descriptorOfSocket(from), { onRefused: () => undefined, onOver: () => undefined });
      setTimeout(() => { if (process.argv[1] === "exit") process.exit(3); process.exitCode = 3; from.destroy(); server.close(); client.destroy(); }, 100);
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const client = connect(server.address().port, "127.0.0.1").on("error", () => undefined);`;
  for (const how of ["exit", "by itself"]) {
    const ran = spawnSync(process.execPath, ["--input-type=module", "--eval", program, how], { encoding: "utf8", timeout: 60_000 });
    test.match(ran, { status: 3, signal: null }, how);
  }
  test.end();
});
