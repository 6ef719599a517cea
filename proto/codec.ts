import { CareofError } from "../model/errors.js";
import * as migration from "./bodies/migration.js";
import * as registration from "./bodies/registration.js";
import { malformed, uint53, type Field } from "./fields.js";
import { careof } from "./gen/careof.js";
import type { Body, BodyByKind, Frame, Kind } from "./messages.js";
import v1 = careof.v1;

/** The largest message of the channel in bytes, both ways; a WebSocket's `maxPayload` too. */
export const MAX_FRAME_BYTES = 256 * 1024;

/** A frame whose body this side does not know: a newer peer's. It is answered by Decision{unsupported} when it wants an answer. */
export class UnsupportedBody extends CareofError {
  readonly id: number;
  readonly inReplyTo: number;

  constructor(id: number, inReplyTo: number) {
    super("unsupported", `frame ${String(id)} has no body that this version knows`);
    this.id = id;
    this.inReplyTo = inReplyTo;
  }
}

interface BodyCodec<K extends Kind> {
  read(frame: v1.Frame.$Properties): Body<K>;
  write(body: Body<K>, frame: v1.Frame.$Properties): void;
}

function body<K extends Kind>(kind: K, field: Field<BodyByKind[K], NonNullable<v1.Frame.$Properties[K]>>): BodyCodec<K> {
  return {
    read: (frame) => ({ kind, ...field.read(frame[kind], kind) }),
    write: (value, frame) => { frame[kind] = field.write(value, kind); },
  };
}

const BODIES: { readonly [K in Kind]: BodyCodec<K> } = {
  decision: body("decision", registration.decision),
  register: body("register", registration.register),
  vmReport: body("vmReport", registration.vmReport),
  relayedHeartbeat: body("relayedHeartbeat", registration.relayedHeartbeat),
  progress: body("progress", migration.progress),
  leadReady: body("leadReady", migration.leadReady),
  switchOver: body("switchOver", migration.switchOver),
  released: body("released", migration.released),
  running: body("running", migration.running),
  sourceEnded: body("sourceEnded", migration.sourceEnded),
  targetEnded: body("targetEnded", migration.targetEnded),
  registered: body("registered", registration.registered),
  bindingUpdate: body("bindingUpdate", registration.bindingUpdate),
  startVm: body("startVm", registration.startVm),
  stopVm: body("stopVm", registration.stopVm),
  prepare: body("prepare", migration.prepare),
  migrate: body("migrate", migration.migrate),
  lead: body("lead", migration.lead),
  abort: body("abort", migration.abort),
  resume: body("resume", migration.resume),
  revoke: body("revoke", migration.revoke),
  uplinkSeen: body("uplinkSeen", migration.uplinkSeen),
  heartbeatAnswer: body("heartbeatAnswer", registration.heartbeatAnswer),
  prepared: body("prepared", migration.prepared),
  describeDisks: body("describeDisks", migration.describeDisks),
  disksDescribed: body("disksDescribed", migration.disksDescribed),
  keepAlive: body("keepAlive", registration.keepAlive),
  announcement: body("announcement", registration.announcement),
  leaving: body("leaving", registration.leaving),
  drained: body("drained", registration.drained),
};

function write<K extends Kind>(value: Body<K>, frame: v1.Frame.$Properties): void {
  BODIES[value.kind].write(value, frame);
}

/** @throws CareofError `malformed-frame` naming the field that cannot be sent, `frame-too-large`. */
export function encodeFrame(frame: Frame): Uint8Array {
  const wire: v1.Frame.$Properties = { id: uint53.write(frame.id, "id"), inReplyTo: uint53.write(frame.inReplyTo, "inReplyTo") };
  write(frame.body, wire);
  const encoded = v1.Frame.encode(wire).finish();
  checkSize(encoded, frame.body.kind);
  return encoded;
}

/**
 * Everything is checked, unknown fields are ignored; nothing of `encoded` is referred to afterwards.
 * @throws CareofError `malformed-frame` naming the field, `frame-too-large`; UnsupportedBody (`unsupported`)
 */
export function decodeFrame(encoded: Uint8Array): Frame {
  checkSize(encoded, "frame");
  let wire: v1.Frame;
  try {
    wire = v1.Frame.decode(encoded);
  } catch (cause) {
    throw malformed("frame", `not a protobuf Frame (${cause instanceof Error ? cause.message : String(cause)})`, cause);
  }
  const id = uint53.read(wire.id, "id");
  const inReplyTo = uint53.read(wire.inReplyTo, "inReplyTo");
  if (wire.body === undefined) throw new UnsupportedBody(id, inReplyTo);
  return { id, inReplyTo, body: BODIES[wire.body].read(wire) };
}

function checkSize(encoded: Uint8Array, what: string): void {
  if (encoded.length > MAX_FRAME_BYTES) {
    throw new CareofError("frame-too-large", `${what}: ${String(encoded.length)} bytes, more than ${String(MAX_FRAME_BYTES)}`);
  }
}
