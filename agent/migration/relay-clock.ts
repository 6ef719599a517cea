import { millis, type Millis } from "../../model/ids.js";

/** Two hosts' monotonic clocks may drift apart by so much (parts of one); crystal oscillators stay below it. */
const DRIFT = 1e-4;

export interface RelayClockReading {
  /** The peer's clock minus ours. */
  readonly offset: Millis;
  /** The true offset is within ± this. */
  readonly error: Millis;
}

interface Sample {
  readonly offset: number;
  readonly halfRoundTrip: number;
  readonly at: number;
}

/**
 * Compares our clock with a peer's by questions and answers (RFC 5905 §8, the single-stamp form): an answer's offset is wrong by at most half its round trip, and by
 * the drift since then. Keeps the sample that is best *now*.
 */
export class RelayClock {
  #best: Sample | null = null;

  /** An answer came at `receivedAt` to a question sent at `sentAt` (both ours); the peer stamped it `answeredAt` on its clock. */
  answered(sentAt: Millis, answeredAt: Millis, receivedAt: Millis): void {
    if (receivedAt < sentAt) return;
    const sample = { offset: answeredAt - (sentAt + receivedAt) / 2, halfRoundTrip: (receivedAt - sentAt) / 2, at: receivedAt };
    if (this.#best === null || errorOf(sample, receivedAt) <= errorOf(this.#best, receivedAt)) this.#best = sample;
  }

  reading(now: Millis): RelayClockReading | null {
    return this.#best === null ? null : { offset: millis(this.#best.offset), error: millis(errorOf(this.#best, now)) };
  }
}

function errorOf(sample: Sample, now: number): number {
  return sample.halfRoundTrip + Math.max(0, now - sample.at) * DRIFT;
}
