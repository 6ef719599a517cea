import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import t from "tap";
import { ipv4 } from "../../model/address.js";
import { CareofError } from "../../model/errors.js";
import { epoch, millis, vmId } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import { decision } from "../../proto/channel.js";
import { decodeFrame, encodeFrame, MAX_FRAME_BYTES, UnsupportedBody } from "../../proto/codec.js";
import { careof } from "../../proto/gen/careof.js";
import type { Body, Frame } from "../../proto/messages.js";
import { frames, framesOf, kinds } from "./arbitraries.js";
import v1 = careof.v1;

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}

function decodeHex(text: string): Frame {
  return decodeFrame(new Uint8Array(Buffer.from(text.replaceAll(" ", ""), "hex")));
}

/** What decoding throws; a frame is returned as it is. */
function tryDecode(bytes: Uint8Array): Frame | CareofError {
  try {
    return decodeFrame(bytes);
  } catch (thrown) {
    if (thrown instanceof CareofError) return thrown;
    throw thrown;
  }
}

t.test("every kind survives the wire", (t) => {
  for (const kind of kinds) {
    fc.assert(fc.property(framesOf(kind), (frame) => { assert.deepStrictEqual(decodeFrame(encodeFrame(frame)), frame); }), { numRuns: 200 });
    t.pass(kind);
  }
  t.end();
});

t.test("the documented frame", (t) => {
  const frame: Frame = { id: 5, inReplyTo: 0, body: { kind: "revoke", vm: vmId("web1"), epoch: epoch(7), forwardTo: ipInIp(ipv4("192.0.2.1"), 1500), graceMs: millis(2000) } };
  const documented = "0805 ba0218 0a0477656231 1007 1a0b 0a04c0000201 1001 20dc0b 20d00f";
  t.match(readFileSync(join(import.meta.dirname, "..", "..", "..", "proto", "README.md"), "utf8"), documented);
  t.equal(hex(encodeFrame(frame)), documented.replaceAll(" ", ""));
  t.same(decodeHex(documented), frame);
  t.end();
});

t.test("a decoded frame holds on to nothing of its message", (t) => {
  const encoded = encodeFrame({ id: 0, inReplyTo: 0, body: { kind: "relayedHeartbeat", envelope: Uint8Array.of(1, 2, 3), port: 1, address: ipv4("192.0.2.1") } });
  const { body } = decodeFrame(Buffer.from(encoded.buffer, encoded.byteOffset, encoded.length));
  encoded.fill(0);
  t.match(body, { envelope: Uint8Array.of(1, 2, 3) });
  t.end();
});

const spec: v1.VmSpec.$Properties = { vm: "web1", mac: Uint8Array.of(0x52, 0x54, 0, 0, 0, 1), driver: "external" };
const report: v1.VmReport.$Properties = { vm: "web1", state: v1.VmState.RUNS, evidence: "running" };
const binding: v1.BindingUpdate.$Properties = { vm: "web1", state: "bound", spec };
const registered: v1.Registered.$Properties = { decision: { reason: "accepted" }, tunnelAddresses: [Uint8Array.of(192, 0, 2, 1)], bindings: [binding] };
const locator: v1.Locator.$Properties = { address: Uint8Array.of(192, 0, 2, 1), encapsulation: v1.Encapsulation.IP_IN_IP };

