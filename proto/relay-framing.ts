import { CareofError, toCareofError } from "../model/errors.js";
import type { Epoch, MigrationId, Millis } from "../model/ids.js";
import type { Reason } from "../model/reasons.js";
import { bytes, detail, epochField, flag, instant, message, migration, reason, uint32, uint53, word, type Field } from "./fields.js";
import { careof } from "./gen/careof.js";
import v1 = careof.v1;

/** Longest payload of a data frame in bytes; what is longer is cut into several. */
export const MAX_DATA_BYTES = 256 * 1024;
/** Longest payload of any other frame in bytes. */
export const MAX_CONTROL_BYTES = 4096;
/** Length of a hello's `way`, where it is not empty. */
export const WAY_TOKEN_BYTES = 32;
const HEADER_BYTES = 5;

/**
 * What a connection between the agents carries: the hypervisor's main stream with all that the agents say to one another, a further connection of that stream, or one of the disks.
 * Each has a connection of its own, so that none can hold up another.
 */
export type RelayChannel = "main" | "stream" | "disk";
export interface RelayHello { readonly version: number; readonly migration: MigrationId; readonly channel: RelayChannel; readonly way: Uint8Array; readonly inClear: boolean }
export interface RelayPing { readonly sentAt: Millis }
export interface RelayPong { readonly sentAt: Millis; readonly answeredAt: Millis }
export interface RelayRelease { readonly migration: MigrationId; readonly epoch: Epoch; readonly stopAt: Millis; readonly sent: number }
export interface RelayDisks { readonly disks: number }
export interface RelayClose { readonly reason: Reason; readonly detail: string; readonly sent: number }
export interface RelayBytes { readonly bytes: number }

export type RelayFrame =
  | { readonly type: "data"; readonly data: Uint8Array }
  | ({ readonly type: "hello" } & RelayHello)
  | ({ readonly type: "ping" } & RelayPing)
  | ({ readonly type: "pong" } & RelayPong)
  | ({ readonly type: "release" } & RelayRelease)
  | ({ readonly type: "close" } & RelayClose)
  | ({ readonly type: "endDisks" } & RelayDisks)
  | ({ readonly type: "disksEnded" } & RelayDisks)
  | { readonly type: "begin" }
  | ({ readonly type: "mark" } & RelayBytes)
  | ({ readonly type: "marked" } & RelayBytes);

type ControlFrame = Exclude<RelayFrame, { readonly type: "data" }>;

/**
 * The stream between two host agents, inside the channel that the move's secret opened:
 * ```
 *    0        1        2        3        4        5
 *   +--------+--------+--------+--------+--------+----------- ... -+
 *   |  type  |      length, big-endian           |  payload        |
 *   +--------+--------+--------+--------+--------+----------- ... -+
 *
 *   type  name     length       payload
 *    1    data     1 to 262144  by the target: what its hypervisor says on the channel, in order; where that is cut into frames means nothing. What the source's says goes by the channel's way
 *                               (way-source.ts), a connection of its own
 *    2    hello    0 to 4096    RelayHello, the first frame of either side; says which channel this connection is
 *    3    ping     0 to 4096    RelayPing, answered at once by
 *    4    pong     0 to 4096    RelayPong
 *    5    release  0 to 4096    RelayRelease, after the source's last byte of any channel (by postcopy: of all but memory); main only
 *    7    close    0 to 4096    RelayClose, the last frame; of a further channel: its hypervisor has ended this direction
 *    8    endDisks   0 to 4096  RelayDisks, by the source: end the exports; main only
 *    9    disksEnded 0 to 4096  RelayDisks, the answer; main only
 *   10    begin      0 to 4096  RelayBegin, by the target: the way's connection has come
 *   11    mark       0 to 4096  RelayBytes, by the source: answered when the target's hypervisor has been handed so many by
 *   12    marked     0 to 4096  RelayBytes
 * ```
 * Any other type, and any other length, ends the connection.
 */
const DATA = 1;

interface Control<F extends ControlFrame> {
  readonly code: number;
  read(payload: Uint8Array): F;
  /** Header and payload. */
  write(frame: F): Uint8Array[];
}

