import type { Clock, Timer } from "../../model/clock.js";
import { millis, type Millis } from "../../model/ids.js";
import type { PortQueue } from "../../net/tap-queue.js";
import type { Stamps } from "../../net/tunnel.js";

const LOOK_MS = millis(1);
/** The guest is deaf from the marker on: while it must come any moment, it is looked for without a pause. */
const AT_ONCE_MS = 4;
const LOOKS_AT_ONCE = 1000;
/** Longest that the guest is waited for behind the marker: others on this host may go on filling its queue, and what the home agent sends waits at the target meanwhile. */
const READER_MS = 150;

export interface OldPathRim {
  readonly clock: Clock;
  stamps(): Stamps | null;
  /** What waits for the guest in front of its port; `null` where nobody can tell. */
  queue(): PortQueue | null;
}

/**
 * The way by which packets came to the guest until they were sent to the target. It is over when the marker behind the last of them has come, and when the guest has taken what
 * was in front of it: a guest that is slow to read leaves packets in its port's queue, and what is there when it stops stays behind.
 */
export class OldPath {
  readonly #rim: OldPathRim;
  #timer: Timer | null = null;
  #queue: PortQueue | null = null;

  constructor(rim: OldPathRim) {
    this.#rim = rim;
  }

  /**
   * `over` is called once, unless the limit or another call of this comes first, with the time from which on the guest could receive nothing by this way: the marker's
   * arrival, or, if the guest had not taken everything by then, the last look that found something left (which is no later than READER_MS behind it).
   */
  watch(token: number, limit: Millis, over: (at: Millis) => void): void {
    this.#queue ??= this.#rim.queue();
    const end = this.#rim.clock.monotonic() + limit;
    this.#await((seen) => seen === token, limit, (at) => { this.#awaitReader(at, Math.min(end, this.#rim.clock.monotonic() + READER_MS), over); });
  }

  /** Any marker, be it late; the queue does not matter any more. */
  watchLate(limit: Millis, found: (at: Millis) => void): void {
    this.#closeQueue();
    this.#await(() => true, limit, found);
  }

  close(): void {
    this.#timer?.cancel();
    this.#closeQueue();
  }

  #await(wanted: (token: number) => boolean, limit: Millis, found: (at: Millis) => void): void {
    const { clock } = this.#rim;
    const start = clock.monotonic();
    let looks = 0;
    const look = (): void => {
      const marker = this.#rim.stamps()?.marker ?? null;
      const waited = clock.monotonic() - start;
      const pause = waited < AT_ONCE_MS && ++looks < LOOKS_AT_ONCE ? millis(0) : LOOK_MS;
      if (marker !== null && wanted(marker.token)) found(marker.at);
      else if (waited < limit) this.#later(pause, look);
      else this.#closeQueue();
    };
    look();
  }

  #awaitReader(received: Millis, end: number, over: (at: Millis) => void): void {
    const now = this.#rim.clock.monotonic();
    const empty = this.#queue?.isEmpty() !== false;
    if (!empty && now < end) {
      this.#later(LOOK_MS, () => { this.#awaitReader(now, end, over); });
      return;
    }
    this.#closeQueue();
    over(empty ? received : now);
  }

  #later(delay: Millis, look: () => void): void {
    this.#timer?.cancel();
    this.#timer = this.#rim.clock.after("source-old-path", delay, look);
  }

  #closeQueue(): void {
    this.#queue?.close();
    this.#queue = null;
  }
}
