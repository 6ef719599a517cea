import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { inspect } from "node:util";
import fc, { type Arbitrary } from "fast-check";
import t from "tap";
import { CareofError } from "../../model/errors.js";
import { keyId, millis, vmId } from "../../model/ids.js";
import { careof } from "../../proto/gen/careof.js";
import {
  decodeEnvelope, MAX_ENVELOPE_BYTES, signAnswer, signHeartbeat, verifyAnswer, verifyHeartbeat, type HeartbeatAnswerBody, type HeartbeatBody,
} from "../../proto/heartbeat.js";
import { HeartbeatKey } from "../../proto/heartbeat-key.js";
import { reasons, vms } from "./arbitraries.js";
import v1 = careof.v1;

const ids = fc.uint8Array({ minLength: 16, maxLength: 16 });
const keys = fc.uint8Array({ minLength: 32, maxLength: 32 });
const keyIds = fc.nat({ max: 0xffff_ffff }).map(keyId);
const sequences = fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER });
const times = fc.maxSafeNat().map(millis);
const heartbeats: Arbitrary<HeartbeatBody> = fc.record(
  { vm: vms, bootId: ids, sequence: sequences, timeMs: times, intervalMs: fc.nat({ max: 0xffff_ffff }).map(millis), nonce: fc.option(ids) }, { noNullPrototype: true },
);
const answers: Arbitrary<HeartbeatAnswerBody> = fc.record(
  { reason: reasons, nonce: fc.option(ids), sequence: sequences, bootId: ids, timeMs: times }, { noNullPrototype: true },
);

const key = new HeartbeatKey(new Uint8Array(32).fill(1));
const body: HeartbeatBody = { vm: vmId("web1"), bootId: new Uint8Array(16).fill(2), sequence: 7, timeMs: millis(1_700_000_000_000), intervalMs: millis(500), nonce: null };

t.test("the tag is RFC 2104's", (t) => {
  fc.assert(fc.property(keys, fc.uint8Array({ maxLength: 40 }), fc.uint8Array({ maxLength: 512 }), (raw, domain, message) => {
    assert.deepEqual(Buffer.from(new HeartbeatKey(raw).tag(domain, message)), createHmac("sha256", raw).update(domain).update(message).digest());
  }));
  t.end();
});

t.test("keys", (t) => {
  const secret = "5e".repeat(32);
  const read = HeartbeatKey.fromHex(`\n ${secret}\n`);
  t.notMatch(inspect(read, { depth: 9, showHidden: true }) + JSON.stringify(read), /5e5e|94, ?94/, "it does not show itself");
  for (const text of ["", secret.slice(1), `${secret}0`, secret.replace("5", "g"), `${secret} ${secret}`]) {
    try {
      HeartbeatKey.fromHex(text);
      t.fail(text);
    } catch (thrown) {
      t.match(thrown, { name: "CareofError", code: "malformed-key" });
      t.notMatch(String(thrown), /5e5e/, "nor does the error");
    }
  }
  t.throws(() => new HeartbeatKey(new Uint8Array(31)), { code: "malformed-key" });
  t.end();
});

t.test("what was signed verifies, and nothing else does", (t) => {
  fc.assert(fc.property(heartbeats, answers, keyIds, keys, (sent, answer, id, raw) => {
    const own = new HeartbeatKey(raw);
    const datagram = signHeartbeat(sent, id, own);
    assert.ok(datagram.length <= MAX_ENVELOPE_BYTES);
    const envelope = decodeEnvelope(datagram);
    assert.deepStrictEqual(verifyHeartbeat(envelope, (vm, asked) => (vm === sent.vm && asked === id ? own : "unknown-vm")), { body: sent });
    const reply = decodeEnvelope(signAnswer(answer, id, own));
    assert.deepStrictEqual(verifyAnswer(reply, own), { body: answer });
    assert.equal(Reflect.get(verifyAnswer(envelope, own), "reason"), "bad-tag", "a heartbeat is no answer");
    assert.ok(!("body" in verifyHeartbeat(reply, () => own)), "an answer is no heartbeat");
  }), { numRuns: 200 });
  t.end();
});

