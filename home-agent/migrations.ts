import type { MigrationId, Millis, VmId } from "../model/ids.js";
import type { Body } from "../proto/messages.js";
import type { MigrationView } from "./api/operations.js";
import type { Migration } from "./handover/migration.js";
import type { MigrationResult } from "./outcome.js";
import { iso } from "./views.js";

/** Finished migrations that are remembered, for `GET /v1/migrations`. */
const REMEMBERED = 200;

const UNFINISHED = { result: null, reason: null, totalMs: null, pauseMs: null, gapDownMs: null, gapUpMs: null, bytes: null, overflowed: null, progress: null } as const;

/** The migrations of this process's time. What lasts is in the history. */
export class MigrationBook {
  readonly #views = new Map<MigrationId, MigrationView>();

  /** Returns the view when there is news in it. */
  phase(vm: VmId, { id, from, to, phase, startedAt }: Migration): MigrationView | null {
    const known = this.#views.get(id);
    if (known?.phase === phase) return null;
    return this.#set(id, { migration: id, vm, from, to, startedAt: iso(startedAt), ...UNFINISHED, ...known, phase });
  }

  progress({ migration, transferred, remaining, total, passes, bytesPerSecond, dirtyBytesPerSecond }: Body<"progress">): MigrationView | null {
    const known = this.#views.get(migration);
    return known === undefined ? null : this.#set(migration, { ...known, progress: { transferred, remaining, total, passes, bytesPerSecond, dirtyBytesPerSecond } });
  }

  finished(vm: VmId, { migration, ...result }: MigrationResult, now: Millis): MigrationView {
    const fresh = { migration, vm, startedAt: iso(now), progress: null };
    return this.#set(migration, { ...fresh, ...this.#views.get(migration), ...result, phase: result.result === "lost" ? "lost" : "done" });
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
