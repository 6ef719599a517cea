import type { TLSSocket } from "node:tls";
import type { Clock, Timer } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { millis, type Millis } from "../../model/ids.js";
import { isReason } from "../../model/reasons.js";
import { encodeRelay, RelayParser, type RelayFrame } from "../../proto/relay-framing.js";
import { SEAL_KEY_BYTES } from "../../net/pump-seal.js";
import { RelayClock } from "./relay-clock.js";

/** The first comparisons of the clocks come before the stream fills the buffers: their round trips are the path's own. */
const EARLY_PINGS = 10;
const EARLY_PING_MS = millis(3);
const PING_MS = millis(500);
/** A peer that does not read so soon what it is told at the end is not waited for. */
const FAREWELL_MS = millis(500);

/**
 * A pre-shared key with an ephemeral exchange on a curve (RFC 5489, RFC 7905): who learns a move's secret later cannot read its stream. Node has no TLS 1.3 with external keys. The second suite is what a
 * careof before version 4 of the relay speaks, to tell it so: its exchange is of 1024 bits only, and nothing is carried under it (`requireStrength`).
 */
export const RELAY_TLS = {
  ciphers: "ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES128-GCM-SHA256",
  ecdhCurve: "X25519",
  minVersion: "TLSv1.2",
  maxVersion: "TLSv1.2",
} as const;

/** RFC 5705 §4: a label that is not registered. */
const SEAL_LABEL = "EXPERIMENTAL careof stream seal";

/** How an end without a word is told. */
export const CLOSED = "the relay's connection was closed";

export interface RelayConnectionOptions {
  readonly socket: TLSSocket;
  readonly clock: Clock;
  /** Nothing heard for so long: the path is taken for dead. */
  readonly silenceMs: Millis;
  /** So much may wait to be sent before `send` returns false. */
  readonly highWaterBytes: number;
  /** Everything but pings and pongs, in order. What it throws ends the connection. */
  readonly onFrame: (frame: RelayFrame) => void;
  /** More may be sent after `send` returned false. */
  readonly onDrain: () => void;
  /** Once. `null`: the peer ended in order. */
  readonly onEnd: (cause: CareofError | null) => void;
}

/** Frames over one authenticated connection, with the watch over its life and the comparison of both clocks. */
export class RelayConnection {
  readonly #options: RelayConnectionOptions;
  readonly #parser = new RelayParser();
  readonly #peerClock = new RelayClock();
  #timer: Timer | null = null;
  #pings = 0;
  #heardAt: Millis;
  #lastSent = false;
  #over = false;

