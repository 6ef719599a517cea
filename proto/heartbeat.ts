import { CareofError, toCareofError } from "../model/errors.js";
import { keyId as checkedKeyId, millis, type KeyId, type Millis, type VmId } from "../model/ids.js";
import type { Reason } from "../model/reasons.js";
import { bytes, duration, integer, message, reason, uint32, uint53, vm, type Field } from "./fields.js";
import { careof } from "./gen/careof.js";
import { TAG_BYTES, type HeartbeatKey } from "./heartbeat-key.js";
import v1 = careof.v1;

/** Largest envelope in bytes, one per datagram. */
export const MAX_ENVELOPE_BYTES = 512;
export const BOOT_ID_BYTES = 16;
export const NONCE_BYTES = 16;

/** What a tag covers before the body, so that neither message can be passed off as the other. */
const HEARTBEAT_DOMAIN = new TextEncoder().encode("careof-hb-v1");
const ANSWER_DOMAIN = new TextEncoder().encode("careof-ha-v1");

export interface HeartbeatBody {
  readonly vm: VmId;
  /** Random, new at every start of the sender. */
  readonly bootId: Uint8Array;
  /** From 1, grows by 1 with every heartbeat of a boot id. */
  readonly sequence: number;
  /** The sender's wall clock: informative. */
  readonly timeMs: Millis;
  /** When the next one is due. */
  readonly intervalMs: Millis;
  /** The home agent's, from its last answer; null when there was none. */
  readonly nonce: Uint8Array | null;
}

/** Sent for an accepted heartbeat, and for one whose tag is right but whose nonce or sequence is not. */
export interface HeartbeatAnswerBody {
  readonly reason: Reason;
  /** To echo from now on; null: the one that the sender has goes on. */
  readonly nonce: Uint8Array | null;
  /** Of the heartbeat that is answered. */
  readonly sequence: number;
  readonly bootId: Uint8Array;
  /** The home agent's wall clock (RFC 5944 §5.7). */
  readonly timeMs: Millis;
}

/** The exact bytes of a body, and the tag over them. */
export interface Envelope {
  readonly body: Uint8Array;
  readonly keyId: KeyId;
  readonly tag: Uint8Array;
}

const wallTime: Field<Millis, number> = { read: (wire, at) => millis(uint53.read(wire, at)), write: (value, at) => uint53.write(Math.floor(value), at) };
const bootId = bytes(BOOT_ID_BYTES, BOOT_ID_BYTES);
const someNonce = bytes(NONCE_BYTES, NONCE_BYTES);
const anyNonce = bytes(0, NONCE_BYTES);
/** Empty, or left out, is none. */
const nonce: Field<Uint8Array | null, Uint8Array | null> = {
  read: (wire, at) => (anyNonce.read(wire, at).length === 0 ? null : someNonce.read(wire, at)),
  write: (value, at) => (value === null ? null : someNonce.write(value, at)),
};
const sequence = integer(1, Number.MAX_SAFE_INTEGER);

const heartbeatBody = message<HeartbeatBody, v1.HeartbeatBody.$Properties>({ vm, bootId, sequence, timeMs: wallTime, intervalMs: duration, nonce });
const answerBody = message<HeartbeatAnswerBody, v1.HeartbeatAnswerBody.$Properties>({ reason, nonce, sequence, bootId, timeMs: wallTime });
const envelopeTag = bytes(TAG_BYTES, TAG_BYTES);
const envelopeBody = bytes(1, MAX_ENVELOPE_BYTES);

/** @throws CareofError `malformed-heartbeat` */
export function decodeEnvelope(datagram: Uint8Array): Envelope {
  return wellFormed(() => {
    if (datagram.length > MAX_ENVELOPE_BYTES) throw new CareofError("malformed-heartbeat", `${String(datagram.length)} bytes, more than ${String(MAX_ENVELOPE_BYTES)}`);
    const wire = v1.HeartbeatEnvelope.decode(datagram);
    if (wire.algorithm !== v1.TagAlgorithm.HMAC_SHA256) throw new CareofError("malformed-heartbeat", `envelope.algorithm: ${String(wire.algorithm)} is not known`);
    return {
      body: envelopeBody.read(wire.body, "envelope.body"),
      keyId: checkedKeyId(uint32.read(wire.keyId, "envelope.keyId")),
      tag: envelopeTag.read(wire.tag, "envelope.tag"),
    };
  });
}

export type Refusal = { readonly reason: Extract<Reason, "malformed" | "unknown-vm" | "unknown-key" | "bad-tag">; readonly detail: string };
export type KeyLookup = (vm: VmId, keyId: KeyId) => HeartbeatKey | "unknown-vm" | "unknown-key";

/**
 * Who sent it, by its tag; whether it is new is for the replay window to say (RFC 5944 §3.8.2.1: authenticate first). Throws nothing.
 * `keyOf` is asked with the name that the heartbeat claims.
 */
export function verifyHeartbeat(envelope: Envelope, keyOf: KeyLookup): { readonly body: HeartbeatBody } | Refusal {
  let body: HeartbeatBody;
  try {
    body = wellFormed(() => heartbeatBody.read(v1.HeartbeatBody.decode(envelope.body), "heartbeat"));
  } catch (thrown) {
    return { reason: "malformed", detail: toCareofError(thrown).message };
  }
  const key = keyOf(body.vm, envelope.keyId);
  if (typeof key === "string") return { reason: key, detail: `${body.vm}, key ${String(envelope.keyId)}` };
  if (!key.verify(HEARTBEAT_DOMAIN, envelope.body, envelope.tag)) return { reason: "bad-tag", detail: `${body.vm}, key ${String(envelope.keyId)}` };
  return { body };
}

/** As `verifyHeartbeat`, for the guest. Whether it answers one of this boot's heartbeats is for the caller to check. */
export function verifyAnswer(envelope: Envelope, key: HeartbeatKey): { readonly body: HeartbeatAnswerBody } | Refusal {
  if (!key.verify(ANSWER_DOMAIN, envelope.body, envelope.tag)) return { reason: "bad-tag", detail: `key ${String(envelope.keyId)}` };
  try {
    return { body: wellFormed(() => answerBody.read(v1.HeartbeatAnswerBody.decode(envelope.body), "answer")) };
  } catch (thrown) {
    return { reason: "malformed", detail: toCareofError(thrown).message };
  }
}

/** The datagram. @throws CareofError `malformed-heartbeat` */
export function signHeartbeat(body: HeartbeatBody, keyId: KeyId, key: HeartbeatKey): Uint8Array {
  return wellFormed(() => seal(HEARTBEAT_DOMAIN, v1.HeartbeatBody.encode(heartbeatBody.write(body, "heartbeat")).finish(), keyId, key));
}

/** The datagram. @throws CareofError `malformed-heartbeat` */
export function signAnswer(body: HeartbeatAnswerBody, keyId: KeyId, key: HeartbeatKey): Uint8Array {
  return wellFormed(() => seal(ANSWER_DOMAIN, v1.HeartbeatAnswerBody.encode(answerBody.write(body, "answer")).finish(), keyId, key));
}

function seal(domain: Uint8Array, body: Uint8Array, keyId: KeyId, key: HeartbeatKey): Uint8Array {
  return v1.HeartbeatEnvelope.encode({ body, algorithm: v1.TagAlgorithm.HMAC_SHA256, keyId, tag: key.tag(domain, body) }).finish();
}

function wellFormed<T>(run: () => T): T {
  try {
    return run();
  } catch (thrown) {
    throw new CareofError("malformed-heartbeat", thrown instanceof Error ? thrown.message : String(thrown), { cause: thrown });
  }
}
