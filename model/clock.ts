import { millis, type Millis } from "./ids.js";

/** A timer that runs at most once. */
export interface Timer {
  readonly name: string;
  /** After this the timer never fires; calling it again, or after it fired, does nothing. */
  cancel(): void;
}

/**
 * The only source of time. Contract (tested against the real and the fake one):
 * `now` is wall time, since 1970; it may jump. `monotonic` never goes back, has microsecond resolution and is CLOCK_MONOTONIC:
 * it may be compared with stamps of the kernel on the same machine. `after` calls back once, not before `delay` has passed
 * but for up to a millisecond (Node counts whole ones: whoever compares with a time then asks for the rest again), never synchronously; without a delay as soon as what else is waiting has had its turn.
 */
export interface Clock {
  now(): Millis;
  monotonic(): Millis;
  after(name: string, delay: Millis, run: () => void): Timer;
}

/** Node's clock. Its timers do not keep the process alive unless asked. */
export class SystemClock implements Clock {
  readonly #keepAlive: boolean;

  constructor(options: { readonly keepAlive?: boolean } = {}) {
    this.#keepAlive = options.keepAlive ?? false;
  }

  now(): Millis {
    return millis(Date.now());
  }

  monotonic(): Millis {
    return millis(Number(process.hrtime.bigint()) / 1e6);
  }

  after(name: string, delay: Millis, run: () => void): Timer {
    if (delay <= 0) {
      const immediate = setImmediate(run);
      if (!this.#keepAlive) immediate.unref();
      return { name, cancel: () => { clearImmediate(immediate); } };
    }
    const timer = setTimeout(run, Math.ceil(delay));
    if (!this.#keepAlive) timer.unref();
    return { name, cancel: () => { clearTimeout(timer); } };
  }
}
