import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc, { type Arbitrary } from "fast-check";
import t from "tap";
import { CareofError } from "../../model/errors.js";
import { epoch, millis, parseMigrationId } from "../../model/ids.js";
import { encodeRelay, MAX_CONTROL_BYTES, MAX_DATA_BYTES, RelayParser, type RelayFrame } from "../../proto/relay-framing.js";
import { epochs, migrations, reasons } from "./arbitraries.js";

const stamps = fc.double({ min: 0, noNaN: true, noDefaultInfinity: true }).map((value) => millis(value + 0));
const frames: Arbitrary<RelayFrame> = fc.oneof(
  fc.record({ type: fc.constant("data" as const), data: fc.uint8Array({ minLength: 1, maxLength: 300 }) }),
  fc.record({ type: fc.constant("hello" as const), version: fc.nat(), migration: migrations, channel: fc.constantFrom("main" as const, "stream" as const, "disk" as const), way: fc.constantFrom(new Uint8Array(0), new Uint8Array(32).fill(7)), inClear: fc.boolean() }),
  fc.record({ type: fc.constant("ping" as const), sentAt: stamps }),
  fc.record({ type: fc.constant("pong" as const), sentAt: stamps, answeredAt: stamps }),
  fc.record({ type: fc.constant("release" as const), migration: migrations, epoch: epochs, stopAt: stamps, sent: fc.nat() }),
  fc.record({ type: fc.constant("close" as const), reason: reasons, detail: fc.string({ unit: "binary", maxLength: 400 }), sent: fc.nat() }),
  fc.record({ type: fc.constantFrom("endDisks" as const, "disksEnded" as const), disks: fc.nat() }),
  fc.record({ type: fc.constant("begin" as const) }),
  fc.record({ type: fc.constantFrom("mark" as const, "marked" as const), bytes: fc.nat() }),
).map((frame) => ({ ...frame }));

const migration = parseMigrationId("web1@7").id;

/** Neighbouring data joined and copied, so that how it was cut does not matter. */
function joined(frames: readonly RelayFrame[]): RelayFrame[] {
  const out: RelayFrame[] = [];
  for (const frame of frames) {
    const last = out.at(-1);
    if (frame.type === "data" && last?.type === "data") out[out.length - 1] = { type: "data", data: new Uint8Array(Buffer.concat([last.data, frame.data])) };
    else out.push(frame.type === "data" ? { type: "data", data: new Uint8Array(frame.data) } : frame);
  }
  return out;
}

function wire(frames: readonly RelayFrame[]): Uint8Array {
  return new Uint8Array(Buffer.concat(frames.flatMap((frame) => encodeRelay(frame))));
}

t.test("the documented bytes", (t) => {
  const documented: readonly (readonly [RelayFrame, string])[] = [
    [{ type: "data", data: Uint8Array.of(0xde, 0xad) }, "01 00000002 dead"],
    [{ type: "hello", version: 4, migration, channel: "main", way: new Uint8Array(0), inClear: false }, "02 0000000a 0804 1206 776562314037"],
    [{ type: "hello", version: 4, migration, channel: "disk", way: new Uint8Array(32).fill(7), inClear: false }, `02 00000032 0804 1206 776562314037 1a04 6469736b 2220 ${"07".repeat(32)}`],
    [{ type: "hello", version: 4, migration, channel: "main", way: new Uint8Array(32).fill(7), inClear: true }, `02 0000002e 0804 1206 776562314037 2220 ${"07".repeat(32)} 2801`],
    [{ type: "ping", sentAt: millis(1.5) }, "03 00000009 09 000000000000f83f"],
    [{ type: "pong", sentAt: millis(1.5), answeredAt: millis(2) }, "04 00000012 09 000000000000f83f 11 0000000000000040"],
    [{ type: "release", migration, epoch: epoch(7), stopAt: millis(2), sent: 0 }, "05 00000013 0a06 776562314037 1007 19 0000000000000040"],
    [{ type: "release", migration, epoch: epoch(7), stopAt: millis(2), sent: 300 }, "05 00000016 0a06 776562314037 1007 19 0000000000000040 20ac02"],
    [{ type: "close", reason: "timed-out", detail: "", sent: 0 }, "07 0000000b 0a09 74696d65642d6f7574"],
    [{ type: "endDisks", disks: 1 }, "08 00000002 0801"],
    [{ type: "disksEnded", disks: 1 }, "09 00000002 0801"],
    [{ type: "begin" }, "0a 00000000"],
    [{ type: "mark", bytes: 300 }, "0b 00000003 08ac02"],
    [{ type: "marked", bytes: 300 }, "0c 00000003 08ac02"],
  ];
  const readme = readFileSync(join(import.meta.dirname, "..", "..", "..", "proto", "README.md"), "utf8");
  for (const [frame, text] of documented) {
    t.ok(readme.split("\n").includes(text), text);
    const bytes = Buffer.from(text.replaceAll(" ", ""), "hex");
    t.equal(Buffer.from(wire([frame])).toString("hex"), bytes.toString("hex"), frame.type);
    t.same(joined(new RelayParser().push(bytes)), [frame], frame.type);
  }
  t.end();
});

