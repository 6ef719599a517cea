import type { Clock, Timer } from "../../model/clock.js";
import { millis, type Millis } from "../../model/ids.js";

interface Pending {
  readonly name: string;
  readonly due: number;
  readonly order: number;
  readonly run: () => void;
}

/**
 * Time that stands still until `advance`. Timers fire in the order of their due times (then of their creation), each seeing
 * `monotonic()` equal to its own due time; a timer set by a timer fires in the same `advance` if it is due by its end.
 */
export class FakeClock implements Clock {
  #now: number;
  #monotonic: number;
  #order = 0;
  readonly #pending = new Set<Pending>();

  constructor(options: { readonly now?: number; readonly monotonic?: number } = {}) {
    this.#now = options.now ?? Date.UTC(2026, 0, 1);
    this.#monotonic = options.monotonic ?? 1_000_000;
  }

  now(): Millis {
    return millis(this.#now);
  }

  monotonic(): Millis {
    return millis(this.#monotonic);
  }

  after(name: string, delay: Millis, run: () => void): Timer {
    const pending: Pending = { name, due: this.#monotonic + Math.max(0, delay), order: this.#order++, run };
    this.#pending.add(pending);
    return { name, cancel: () => { this.#pending.delete(pending); } };
  }

  /** Lets `ms` pass, running what becomes due on the way. Synchronous; use `advanceAsync` when promises have to settle in between. */
  advance(ms: number): void {
    const end = this.#monotonic + ms;
    for (let next = this.#next(end); next !== undefined; next = this.#next(end)) this.#fire(next);
    this.#moveTo(end);
  }

  /** As `advance`, and lets promise callbacks run before, between and after the timers. */
  async advanceAsync(ms: number): Promise<void> {
    const end = this.#monotonic + ms;
    await settle();
    for (let next = this.#next(end); next !== undefined; next = this.#next(end)) {
      this.#fire(next);
      await settle();
    }
    this.#moveTo(end);
    await settle();
  }

  /** Sets the wall clock, as an administrator or NTP would; timers and `monotonic` do not notice. */
  setWall(now: number): void {
    this.#now = now;
  }

  /** Names of the timers that are set, soonest first. */
  timers(): string[] {
    return [...this.#pending].sort(byDue).map((pending) => pending.name);
  }

  /** Milliseconds until the next timer, undefined when none is set. */
  untilNext(): number | undefined {
    const first = [...this.#pending].sort(byDue)[0];
    return first === undefined ? undefined : Math.max(0, first.due - this.#monotonic);
  }

  #next(end: number): Pending | undefined {
    const first = [...this.#pending].sort(byDue)[0];
    return first !== undefined && first.due <= end ? first : undefined;
  }

  #fire(pending: Pending): void {
    this.#pending.delete(pending);
    this.#moveTo(pending.due);
    pending.run();
  }

  #moveTo(monotonic: number): void {
    if (monotonic <= this.#monotonic) return;
    this.#now += monotonic - this.#monotonic;
    this.#monotonic = monotonic;
  }
}

function byDue(a: Pending, b: Pending): number {
  return a.due - b.due || a.order - b.order;
}

/** Lets every promise callback that is ready, and those they make ready, run. */
function settle(): Promise<void> {
  return new Promise((resolve) => { setImmediate(resolve); });
}