t.test("what is wrong is named", (t) => {
  const cases: readonly (readonly [string, v1.Frame.$Properties])[] = [
    ["id", { id: 2 ** 53, keepAlive: {} }],
    ["inReplyTo", { inReplyTo: 2 ** 63, keepAlive: {} }],
    ["vmReport.vm", { vmReport: { ...report, vm: "" } }],
    ["vmReport.vm", { vmReport: { ...report, vm: "Web1" } }],
    ["vmReport.vm", { vmReport: { ...report, vm: "x".repeat(64) } }],
    ["vmReport.vm", { vmReport: { ...report, vm: "x".repeat(100_000) } }],
    ["vmReport.state", { vmReport: { ...report, state: v1.VmState.VM_STATE_UNSPECIFIED } }],
    ["vmReport.evidence", { vmReport: { ...report, evidence: "hearsay" } }],
    ["vmReport.basedOn", { vmReport: { ...report, basedOn: 2 ** 53 } }],
    ["vmReport.locator.address", { vmReport: { ...report, locator: { ...locator, address: new Uint8Array(3) } } }],
    ["vmReport.locator.address", { vmReport: { ...report, locator: { ...locator, address: new Uint8Array(0) } } }],
    ["vmReport.locator.encapsulation", { vmReport: { ...report, locator: { ...locator, encapsulation: v1.Encapsulation.ENCAPSULATION_UNSPECIFIED } } }],
    ["vmReport.locator.port", { vmReport: { ...report, locator: { ...locator, port: 65536 } } }],
    ["decision.reason", { decision: { reason: "no reason" } }],
    ["decision.reason", { decision: {} }],
    ["decision.detail", { decision: { reason: "accepted", detail: "x".repeat(5000) } }],
    ["keepAlive.at", { keepAlive: { at: NaN } }],
    ["keepAlive.at", { keepAlive: { at: Infinity } }],
    ["keepAlive.at", { keepAlive: { at: -1 } }],
    ["running.pauseMs", { running: { migration: "web1@7", pauseMs: NaN } }],
    ["leadReady.migration", { leadReady: { migration: "web1" } }],
    ["leadReady.migration", { leadReady: { migration: "web1@0" } }],
    ["leadReady.migration", { leadReady: { migration: "web1@9999999999999999" } }],
    ["prepare.spec", { prepare: { migration: "web1@7" } }],
    ["sourceEnded.result", { sourceEnded: { migration: "web1@7", reason: "accepted" } }],
    ["bindingUpdate.spec", { bindingUpdate: { vm: "web1", state: "bound" } }],
    ["bindingUpdate.owner", { bindingUpdate: { ...binding, owner: "-" } }],
    ["bindingUpdate.spec.mac", { bindingUpdate: { ...binding, spec: { ...spec, mac: new Uint8Array(5) } } }],
    ["bindingUpdate.spec.mac", { bindingUpdate: { ...binding, spec: { ...spec, mac: Uint8Array.of(1, 0, 0, 0, 0, 0) } } }],
    ["bindingUpdate.spec.driver", { bindingUpdate: { ...binding, spec: { ...spec, driver: "xen" } } }],
    ["bindingUpdate.spec.qemu.cpus", { bindingUpdate: { ...binding, spec: { ...spec, qemu: {} } } }],
    ["bindingUpdate.spec.homeAddresses[1]", { bindingUpdate: { ...binding, spec: { ...spec, homeAddresses: [new Uint8Array(4), new Uint8Array(5)] } } }],
    ["bindingUpdate.spec.homeAddresses", { bindingUpdate: { ...binding, spec: { ...spec, homeAddresses: new Array<Uint8Array>(65).fill(new Uint8Array(4)) } } }],
    ["registered.decision", { registered: { ...registered, decision: null } }],
    ["registered.bindings[0].state", { registered: { ...registered, bindings: [{ ...binding, state: "free" }] } }],
    ["relayedHeartbeat.envelope", { relayedHeartbeat: { envelope: new Uint8Array(513), address: new Uint8Array(4) } }],
    ["startVm.adopt.control", { startVm: { spec, adopt: { control: "", port: "tap7" } } }],
    ["startVm.adopt.control", { startVm: { spec, adopt: { control: "web1.qmp", port: "tap7" } } }],
    ["startVm.adopt.control", { startVm: { spec, adopt: { control: "/run/web1\0.qmp", port: "tap7" } } }],
    ["startVm.adopt.control", { startVm: { spec, adopt: { control: `/${"x".repeat(107)}`, port: "tap7" } } }],
    ["startVm.adopt.port", { startVm: { spec, adopt: { control: "/run/web1.qmp", port: "" } } }],
    ["startVm.adopt.port", { startVm: { spec, adopt: { control: "/run/web1.qmp", port: "../tap7" } } }],
    ["startVm.adopt.port", { startVm: { spec, adopt: { control: "/run/web1.qmp", port: ".." } } }],
    ["startVm.adopt.port", { startVm: { spec, adopt: { control: "/run/web1.qmp", port: "tap7-of-somebody" } } }],
    ["disksDescribed.disks[0].path", { disksDescribed: { disks: [{ path: "web1.raw", format: "raw" }] } }],
    ["migrate.secret", { migrate: { migration: "web1@7", vm: "web1", target: "host-b", targetLocator: locator, secret: new Uint8Array(31) } }],
  ];
  for (const [field, frame] of cases) {
    const thrown = tryDecode(v1.Frame.encode(frame).finish());
    t.match(thrown, { name: "CareofError", code: "malformed-frame", retryable: false }, field);
    const said = thrown instanceof CareofError ? thrown.message : "nothing";
    t.ok(said.startsWith(`${field}: `) && said.length < 400, said);
  }
  t.match(tryDecode(Buffer.from("5aff010a00", "hex")), { code: "malformed-frame", message: /^frame: / }, "a length beyond the end");
  t.match(tryDecode(Buffer.from("5a040a02c328", "hex")), { code: "malformed-frame", message: /^frame: / }, "text that is not UTF-8");
  t.end();
});