t.test("however the network cuts it", (t) => {
  fc.assert(fc.property(fc.array(frames, { maxLength: 12 }), fc.array(fc.integer({ min: 1, max: 80 }), { minLength: 1, maxLength: 20 }), (sent, cuts) => {
    const bytes = wire(sent);
    const parser = new RelayParser();
    const got: RelayFrame[] = [];
    for (let at = 0, i = 0; at < bytes.length; i++) {
      const length = cuts[i % cuts.length] ?? 1;
      got.push(...parser.push(bytes.subarray(at, at + length)));
      at += length;
    }
    assert.deepStrictEqual(joined(got), joined(sent));
    assert.equal(parser.atBoundary, true);
    assert.deepStrictEqual(parser.push(new Uint8Array(0)), []);
  }), { numRuns: 600 });
  t.end();
});

t.test("data is neither copied nor held back", (t) => {
  const data = new Uint8Array(3 * MAX_DATA_BYTES + 10).map((_, i) => i);
  const parts = encodeRelay({ type: "data", data });
  t.same(parts.map((part) => part.length), [5, MAX_DATA_BYTES, 5, MAX_DATA_BYTES, 5, MAX_DATA_BYTES, 5, 10]);
  t.ok(parts.every((part) => part.length === 5 || part.buffer === data.buffer), "written from where it is");
  t.same(encodeRelay({ type: "data", data: new Uint8Array(0) }), [], "nothing makes no frame");
  const parser = new RelayParser();
  t.same(parser.push(Uint8Array.of(1, 0, 0, 0, 4)), []);
  t.equal(parser.atBoundary, false);
  const chunk = Uint8Array.of(10, 11, 12);
  const [frame] = parser.push(chunk);
  assert(frame?.type === "data");
  t.equal(frame.data.buffer, chunk.buffer, "a slice of the chunk, before the frame is complete");
  t.equal(parser.atBoundary, false);
  t.equal(parser.push(Uint8Array.of(13, 6)).length, 1);
  t.equal(parser.atBoundary, false, "a type has come");
  t.end();
});

t.test("what is no frame", (t) => {
  const cases: readonly (readonly [string, string, RegExp])[] = [
    ["type 0", "0000000000", /type 0/],
    ["type 6, which nothing has ever sent", "06000000020803", /type 6/],
    ["type 13", "0d00000001ff", /type 13/],
    ["data of no length", "0100000000", /length of 0/],
    ["data too long", "0100040001", /length of 262145/],
    ["data of 4 GiB", "01ffffffff", /length of 4294967295/],
    ["a hello of 4 GiB", "02ffffffff", /length of 4294967295/],
    ["a close too long", "0700001001", new RegExp(`length of ${String(MAX_CONTROL_BYTES + 1)}`)],
    ["an empty hello", "0200000000", /^hello\.migration: /],
    ["a release of no epoch 2^53", "05000000120a067765623140371080808080808080101900", /^release\.epoch: |malformed|out of range/],
    ["a hello of a channel that there is not", "020000000f08021206776562314037 1a03 6469 73".replaceAll(" ", ""), /^hello\.channel: /],
    ["a hello that breaks off", "02000000030801 12".replace(" ", ""), /out of range/],
    ["a ping of minus one", "0300000009 09 000000000000f0bf".replaceAll(" ", ""), /^ping\.sentAt: /],
    ["a close without a reason", "0700000000", /^close\.reason: /],
  ];
  for (const [what, text, complaint] of cases) {
    const parser = new RelayParser();
    const bytes = Buffer.from(text, "hex");
    const push = (): RelayFrame[] => parser.push(bytes);
    t.throws(push, { name: "CareofError", code: "malformed-relay", message: complaint }, what);
    t.throws(() => parser.push(wire([{ type: "ping", sentAt: millis(1) }])), { code: "malformed-relay" }, "and stays so");
    t.equal(parser.atBoundary, false);
  }
  t.throws(() => encodeRelay({ type: "ping", sentAt: millis(-1) }), { code: "malformed-relay" });
  t.same(new RelayParser().push(wire([{ type: "close", reason: "relay-failed", detail: "é".repeat(9000), sent: 0 }])).map((frame) => frame.type), ["close"], "a reason always fits");
  t.end();
});

t.test("no input throws anything but a CareofError, and none makes it keep more than it may", (t) => {
  fc.assert(fc.property(fc.array(frames, { maxLength: 4 }), fc.array(fc.tuple(fc.nat(), fc.nat({ max: 255 })), { maxLength: 5 }), fc.uint8Array({ maxLength: 30 }), (sent, damage, tail) => {
    const bytes = new Uint8Array(Buffer.concat([wire(sent), tail]));
    for (const [at, value] of damage) if (bytes.length > 0) bytes[at % bytes.length] = value;
    const parser = new RelayParser();
    try {
      for (const byte of bytes) parser.push(Uint8Array.of(byte));
    } catch (thrown) {
      if (!(thrown instanceof CareofError && thrown.code === "malformed-relay")) throw thrown;
    }
  }), { numRuns: 3000 });
  t.end();
});
