import { getPriority, setPriority } from "node:os";
import { toCareofError } from "../../model/errors.js";
import type { MigrationId } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";

/** nice(2)'s strongest. Unlike a real-time class it leaves the hypervisors their share. */
const URGENT = -20;

/** What the process itself is asked; injected for tests. */
export interface ProcessPriority {
  get(): number;
  /** @throws Error (EACCES: without CAP_SYS_NICE) */
  set(nice: number): void;
}

export const OWN_PRIORITY: ProcessPriority = { get: () => getPriority(), set: (nice) => { setPriority(nice); } };

/**
 * From a move's lead until its guest stands, this process comes before others that want its processor: packets go to the target by then, and the guest is deaf for as long as the marker
 * waits to be noticed. Some tens of milliseconds a move; without the right to it everything goes on as slowly as ever. Where processors are idle it changes nothing.
 */
export class Urgency {
  readonly #priority: ProcessPriority;
  readonly #ordinary: number;
  readonly #log: Logger;
  readonly #urgent = new Set<MigrationId>();
  #refused = false;

  constructor(log: Logger, priority: ProcessPriority = OWN_PRIORITY) {
    this.#priority = priority;
    this.#ordinary = priority.get();
    this.#log = log;
  }

  /** Idempotent. */
  set(migration: MigrationId, urgent: boolean): void {
    const before = this.#urgent.size > 0;
    if (urgent) this.#urgent.add(migration);
    else this.#urgent.delete(migration);
    const now = this.#urgent.size > 0;
    if (now === before || this.#refused) return;
    try {
      this.#priority.set(now ? Math.min(URGENT, this.#ordinary) : this.#ordinary);
    } catch (thrown) {
      this.#refused = true;
      this.#log.info({ reason: toCareofError(thrown).code, detail: toCareofError(thrown).message }, "this process may not come before others while a guest is handed over (CAP_SYS_NICE)");
    }
  }
}
