import type { Clock, Timer } from "../../model/clock.js";
import { millis, type Millis } from "../../model/ids.js";

interface Item<Key> {
  readonly key: Key;
  readonly tick: number;
}

/**
 * Deadlines of any number of keys with one timer: a ring of slots, each `slotMs` wide. A deadline that moves away costs nothing: the key is looked at when
 * the old one comes, and its owner says when next.
 */
export class DeadlineRing<Key> {
  readonly #clock: Clock;
  readonly #slotMs: number;
  readonly #slots: Item<Key>[][];
  readonly #look: (key: Key) => void;
  readonly #scheduled = new Map<Key, number>();
  #done: number;
  #timer: { readonly timer: Timer; readonly tick: number } | null = null;
  #closed = false;

  /** `look` is called not before a deadline and at most one slot after it, or earlier for one that was put off; it calls `want` again. */
  constructor(clock: Clock, look: (key: Key) => void, options: { readonly slotMs?: number; readonly slots?: number } = {}) {
    this.#clock = clock;
    this.#look = look;
    this.#slotMs = options.slotMs ?? 10;
    this.#slots = Array.from({ length: options.slots ?? 4096 }, () => []);
    this.#done = Math.floor(clock.monotonic() / this.#slotMs);
  }

  /** Keys with a deadline. */
  get size(): number {
    return this.#scheduled.size;
  }

  /** `due` is monotonic, `null` none. */
  want(key: Key, due: Millis | null): void {
    if (due === null || this.#closed) return;
    const tick = Math.max(this.#done + 1, Math.ceil(due / this.#slotMs));
    const present = this.#scheduled.get(key);
    if (present !== undefined && present <= tick) return;
    this.#scheduled.set(key, tick);
    this.#slot(tick).push({ key, tick });
    if (this.#timer === null || tick < this.#timer.tick) this.#arm(tick);
  }

  forget(key: Key): void {
    this.#scheduled.delete(key);
  }

  close(): void {
    this.#closed = true;
    this.#timer?.timer.cancel();
    this.#scheduled.clear();
  }

  #slot(tick: number): Item<Key>[] {
    const slot = this.#slots[tick % this.#slots.length];
    if (slot === undefined) throw new RangeError(`no slot for tick ${String(tick)}`);
    return slot;
  }

  #arm(tick: number): void {
    this.#timer?.timer.cancel();
    const delay = millis(Math.max(0, tick * this.#slotMs - this.#clock.monotonic()));
    this.#timer = { tick, timer: this.#clock.after("binding deadlines", delay, () => { this.#turn(); }) };
  }

  #turn(): void {
    this.#timer = null;
    const now = Math.floor(this.#clock.monotonic() / this.#slotMs);
    // A long sleep of the machine passes every slot once, not more.
    const first = Math.max(this.#done + 1, now - this.#slots.length + 1);
    this.#done = Math.max(this.#done, now);
    for (let at = first; at <= now; at++) this.#pass(at, now);
    const next = this.#nextTick();
    if (next !== null && !this.#closed) this.#arm(next);
  }

  #pass(at: number, now: number): void {
    const slot = this.#slot(at);
    const items = slot.splice(0);
    for (const item of items) {
      if (this.#scheduled.get(item.key) !== item.tick) continue;
      if (item.tick > now) {
        slot.push(item);
        continue;
      }
      this.#scheduled.delete(item.key);
      this.#look(item.key);
    }
  }

  /** First tick with something in its slot, though perhaps of a later round. */
  #nextTick(): number | null {
    if (this.#scheduled.size === 0) return null;
    for (let tick = this.#done + 1; tick <= this.#done + this.#slots.length; tick++) if (this.#slot(tick).length > 0) return tick;
    return null;
  }
}