interface Codec<W> {
  encode(wire: W): { finish(): Uint8Array };
  decode(payload: Uint8Array): unknown;
}

function control<T extends ControlFrame["type"], B extends object, W>(
  code: number, type: T, field: Field<B, W>, codec: Codec<W>,
): { readonly code: number; read(payload: Uint8Array): { readonly type: T } & B; write(frame: B): Uint8Array[] } {
  return {
    code,
    read: (payload) => ({ type, ...field.read(codec.decode(payload), type) }),
    write: (frame) => {
      const payload = codec.encode(field.write(frame, type)).finish();
      if (payload.length > MAX_CONTROL_BYTES) throw broken(`${type}: ${String(payload.length)} bytes, more than ${String(MAX_CONTROL_BYTES)}`);
      return [header(code, payload.length), payload];
    },
  };
}

/** Cut so that it fits in any encoding: a connection is always closed with its reason. */
const shortDetail: Field<string, string> = { read: detail.read, write: (value) => value.slice(0, 1000) };

/** Empty is main. */
const channel: Field<RelayChannel, string> = {
  read: (wire, at) => (wire === "" ? "main" : word("stream", "disk").read(wire, at)),
  write: (value) => (value === "main" ? "" : value),
};

const CONTROL: { readonly [F in ControlFrame as F["type"]]: Control<F> } = {
  hello: control(2, "hello", message<RelayHello, v1.RelayHello.$Properties>({ version: uint32, migration, channel, way: bytes(0, WAY_TOKEN_BYTES), inClear: flag }), v1.RelayHello),
  ping: control(3, "ping", message<RelayPing, v1.RelayPing.$Properties>({ sentAt: instant }), v1.RelayPing),
  pong: control(4, "pong", message<RelayPong, v1.RelayPong.$Properties>({ sentAt: instant, answeredAt: instant }), v1.RelayPong),
  release: control(5, "release", message<RelayRelease, v1.RelayRelease.$Properties>({ migration, epoch: epochField, stopAt: instant, sent: uint53 }), v1.RelayRelease),
  close: control(7, "close", message<RelayClose, v1.RelayClose.$Properties>({ reason, detail: shortDetail, sent: uint53 }), v1.RelayClose),
  endDisks: control(8, "endDisks", message<RelayDisks, v1.RelayDisks.$Properties>({ disks: uint32 }), v1.RelayDisks),
  disksEnded: control(9, "disksEnded", message<RelayDisks, v1.RelayDisks.$Properties>({ disks: uint32 }), v1.RelayDisks),
  begin: control(10, "begin", message<object, v1.RelayBegin.$Properties>({}), v1.RelayBegin),
  mark: control(11, "mark", message<RelayBytes, v1.RelayBytes.$Properties>({ bytes: uint53 }), v1.RelayBytes),
  marked: control(12, "marked", message<RelayBytes, v1.RelayBytes.$Properties>({ bytes: uint53 }), v1.RelayBytes),
};

const CONTROL_BY_CODE = new Map(Object.values(CONTROL).map((entry) => [entry.code, entry]));

/**
 * What to write, in order: a header and the caller's own bytes behind it, which must not change until they are written. Data of any length is cut as needed;
 * none makes no frame. @throws CareofError `malformed-relay` for what cannot be sent
 */
export function encodeRelay(frame: RelayFrame): Uint8Array[] {
  if (frame.type !== "data") return sane(() => encodeControl(frame));
  const parts: Uint8Array[] = [];
  for (let at = 0; at < frame.data.length; at += MAX_DATA_BYTES) {
    const part = frame.data.subarray(at, at + MAX_DATA_BYTES);
    parts.push(header(DATA, part.length), part);
  }
  return parts;
}

function encodeControl(frame: ControlFrame): Uint8Array[] {
  switch (frame.type) {
    case "hello": return CONTROL.hello.write(frame);
    case "ping": return CONTROL.ping.write(frame);
    case "pong": return CONTROL.pong.write(frame);
    case "release": return CONTROL.release.write(frame);
    case "close": return CONTROL.close.write(frame);
    case "endDisks": return CONTROL.endDisks.write(frame);
    case "disksEnded": return CONTROL.disksEnded.write(frame);
    case "begin": return CONTROL.begin.write(frame);
    case "mark": return CONTROL.mark.write(frame);
    case "marked": return CONTROL.marked.write(frame);
  }
}

