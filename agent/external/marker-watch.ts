import type { Clock, Timer } from "../../model/clock.js";
import { millis, type Millis, type VmId } from "../../model/ids.js";

/** A marker comes at once as a rule, but a port may be made seconds before its VM moves: whoever has waited for so long, in milliseconds, is looked at less often. */
const LATE = 50;
const LATEST = 500;
/** Node's timers count whole milliseconds and may be early by less than one: that is no reason for another turn. */
const EARLY = 1;
const SOONEST = 1;

interface Waiting {
  readonly vm: VmId;
  readonly what: string;
  readonly since: Millis;
  readonly due: number;
  readonly lane: Lane;
}

/** VMs that are looked at every `every` milliseconds, in the order in which they are due; `atOnce` of them in one turn at most, since each look asks the kernel. */
interface Lane {
  readonly every: number;
  readonly atOnce: number;
  readonly queue: Set<Waiting>;
}

/**
 * Looks again and again for the markers that VMs wait for, as long as they do: one timer for all, and a bounded number of looks whenever it fires. Those that have waited long do not hold up the
 * new ones, nor these them.
 */
export class MarkerWatch {
  readonly #clock: Clock;
  readonly #look: (vm: VmId) => void;
  readonly #soon: Lane = { every: 1, atOnce: 24, queue: new Set() };
  readonly #late: Lane = { every: 5, atOnce: 8, queue: new Set() };
  readonly #latest: Lane = { every: 20, atOnce: 8, queue: new Set() };
  readonly #lanes = [this.#soon, this.#late, this.#latest];
  readonly #waiting = new Map<VmId, Waiting>();
  #timer: { readonly timer: Timer; readonly at: number } | null = null;

  /** `look` may call `set`. */
  constructor(clock: Clock, look: (vm: VmId) => void) {
    this.#clock = clock;
    this.#look = look;
  }

  /** Idempotent. `what` names what the VM waits for, null: nothing. For something else than before the looks begin anew, close together. */
  set(vm: VmId, what: string | null): void {
    const known = this.#waiting.get(vm);
    if ((known?.what ?? null) === what) return;
    known?.lane.queue.delete(known);
    this.#waiting.delete(vm);
    const now = this.#clock.monotonic();
    if (what !== null) this.#put(vm, what, now, now);
    this.#wake(now);
  }

  close(): void {
    for (const { queue } of this.#lanes) queue.clear();
    this.#waiting.clear();
    this.#wake(this.#clock.monotonic());
  }

  #put(vm: VmId, what: string, since: Millis, now: Millis): void {
    const waited = now - since;
    const lane = waited < LATE ? this.#soon : waited < LATEST ? this.#late : this.#latest;
    const waiting: Waiting = { vm, what, since, due: now + lane.every, lane };
    lane.queue.add(waiting);
    this.#waiting.set(vm, waiting);
  }

  #wake(now: Millis): void {
    const first = Math.min(...this.#lanes.map(({ queue }) => firstOf(queue)?.due ?? Infinity));
    // One that fires too early finds nothing to do; one that is put off with each change might never fire.
    if (this.#timer !== null && first !== Infinity && this.#timer.at <= first) return;
    this.#timer?.timer.cancel();
    const at = Math.max(now + SOONEST, first);
    this.#timer = first === Infinity ? null : { timer: this.#clock.after("marker", millis(at - now), () => { this.#turn(); }), at };
  }

  #turn(): void {
    this.#timer = null;
    const now = this.#clock.monotonic();
    const due = this.#lanes.flatMap((lane) => dueIn(lane, now + EARLY));
    for (const waiting of due) {
      waiting.lane.queue.delete(waiting);
      this.#put(waiting.vm, waiting.what, waiting.since, now);
    }
    this.#wake(now);
    // What one look has found may end the waiting of another.
    for (const { vm, what } of due) if (this.#waiting.get(vm)?.what === what) this.#look(vm);
  }
}

function dueIn({ queue, atOnce }: Lane, by: number): Waiting[] {
  const due: Waiting[] = [];
  for (const waiting of queue) {
    if (waiting.due > by || due.length === atOnce) break;
    due.push(waiting);
  }
  return due;
}

function firstOf(queue: ReadonlySet<Waiting>): Waiting | undefined {
  const [first] = queue;
  return first;
}
