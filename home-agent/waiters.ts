import type { MigrationId, VmId } from "../model/ids.js";
import type { Reason } from "../model/reasons.js";
import type { MigrationResult } from "./outcome.js";

export interface Ended {
  readonly reason: Reason;
  readonly detail: string;
}

/** Operators who wait for the end of what they began. */
export class Waiters {
  readonly #ends = new Map<string, ((ended: Ended) => void)[]>();
  readonly #results = new Map<MigrationId, ((result: MigrationResult) => void)[]>();

  /** The end of what `begin` begins, unless that is refused. */
  async ended(what: "start" | "stop", vm: VmId, begin: () => Promise<Ended>): Promise<Ended> {
    const key = `${what} ${vm}`;
    const waiting = this.#ends.get(key) ?? [];
    this.#ends.set(key, waiting);
    let told: ((ended: Ended) => void) | null = null;
    const end = new Promise<Ended>((resolve) => {
      told = resolve;
      waiting.push(resolve);
    });
    const begun = await begin();
    if (begun.reason === "accepted") return end;
    this.#ends.set(key, (this.#ends.get(key) ?? []).filter((each) => each !== told));
    return begun;
  }

  end(what: "start" | "stop", vm: VmId, ended: Ended): void {
    const key = `${what} ${vm}`;
    const waiting = this.#ends.get(key) ?? [];
    this.#ends.delete(key);
    for (const resolve of waiting) resolve(ended);
  }

  finished(migration: MigrationId): Promise<MigrationResult> {
    return new Promise((resolve) => {
      this.#results.set(migration, [...(this.#results.get(migration) ?? []), resolve]);
    });
  }

  finish(result: MigrationResult): void {
    const waiting = this.#results.get(result.migration) ?? [];
    this.#results.delete(result.migration);
    for (const resolve of waiting) resolve(result);
  }
}
