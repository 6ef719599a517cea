import { z } from "zod";
import { epoch, hostId, millis, type Epoch, type HostId, type Millis } from "../model/ids.js";
import { parsed } from "../model/config.js";

export type Cause = "registration" | "start" | "migration" | "migration-aborted" | "announcement" | "heartbeat" | "resolved";

/** One stay of a VM in the care of a host. Unmeasured is `null`, never 0. */
export interface HistoryEntry {
  readonly epoch: Epoch;
  readonly host: HostId;
  readonly careOf: string | null;
  /** Wall clock, milliseconds since 1970. */
  readonly from: Millis;
  /** `null` while it lasts. */
  readonly until: Millis | null;
  readonly cause: Cause;
  /** Who wanted it: `operator`, or the host that claimed it. */
  readonly actor: string;
  readonly pauseMs: Millis | null;
  readonly gapDownMs: Millis | null;
  readonly gapUpMs: Millis | null;
}

/** What a decision does to the history: `open` closes the entry before it. */
export type HistoryChange =
  | { readonly change: "open"; readonly epoch: Epoch; readonly host: HostId; readonly cause: Cause; readonly actor: string; readonly at: Millis }
  | { readonly change: "close"; readonly at: Millis }
  /** Another cause than was written first: a person decides for the host that has it already. */
  | { readonly change: "caused"; readonly epoch: Epoch; readonly cause: Cause; readonly actor: string }
  | { readonly change: "measured"; readonly epoch: Epoch; readonly pauseMs: Millis | null; readonly gapDownMs: Millis | null; readonly gapUpMs: Millis | null };

/** Entries kept for one VM; older ones are forgotten. */
export const HISTORY_LIMIT = 100;

const time = z.number().transform((value) => millis(value));
const entry = z.object({
  epoch: z.number().transform((value) => epoch(value)),
  host: parsed(hostId),
  careOf: z.string().nullable(),
  from: time,
  until: time.nullable(),
  cause: z.enum(["registration", "start", "migration", "migration-aborted", "announcement", "heartbeat", "resolved"]),
  actor: z.string(),
  pauseMs: time.nullable(),
  gapDownMs: time.nullable(),
  gapUpMs: time.nullable(),
});

/** What the store holds of a VM's history, oldest first. */
export const historySchema: z.ZodType<readonly HistoryEntry[]> = z.array(entry);

/** The history after the changes; the one given is not touched. */
export function applyHistory(before: readonly HistoryEntry[], changes: readonly HistoryChange[], careOf: (host: HostId) => string | null): readonly HistoryEntry[] {
  let entries = before;
  for (const change of changes) {
    switch (change.change) {
      case "open":
        entries = [
          ...closed(entries, change.at),
          {
            epoch: change.epoch, host: change.host, careOf: careOf(change.host), from: change.at, until: null, cause: change.cause, actor: change.actor,
            pauseMs: null, gapDownMs: null, gapUpMs: null,
          },
        ];
        break;
      case "close":
        entries = closed(entries, change.at);
        break;
      case "caused": {
        const { epoch: under, cause, actor } = change;
        entries = entries.map((each) => (each.epoch === under ? { ...each, cause, actor } : each));
        break;
      }
      case "measured": {
        const { pauseMs, gapDownMs, gapUpMs } = change;
        entries = entries.map((each) => (each.epoch === change.epoch ? { ...each, pauseMs, gapDownMs, gapUpMs } : each));
      }
    }
  }
  return entries.slice(-HISTORY_LIMIT);
}

function closed(entries: readonly HistoryEntry[], at: Millis): readonly HistoryEntry[] {
  return entries.map((each) => (each.until === null ? { ...each, until: at } : each));
}