t.test("what cannot be sent is named", (t) => {
  const keepAlive: Body = { kind: "keepAlive", at: millis(-1) };
  t.throws(() => encodeFrame({ id: 1, inReplyTo: 0, body: keepAlive }), { code: "malformed-frame", message: /^keepAlive\.at: / });
  t.throws(() => encodeFrame({ id: 1.5, inReplyTo: 0, body: decision("accepted") }), { code: "malformed-frame", message: /^id: / });
  const revoke: Body = { kind: "revoke", vm: vmId("web1"), epoch: epoch(1), forwardTo: null, graceMs: millis(-1) };
  t.throws(() => encodeFrame({ id: 1, inReplyTo: 0, body: revoke }), { code: "malformed-frame", message: /^revoke\.graceMs: / });
  t.match(decodeFrame(encodeFrame({ id: 1, inReplyTo: 0, body: { ...revoke, graceMs: millis(0.6) } })), { body: { graceMs: 1 } }, "durations are whole on the wire");
  t.doesNotThrow(() => encodeFrame({ id: 1, inReplyTo: 0, body: decision("unspecified", "x".repeat(100_000)) }), "text for people is cut");
  t.end();
});

t.test("versions: unknown fields, words and bodies", (t) => {
  t.same(decodeHex("0805 e2030c 090000000000002440 f83f01 fa3f0178 f83f07"), { id: 5, inReplyTo: 0, body: { kind: "keepAlive", at: 10 } }, "fields of another version");
  t.match(decodeHex("1005 1a0b 0a0968616c662d6d6f6f6e"), { inReplyTo: 5, body: { kind: "decision", reason: "unspecified" } }, "a reason of another version");
  for (const [what, text] of [["a body of another version", "0805 a20600"], ["no body", "0805"], ["a body of another type", "0805 5801"]] as const) {
    const thrown = tryDecode(Buffer.from(text.replaceAll(" ", ""), "hex"));
    t.ok(thrown instanceof UnsupportedBody, what);
    t.match(thrown, { code: "unsupported", id: 5, inReplyTo: 0 }, what);
  }
  t.end();
});

t.test("sizes", (t) => {
  t.match(tryDecode(new Uint8Array(MAX_FRAME_BYTES + 1)), { code: "frame-too-large" });
  const { body } = decodeFrame(v1.Frame.encode({ id: 1, registered }).finish());
  assert(body.kind === "registered");
  const bindings = Array.from({ length: 20_000 }, () => body.bindings).flat();
  t.throws(() => encodeFrame({ id: 1, inReplyTo: 0, body: { ...body, bindings } }), { code: "frame-too-large", message: /^registered: / });
  t.end();
});

t.test("no input throws anything but a CareofError", (t) => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 400 }), (bytes) => { tryDecode(bytes); }), { numRuns: 3000 });
  fc.assert(fc.property(frames, fc.nat(), (frame, at) => {
    const encoded = encodeFrame(frame);
    tryDecode(encoded.subarray(0, at % encoded.length));
  }), { numRuns: 2000 });
  fc.assert(fc.property(frames, fc.array(fc.tuple(fc.nat(), fc.nat({ max: 7 })), { minLength: 1, maxLength: 4 }), (frame, flips) => {
    const encoded = Uint8Array.from(encodeFrame(frame));
    for (const [at, bit] of flips) {
      const index = at % encoded.length;
      encoded[index] = (encoded[index] ?? 0) ^ (1 << bit);
    }
    const got = tryDecode(encoded);
    // What still is a frame can be sent on.
    if (!(got instanceof CareofError)) assert.deepStrictEqual(decodeFrame(encodeFrame(got)), got);
  }), { numRuns: 4000 });
  // A length that claims gigabytes, at every place.
  fc.assert(fc.property(frames, fc.nat(), (frame, at) => {
    const encoded = encodeFrame(frame);
    const index = at % encoded.length;
    tryDecode(Buffer.concat([encoded.subarray(0, index), Buffer.from("ffffffff0f", "hex"), encoded.subarray(index)]));
  }), { numRuns: 2000 });
  // Nested as deep as it goes.
  t.match(tryDecode(new Uint8Array(100_000).fill(0x0b)), { code: "malformed-frame" });
  t.end();
});