t.test("reasons of a refusal", (t) => {
  const envelope = decodeEnvelope(signHeartbeat(body, keyId(1), key));
  t.match(verifyHeartbeat(envelope, () => "unknown-vm"), { reason: "unknown-vm" });
  t.match(verifyHeartbeat(envelope, () => "unknown-key"), { reason: "unknown-key" });
  t.match(verifyHeartbeat(envelope, () => new HeartbeatKey(new Uint8Array(32))), { reason: "bad-tag" });
  const wrong: readonly (readonly [string, v1.HeartbeatBody.$Properties, RegExp])[] = [
    ["no name", {}, /heartbeat\.vm/],
    ["a boot id of 15 bytes", { vm: "web1", bootId: new Uint8Array(15), sequence: 1 }, /heartbeat\.bootId/],
    ["sequence 0", { vm: "web1", bootId: new Uint8Array(16) }, /heartbeat\.sequence/],
    ["a sequence of 2^53", { vm: "web1", bootId: new Uint8Array(16), sequence: 2 ** 53 }, /heartbeat\.sequence/],
    ["a nonce of 8 bytes", { vm: "web1", bootId: new Uint8Array(16), sequence: 1, nonce: new Uint8Array(8) }, /heartbeat\.nonce/],
  ];
  for (const [what, fields, detail] of wrong) {
    const encoded = v1.HeartbeatBody.encode(fields).finish();
    const asked: string[] = [];
    const result = verifyHeartbeat({ ...envelope, body: encoded }, (vm) => {
      asked.push(vm);
      return key;
    });
    t.match(result, { reason: "malformed", detail }, what);
    t.same(asked, [], "no key is looked up for it");
  }
  t.end();
});

t.test("malformed envelopes", (t) => {
  const good = { body: new Uint8Array(10), algorithm: v1.TagAlgorithm.HMAC_SHA256, keyId: 1, tag: new Uint8Array(32) };
  const wrong: readonly (readonly [string, Uint8Array])[] = [
    ["empty", new Uint8Array(0)],
    ["513 bytes", new Uint8Array(513)],
    ["no body", v1.HeartbeatEnvelope.encode({ ...good, body: null }).finish()],
    ["no algorithm", v1.HeartbeatEnvelope.encode({ ...good, algorithm: null }).finish()],
    ["a short tag", v1.HeartbeatEnvelope.encode({ ...good, tag: new Uint8Array(31) }).finish()],
    ["a long tag", v1.HeartbeatEnvelope.encode({ ...good, tag: new Uint8Array(33) }).finish()],
    ["a length beyond the end", Uint8Array.of(0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f)],
  ];
  for (const [what, datagram] of wrong) t.throws(() => decodeEnvelope(datagram), { name: "CareofError", code: "malformed-heartbeat" }, what);
  t.throws(() => signHeartbeat({ ...body, sequence: 0 }, keyId(1), key), { code: "malformed-heartbeat" });
  t.throws(() => signHeartbeat({ ...body, bootId: new Uint8Array(3) }, keyId(1), key), { code: "malformed-heartbeat" });
  t.end();
});

t.test("no datagram throws anything but a CareofError, no damaged one verifies", (t) => {
  const damage = fc.array(fc.tuple(fc.nat(), fc.integer({ min: 1, max: 255 })), { minLength: 1, maxLength: 3 });
  fc.assert(fc.property(heartbeats, damage, fc.nat(), (sent, changes, cut) => {
    const signed = signHeartbeat(sent, keyId(1), key);
    const datagram = Uint8Array.from(signed);
    for (const [at, value] of changes) datagram[at % datagram.length] = (datagram[at % datagram.length] ?? 0) ^ value;
    for (const received of [datagram, signed.subarray(0, cut % signed.length)]) {
      try {
        const envelope = decodeEnvelope(received);
        const result = verifyHeartbeat(envelope, () => key);
        // Two changes may undo one another, and the key id is outside the tag: then it is the very body that was signed.
        if ("body" in result) assert.deepStrictEqual(result.body, sent);
      } catch (thrown) {
        if (!(thrown instanceof CareofError && thrown.code === "malformed-heartbeat")) throw thrown;
      }
    }
  }), { numRuns: 3000 });
  t.end();
});
