import { millis, type Millis } from "../../model/ids.js";
import type { Came } from "../../net/hold.js";

/** A packet that has waited longer for its VM is of no use to anybody. */
export const HELD_LONGEST = millis(5000);

interface Waiting {
  readonly frame: Buffer;
  readonly came: Came;
  readonly at: Millis;
}

/** What was sent earlier goes first: a packet that the port refused had arrived before the VM left, and so before those that another host passes on. */
const ORDER: readonly (readonly Came[])[] = [["refused", "doubtful"], ["straggler"], ["directly"]];

/** Packets of one VM that wait for it, in order, so many and so long; what is more is dropped and counted. */
export class Held {
  #waiting: Waiting[] = [];
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

  put(frame: Buffer, came: Came, now: Millis): void {
    this.#expire(now);
    if (this.#waiting.length >= this.#limit) this.overflowed++;
    else this.#waiting.push({ frame, came, at: now });
  }

  /** What has waited too long is dropped, also where nothing comes and nobody asks any more. */
  tidy(now: Millis): void {
    this.#expire(now);
  }

  /** In the order in which they were sent. `but`: those that came so stay. */
  take(now: Millis, but: Came | null = null): Buffer[] {
    this.#expire(now);
    const taken = this.#waiting.filter(({ came }) => came !== but);
    this.#waiting = this.#waiting.filter(({ came }) => came === but);
    return ORDER.flatMap((kinds) => taken.filter(({ came }) => kinds.includes(came))).map(({ frame }) => frame);
  }

  has(came: Came): boolean {
    return this.#waiting.some((waiting) => waiting.came === came);
  }

  /** Those that came so are somewhere else already: neither kept nor counted. */
  forget(came: Came): void {
    this.#waiting = this.#waiting.filter((waiting) => waiting.came !== came);
  }

  /** Drops all of them, counted as those that found no room: their port has none. */
  giveUp(): void {
    this.overflowed += this.#waiting.length;
    this.#waiting = [];
  }

  #expire(now: Millis): void {
    const first = this.#waiting.findIndex(({ at }) => now - at <= this.#longest);
    const over = first < 0 ? this.#waiting.length : first;
    if (over === 0) return;
    this.#waiting.splice(0, over);
    this.expired += over;
  }
}