  constructor(options: RelayConnectionOptions) {
    this.#options = options;
    this.#heardAt = options.clock.monotonic();
    const { socket } = options;
    socket.setNoDelay(true);
    socket.on("data", (chunk: Buffer) => { this.#receive(chunk); });
    socket.on("drain", options.onDrain);
    socket.on("error", (cause: Error) => { this.#end(new CareofError("relay-failed", `the relay's connection broke: ${cause.message}`, { cause })); });
    socket.on("end", () => { this.#end(null); });
    socket.on("close", () => { this.#end(new CareofError("relay-failed", CLOSED)); });
    this.#ping();
  }

  get peerClock(): RelayClock {
    return this.#peerClock;
  }

  /** @throws CareofError `relay-failed` where the exchange was not the one on a curve */
  requireStrength(): void {
    const { name } = this.#options.socket.getCipher();
    if (!name.startsWith("ECDHE")) throw new CareofError("relay-failed", `the hosts agree on ${name} only: nothing is carried under that`);
  }

  /** A key that both ends have and nobody else, another one for each `context` (RFC 5705). Of SEAL_KEY_BYTES. */
  sealKey(context: Uint8Array): Buffer {
    return this.#options.socket.exportKeyingMaterial(SEAL_KEY_BYTES, SEAL_LABEL, Buffer.from(context));
  }

  /** False: wait for `onDrain` before sending more. After the end nothing is sent. */
  send(frame: RelayFrame): boolean {
    if (this.#over || this.#lastSent) return true;
    const { socket } = this.#options;
    socket.cork();
    for (const part of encodeRelay(frame)) socket.write(part);
    socket.uncork();
    return !socket.writableNeedDrain || socket.writableLength < this.#options.highWaterBytes;
  }

  /** Sends the last frame and shuts our direction. @throws CareofError `relay-failed` when it could not be handed over. */
  async sendLast(frame: RelayFrame): Promise<void> {
    if (this.#over || this.#lastSent) throw new CareofError("relay-failed", "the relay's connection is over");
    this.#lastSent = true;
    this.#stopPings();
    const { socket } = this.#options;
    const parts = encodeRelay(frame);
    await new Promise<void>((resolve, reject) => {
      socket.once("close", () => { reject(new CareofError("relay-failed", "the relay's connection was closed before the release had left")); });
      socket.write(Buffer.concat(parts), (cause) => {
        if (cause === null || cause === undefined) resolve();
        else reject(new CareofError("relay-failed", `the release could not be sent: ${cause.message}`, { cause }));
      });
      socket.end();
    });
  }

  /** Shuts our direction behind all that was sent. The peer's end, or `destroy`, is what comes last. */
  end(): void {
    if (this.#over || this.#lastSent) return;
    this.#lastSent = true;
    this.#stopPings();
    this.#options.socket.end();
  }

  /** Back-pressure: the peer is not read until `resume`. */
  pause(): void {
    this.#options.socket.pause();
  }

  resume(): void {
    this.#heardAt = this.#options.clock.monotonic();
    this.#options.socket.resume();
  }

  /** Nothing more is taken of the peer, which is told why behind all that was sent, if it hears it within a moment. `onEnd` is not called. */
  giveUp(cause: CareofError): void {
    if (this.#over || this.#lastSent) {
      this.destroy();
      return;
    }
    const { socket, clock } = this.#options;
    this.send({ type: "close", reason: isReason(cause.code) ? cause.code : "relay-failed", detail: cause.message, sent: 0 });
    this.#over = true;
    this.#stopPings();
    socket.end();
    socket.resume();
    const limit = clock.after("relay-farewell", FAREWELL_MS, () => { socket.destroy(); });
    socket.once("close", () => { limit.cancel(); });
  }

  destroy(): void {
    this.#over = true;
    this.#stopPings();
    this.#options.socket.destroy();
  }

  #receive(chunk: Buffer): void {
    if (this.#over) return;
    this.#heardAt = this.#options.clock.monotonic();
    try {
      for (const frame of this.#parser.push(chunk)) this.#handle(frame);
    } catch (thrown) {
      this.#end(thrown instanceof CareofError ? thrown : new CareofError("relay-failed", "a relay frame could not be handled", { cause: thrown }));
    }
  }

  #handle(frame: RelayFrame): void {
    if (frame.type === "ping") this.send({ type: "pong", sentAt: frame.sentAt, answeredAt: this.#options.clock.monotonic() });
    else if (frame.type === "pong") this.#answered(frame.sentAt, frame.answeredAt);
    else this.#options.onFrame(frame);
  }

  #answered(sentAt: Millis, answeredAt: Millis): void {
    this.#peerClock.answered(sentAt, answeredAt, this.#options.clock.monotonic());
  }

  #ping(): void {
    if (this.#over || this.#lastSent) return;
    const { clock, silenceMs, socket } = this.#options;
    const now = clock.monotonic();
    if (!socket.isPaused() && now - this.#heardAt > silenceMs) {
      this.#end(new CareofError("relay-failed", `nothing was heard over the relay for ${String(Math.round(now - this.#heardAt))} ms`));
      return;
    }
    this.send({ type: "ping", sentAt: now });
    this.#pings++;
    this.#timer = clock.after("relay-ping", this.#pings < EARLY_PINGS ? EARLY_PING_MS : PING_MS, () => { this.#ping(); });
  }

  #stopPings(): void {
    this.#timer?.cancel();
    this.#timer = null;
  }

  #end(cause: CareofError | null): void {
    if (this.#over) return;
    this.#over = true;
    this.#stopPings();
    if (cause !== null) this.#options.socket.destroy();
    this.#options.onEnd(cause);
  }
}
