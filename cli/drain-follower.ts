import type { Clock } from "../model/clock.js";
import { CareofError } from "../model/errors.js";
import { millis, type HostId, type Millis } from "../model/ids.js";
import type { ApiClient } from "./api-client.js";
import { rest } from "./migration-follower.js";
import type { DrainReply, DrainSummaryReply, MigrationReply } from "./replies.js";

export interface DrainFollowOptions {
  readonly api: ApiClient;
  readonly clock: Clock;
  readonly host: HostId;
  readonly onSum: (sum: DrainSummaryReply) => void;
  readonly onMove: (view: MigrationReply) => void;
  /** Hears once that the contact is lost, and is tried again. */
  readonly onLost: (error: CareofError) => void;
  /** Stops following; the drain goes on. */
  readonly signal: AbortSignal;
}

/** The home agent may be away for so long: it is restarted, and goes on with the drain. */
const PATIENCE = millis(60_000);
const PAUSE = millis(500);

export function isUnderWay({ state }: { readonly state: DrainSummaryReply["state"] }): boolean {
  return state === "running" || state === "stopping";
}

/**
 * Follows a drain until nothing moves any more.
 * @throws CareofError `not-draining` when somebody ends it, `home-agent-unreachable` when that stays away longer than the patience, `left` when `signal` aborts
 */
export async function followDrain(options: DrainFollowOptions): Promise<DrainReply> {
  const { api, clock, host, signal } = options;
  let lostAt: Millis | null = null;
  for (;;) {
    try {
      const over = new AbortController();
      try {
        const events = await api.events(AbortSignal.any([signal, over.signal]));
        const now = await api.drain(host);
        lostAt = null;
        options.onSum(now);
        for (const each of await api.migrations()) if (each.from === host && each.result === null) options.onMove(each);
        if (!isUnderWay(now)) return now;
        for await (const each of events) {
          if (each.event === "migration" && each.data.from === host) options.onMove(each.data);
          if (each.event !== "drain" || each.data.host !== host) continue;
          options.onSum(each.data);
          if (!isUnderWay(each.data)) return await api.drain(host);
        }
      } finally {
        over.abort();
      }
    } catch (thrown) {
      if (!signal.aborted) {
        if (!(thrown instanceof CareofError) || !thrown.retryable) throw thrown;
        if (lostAt === null) options.onLost(thrown);
        lostAt ??= clock.monotonic();
        if (clock.monotonic() - lostAt > PATIENCE) throw thrown;
      }
    }
    if (signal.aborted) throw new CareofError("left", `the drain of ${host} goes on without being watched`);
    await rest(clock, PAUSE, signal);
  }
}
