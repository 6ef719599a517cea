import type { Clock, Timer } from "../model/clock.js";
import { CareofError } from "../model/errors.js";
import type { MigrationId, Millis, VmId } from "../model/ids.js";
import type { Reason } from "../model/reasons.js";
import type { MigrationResult } from "./outcome.js";

/** `resolve`: the end of a lost move, or why the source does not take the VM back. */
export type Awaited = "start" | "stop" | "resolve";

export interface Ended {
  readonly reason: Reason;
  readonly detail: string;
}

/** Operators who wait for the end of one thing. More are refused. */
const MAX_WAITING = 64;

type Told<T> = (news: T | "timed-out") => void;

/** Operators who wait for the end of what they began: so many at most, so long at most. What they wait for is not touched when they go. */
export class Waiters {
  readonly #clock: Clock;
  readonly #ends = new Map<string, Set<Told<Ended>>>();
  readonly #results = new Map<MigrationId, Set<Told<MigrationResult>>>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** The end of what `begin` begins, unless that is refused; `timed-out` when it does not end within `limit`, `too-many` (nothing begun) when as many wait already. */
  async ended(what: Awaited, vm: VmId, limit: Millis, begin: () => Promise<Ended>): Promise<Ended> {
    const key = `${what} ${vm}`;
    if ((this.#ends.get(key)?.size ?? 0) >= MAX_WAITING) return { reason: "too-many", detail: `${String(MAX_WAITING)} wait for the ${what} of ${vm}` };
    // Before it begins: the end may come before `begin` returns.
    const { end, give } = this.#wait(this.#ends, key, limit);
    const begun = await begin();
    if (begun.reason !== "accepted") {
      give();
      return begun;
    }
    const ended = await end;
    return ended === "timed-out" ? { reason: "timed-out", detail: `the ${what} of ${vm} did not end within ${String(limit)} ms` } : ended;
  }

  end(what: Awaited, vm: VmId, ended: Ended): void {
    tell(this.#ends, `${what} ${vm}`, ended);
  }

  /** `goesOn`: asked when `limit` is over, whether it is to be waited for as long again (disks take as long as they take). @throws CareofError `timed-out`, `too-many` */
  async finished(migration: MigrationId, limit: Millis, goesOn: () => boolean = () => false): Promise<MigrationResult> {
    if ((this.#results.get(migration)?.size ?? 0) >= MAX_WAITING) throw new CareofError("too-many", `${String(MAX_WAITING)} wait for the end of ${migration}`, { retryable: true });
    for (;;) {
      const result = await this.#wait(this.#results, migration, limit).end;
      if (result !== "timed-out") return result;
      if (!goesOn()) throw new CareofError("timed-out", `${migration} did not end within ${String(limit)} ms`, { retryable: true });
    }
  }

  finish(result: MigrationResult): void {
    tell(this.#results, result.migration, result);
  }

  #wait<K, T>(all: Map<K, Set<Told<T>>>, key: K, limit: Millis): { readonly end: Promise<T | "timed-out">; readonly give: () => void } {
    const waiting = all.get(key) ?? new Set();
    all.set(key, waiting);
    let timer: Timer | null = null;
    let give = (): void => {};
    const end = new Promise<T | "timed-out">((resolve) => {
      give = (): void => {
        timer?.cancel();
        waiting.delete(told);
        if (waiting.size === 0 && all.get(key) === waiting) all.delete(key);
      };
      const told: Told<T> = (news) => {
        give();
        resolve(news);
      };
      waiting.add(told);
      timer = this.#clock.after("an operator waits", limit, () => { told("timed-out"); });
    });
    return { end, give };
  }
}

function tell<K, T>(all: ReadonlyMap<K, ReadonlySet<Told<T>>>, key: K, news: T): void {
  for (const told of [...(all.get(key) ?? [])]) told(news);
}
