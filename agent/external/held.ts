import { millis, type Millis } from "../../model/ids.js";

/** A packet that has waited longer for its VM is of no use to anybody. */
export const HELD_LONGEST = millis(5000);

interface Waiting {
  readonly frame: Buffer;
  readonly straggler: boolean;
  readonly at: Millis;
}

/** Packets of one VM that wait for it, in order, so many and so long; what is more is dropped and counted. */
export class Held {
  readonly #waiting: Waiting[] = [];
  readonly #limit: number;
  readonly #longest: Millis;
  /** Dropped: the queue was full, or they had waited too long. */
  overflowed = 0;
  expired = 0;

  constructor(limits: { readonly packets: number; readonly longest: Millis }) {
    this.#limit = limits.packets;
    this.#longest = limits.longest;
  }

  get size(): number {
    return this.#waiting.length;
  }

  put(frame: Buffer, straggler: boolean, now: Millis): void {
    this.#expire(now);
    if (this.#waiting.length >= this.#limit) this.overflowed++;
    else this.#waiting.push({ frame, straggler, at: now });
  }

  /** What has waited too long is dropped, also where nothing comes and nobody asks any more. */
  tidy(now: Millis): void {
    this.#expire(now);
  }

  /** Stragglers before what came directly, since they were sent before; `which` takes the one kind alone. */
  take(which: "stragglers" | "direct" | "all", now: Millis): Buffer[] {
    this.#expire(now);
    const stragglers = this.#waiting.filter(({ straggler }) => straggler);
    const direct = this.#waiting.filter(({ straggler }) => !straggler);
    this.#waiting.length = 0;
    if (which === "stragglers") this.#waiting.push(...direct);
    if (which === "direct") this.#waiting.push(...stragglers);
    return [...(which === "direct" ? [] : stragglers), ...(which === "stragglers" ? [] : direct)].map(({ frame }) => frame);
  }

  #expire(now: Millis): void {
    const first = this.#waiting.findIndex(({ at }) => now - at <= this.#longest);
    const over = first < 0 ? this.#waiting.length : first;
    if (over === 0) return;
    this.#waiting.splice(0, over);
    this.expired += over;
  }
}