function header(code: number, length: number): Uint8Array {
  return Uint8Array.of(code, length >>> 24, (length >>> 16) & 0xff, (length >>> 8) & 0xff, length & 0xff);
}

/**
 * Cuts the stream into frames, however the network cut it into chunks:
 * ```
 *   header ── 5 bytes, data ──▶ data ── a slice per chunk ──▶ (length bytes seen) header
 *     └────── 5 bytes, other ─▶ control ── gathered ────────▶ (length bytes seen) header
 *     └────── anything else ──▶ broken
 * ```
 * Data is passed on as it comes, as slices of the chunk (nothing is copied or held back for the rest of its frame); at most MAX_CONTROL_BYTES are kept.
 */
export class RelayParser {
  #state: "header" | "data" | "control" = "header";
  readonly #header = new Uint8Array(HEADER_BYTES);
  #headerFill = 0;
  /** Bytes of the payload that have not come yet. */
  #missing = 0;
  #code = 0;
  #payload = new Uint8Array(0);
  #broken: CareofError | null = null;

  /** Whether the stream may end here: between two frames. */
  get atBoundary(): boolean {
    return this.#state === "header" && this.#headerFill === 0 && this.#broken === null;
  }

  /** @throws CareofError `malformed-relay`, and from then on always; the frames before it in the same chunk are lost with the connection. */
  push(chunk: Uint8Array): RelayFrame[] {
    if (this.#broken !== null) throw this.#broken;
    const frames: RelayFrame[] = [];
    try {
      for (let at = 0; at < chunk.length;) at = this.#step(chunk, at, frames);
    } catch (thrown) {
      this.#broken = toCareofError(thrown);
      throw this.#broken;
    }
    return frames;
  }

  #step(chunk: Uint8Array, at: number, frames: RelayFrame[]): number {
    switch (this.#state) {
      case "header": {
        this.#header[this.#headerFill++] = chunk[at] ?? 0;
        if (this.#headerFill === HEADER_BYTES) this.#begin(frames);
        return at + 1;
      }
      case "data": {
        const data = chunk.subarray(at, at + this.#missing);
        frames.push({ type: "data", data });
        return at + this.#consume(data.length);
      }
      case "control": {
        const part = chunk.subarray(at, at + this.#missing);
        this.#payload.set(part, this.#payload.length - this.#missing);
        const next = at + this.#consume(part.length);
        if (this.#missing === 0) this.#finish(frames);
        return next;
      }
    }
  }

  #begin(frames: RelayFrame[]): void {
    const [code = 0, a = 0, b = 0, c = 0, d = 0] = this.#header;
    const length = a * 2 ** 24 + (b << 16) + (c << 8) + d;
    this.#headerFill = 0;
    this.#code = code;
    this.#missing = length;
    if (code === DATA) {
      if (length === 0 || length > MAX_DATA_BYTES) throw broken(`data: a length of ${String(length)}`);
      this.#state = "data";
      return;
    }
    if (!CONTROL_BY_CODE.has(code)) throw broken(`no frame has type ${String(code)}`);
    if (length > MAX_CONTROL_BYTES) throw broken(`type ${String(code)}: a length of ${String(length)}`);
    this.#state = "control";
    this.#payload = new Uint8Array(length);
    if (length === 0) this.#finish(frames);
  }

  #consume(length: number): number {
    this.#missing -= length;
    if (this.#missing === 0 && this.#state === "data") this.#state = "header";
    return length;
  }

  #finish(frames: RelayFrame[]): void {
    this.#state = "header";
    const entry = CONTROL_BY_CODE.get(this.#code);
    if (entry !== undefined) frames.push(sane(() => entry.read(this.#payload)));
  }
}

function broken(what: string): CareofError {
  return new CareofError("malformed-relay", what);
}

function sane<T>(run: () => T): T {
  try {
    return run();
  } catch (cause) {
    throw new CareofError("malformed-relay", toCareofError(cause).message, { cause });
  }
}
