import type { Clock, Timer } from "../model/clock.js";
import { toCareofError } from "../model/errors.js";
import { millis, type KeyId, type Millis, type VmId } from "../model/ids.js";
import { decodeEnvelope, signHeartbeat, verifyAnswer, type Envelope } from "../proto/heartbeat.js";
import type { HeartbeatKey } from "../proto/heartbeat-key.js";

/** How many times a heartbeat is sent again at once within one interval, lest two that disagree about a nonce shout at one another. */
export const MAX_RESENDS = 3;

/** What became of a datagram: words of guest/heartbeat.c too. `other` is any reason but the two that a guest acts on. */
export type Verdict = "malformed" | "bad-tag" | "not-ours" | "accepted" | "stale-nonce" | "other";

export interface Sender {
  readonly vm: VmId;
  readonly keyId: KeyId;
  readonly key: HeartbeatKey;
  /** 16 random bytes, new at every start. */
  readonly bootId: Uint8Array;
  readonly interval: Millis;
}

/** One boot of a guest: what it sends next and what it makes of answers. The reference for guest/heartbeat.c; knows no socket and no clock. */
export class HeartbeatSession {
  readonly #sender: Sender;
  #sequence: number;
  #nonce: Uint8Array | null;

  /** `resume` starts in the middle, for test vectors. */
  constructor(sender: Sender, resume: { readonly sequence?: number; readonly nonce?: Uint8Array | null } = {}) {
    this.#sender = sender;
    this.#sequence = resume.sequence ?? 0;
    this.#nonce = resume.nonce ?? null;
  }

  get nonce(): Uint8Array | null {
    return this.#nonce;
  }

  /** The next datagram. `now` is the wall clock. */
  next(now: Millis): Uint8Array {
    this.#sequence++;
    const { vm, bootId, interval, keyId, key } = this.#sender;
    return signHeartbeat({ vm, bootId, sequence: this.#sequence, timeMs: now, intervalMs: interval, nonce: this.#nonce }, keyId, key);
  }

  /** Takes the nonce of an answer that is genuine and answers a heartbeat of this boot; nothing else changes anything. Throws nothing. */
  take(datagram: Uint8Array): Verdict {
    let envelope: Envelope;
    try {
      envelope = decodeEnvelope(datagram);
    } catch (thrown) {
      if (toCareofError(thrown).code !== "malformed-heartbeat") throw thrown;
      return "malformed";
    }
    const result = verifyAnswer(envelope, this.#sender.key);
    if (!("body" in result)) return result.reason === "bad-tag" ? "bad-tag" : "malformed";
    const { reason, nonce, sequence, bootId } = result.body;
    if (!Buffer.from(bootId).equals(this.#sender.bootId) || sequence > this.#sequence) return "not-ours";
    if (nonce !== null) this.#nonce = nonce;
    return reason === "accepted" || reason === "stale-nonce" ? reason : "other";
  }
}

export interface ServiceOptions {
  readonly session: HeartbeatSession;
  readonly interval: Millis;
  readonly clock: Clock;
  /** Best effort: a network that is not there is no reason to stop. */
  readonly send: (datagram: Uint8Array) => void;
  /** 0 to 1, for the jitter. */
  readonly random: () => number;
  /** Called when the verdict on an answer differs from the one before. */
  readonly onChange: (verdict: Verdict) => void;
}

/** Sends a heartbeat every interval, 10 per cent more or less, and one at once when the nonce was stale. */
export class HeartbeatService {
  readonly #options: ServiceOptions;
  #timer: Timer | null = null;
  #resends = 0;
  #last: Verdict | null = null;

  constructor(options: ServiceOptions) {
    this.#options = options;
  }

  /** Sends the first at once. Starting what runs does nothing. */
  start(): void {
    if (this.#timer === null) this.#beat();
  }

  stop(): void {
    this.#timer?.cancel();
    this.#timer = null;
  }

  receive(datagram: Uint8Array): void {
    const verdict = this.#options.session.take(datagram);
    if (verdict !== this.#last) this.#options.onChange(verdict);
    this.#last = verdict;
    if (verdict !== "stale-nonce" || this.#timer === null || this.#resends >= MAX_RESENDS) return;
    this.#resends++;
    this.#timer.cancel();
    this.#send();
  }

  #beat(): void {
    this.#resends = 0;
    this.#send();
  }

  #send(): void {
    const { session, interval, clock, send, random } = this.#options;
    this.#timer = clock.after("next heartbeat", millis(interval * (0.9 + 0.2 * random())), () => { this.#beat(); });
    send(session.next(clock.now()));
  }
}
