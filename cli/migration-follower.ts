import type { Clock } from "../model/clock.js";
import { CareofError } from "../model/errors.js";
import { millis, type Millis } from "../model/ids.js";
import type { ApiClient } from "./api-client.js";
import type { MigrationReply } from "./replies.js";

export interface FollowOptions {
  readonly api: ApiClient;
  readonly clock: Clock;
  readonly migration: string;
  /** Hears every change. */
  readonly onChange: (view: MigrationReply) => void;
  /** Hears once that the contact is lost, and is tried again. */
  readonly onLost: (error: CareofError) => void;
  /** Stops following; the migration goes on. */
  readonly signal: AbortSignal;
  readonly patience?: Millis;
  readonly pause?: Millis;
}

/** The home agent may be away for so long: it is restarted, the migration goes on meanwhile. */
const PATIENCE = millis(60_000);
const PAUSE = millis(500);

/**
 * Follows a migration until it has a result. The events tell it at once; after a break the migration is asked for again, so that no result is missed.
 * @throws CareofError `home-agent-unreachable` when it stays away longer than the patience, `left` when `signal` aborts, any refusal
 */
export async function follow(options: FollowOptions): Promise<MigrationReply> {
  const { api, clock, signal, patience = PATIENCE, pause = PAUSE } = options;
  let lostAt: Millis | null = null;
  for (;;) {
    try {
      const over = new AbortController();
      const both = AbortSignal.any([signal, over.signal]);
      try {
        const events = await api.events(both);
        const now = await api.migration(options.migration);
        lostAt = null;
        options.onChange(now);
        if (now.result !== null) return now;
        for await (const each of events) {
          if (each.event !== "migration" || each.data.migration !== options.migration) continue;
          options.onChange(each.data);
          if (each.data.result !== null) return each.data;
        }
      } finally {
        over.abort();
      }
    } catch (thrown) {
      if (!signal.aborted) {
        if (!(thrown instanceof CareofError) || !thrown.retryable) throw thrown;
        if (lostAt === null) options.onLost(thrown);
        lostAt ??= clock.monotonic();
        if (clock.monotonic() - lostAt > patience) throw thrown;
      }
    }
    if (signal.aborted) throw new CareofError("left", `${options.migration} goes on without being watched`);
    await rest(clock, pause, signal);
  }
}

/** Waits, or until `signal` aborts. */
export async function rest(clock: Clock, time: Millis, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => {
    const done = (): void => {
      timer.cancel();
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = clock.after("rest", time, done);
    signal.addEventListener("abort", done);
  });
}
