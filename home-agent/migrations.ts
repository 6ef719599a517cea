import type { MigrationId, Millis, VmId } from "../model/ids.js";
import type { Body } from "../proto/messages.js";
import type { MigrationView } from "./api/operations.js";
import { whyItDoesNotConverge } from "./convergence.js";
import type { Migration } from "./handover/migration.js";
import type { MovePlan } from "./handover/move-plan.js";
import type { MigrationResult } from "./outcome.js";
import { iso } from "./views.js";

/** Finished migrations that are remembered, for `GET /v1/migrations`. */
const REMEMBERED = 200;

const UNFINISHED = { result: null, reason: null, totalMs: null, pauseMs: null, gapDownMs: null, gapUpMs: null, bytes: null, overflowed: null, hold: null, undelivered: null, progress: null, detail: null } as const;

/** The migrations of this process's time. What lasts is in the history. */
export class MigrationBook {
  readonly #views = new Map<MigrationId, MigrationView>();
  /** Of those under way. */
  readonly #plans = new Map<MigrationId, MovePlan>();

  /** Returns the view when there is news in it. */
  phase(vm: VmId, { id, from, to, phase, startedAt, plan }: Migration): MigrationView | null {
    const known = this.#views.get(id);
    if (known?.phase === phase) return null;
    this.#plans.set(id, plan);
    return this.#set(id, { migration: id, vm, from, to, startedAt: iso(startedAt), ...UNFINISHED, ...known, phase });
  }

  progress(body: Body<"progress">): MigrationView | null {
    const { migration, transferred, remaining, total, passes, bytesPerSecond, dirtyBytesPerSecond, expectedDowntimeMs, throttlePercent, diskCopied, diskTotal, diskBytesPerSecond } = body;
    const progress = { transferred, remaining, total, passes, bytesPerSecond, dirtyBytesPerSecond, expectedDowntimeMs, throttlePercent, diskCopied, diskTotal, diskBytesPerSecond };
    const known = this.#views.get(migration);
    const plan = this.#plans.get(migration);
    if (known === undefined) return null;
    return this.#set(migration, { ...known, progress, ...(known.result === null && plan !== undefined ? { detail: whyItDoesNotConverge(progress, plan) } : {}) });
  }

  finished(vm: VmId, { migration, detail: said, ...result }: MigrationResult, now: Millis): MigrationView {
    const fresh = { migration, vm, startedAt: iso(now), progress: null };
    const before = this.#views.get(migration);
    this.#plans.delete(migration);
    // Only a copy that took too long ended for what was wrong with it; else a host's own words say why.
    const words = [said, result.reason === "timed-out" ? (before?.detail ?? "") : ""].filter((each) => each !== "");
    return this.#set(migration, { ...fresh, ...before, ...result, detail: words.length === 0 ? null : words.join("; "), phase: result.result === "lost" ? "lost" : "done" });
  }

  /** What the target has counted after the end. `null`: that is known already, or the migration is not. */
  counted(migration: MigrationId, undelivered: number): MigrationView | null {
    const known = this.#views.get(migration);
    return known === undefined || known.undelivered !== null ? null : this.#set(migration, { ...known, undelivered });
  }

  get(migration: MigrationId): MigrationView | null {
    return this.#views.get(migration) ?? null;
  }

  /** Newest first. */
  all(): readonly MigrationView[] {
    return [...this.#views.values()].reverse();
  }

  #set(id: MigrationId, view: MigrationView): MigrationView {
    this.#views.set(id, view);
    if (this.#views.size > REMEMBERED) {
      const oldest = [...this.#views].find(([, each]) => each.result !== null);
      if (oldest !== undefined) this.#views.delete(oldest[0]);
    }
    return view;
  }
}
