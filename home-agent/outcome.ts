import type { Epoch, HostId, MigrationId, Millis } from "../model/ids.js";
import type { Reason } from "../model/reasons.js";
import type { HoldOutcome } from "../proto/messages.js";
import type { HistoryChange } from "./history.js";

/** What the machines ask of the outside. Everything else (routes, markers, updates to hosts) follows from the state itself. */
export type Effect =
  | { readonly do: "ask"; readonly host: HostId; readonly what: Question }
  | { readonly do: "started"; readonly epoch: Epoch; readonly reason: Reason; readonly detail: string }
  | { readonly do: "stopped"; readonly reason: Reason; readonly detail: string }
  /** To the new host of a VM that somebody else moved: nothing is on the old path any more. */
  | { readonly do: "drained"; readonly host: HostId; readonly token: number }
  | { readonly do: "finished"; readonly result: MigrationResult }
  /** After the end of a move that was given up, since the source goes on first: what waited at the target and is lost. */
  | { readonly do: "counted"; readonly migration: MigrationId; readonly undelivered: number }
  | { readonly do: "alarm"; readonly alarm: AlarmKind; readonly hosts: readonly HostId[]; readonly detail: string };

export type AlarmKind = "both-claim" | "lost" | "start-pending" | "guest-died" | "rule-broken";

/** A question to a host. Its answer comes back as an event of the VM. */
export type Question =
  | { readonly ask: "start"; readonly epoch: Epoch }
  | { readonly ask: "stop"; readonly epoch: Epoch; readonly force: boolean; readonly giveBack?: boolean }
  | { readonly ask: "prepare" }
  | { readonly ask: "migrate"; readonly relayAddress: string; readonly relayPort: number; readonly lead: boolean }
  | { readonly ask: "lead"; readonly token: number }
  | { readonly ask: "abort"; readonly migration: MigrationId; readonly reason: Reason }
  | { readonly ask: "resume"; readonly migration: MigrationId; readonly epoch: Epoch; readonly evidence: "target-never-ran" | "resolved-by-operator" }
  | { readonly ask: "revoke"; readonly epoch: Epoch; readonly forwardTo: HostId | null };

export type MigrationOutcome = "completed" | "failed" | "cancelled" | "lost";

/** How a migration ended. What was not measured is `null`, never 0; durations in milliseconds. */
export interface MigrationResult {
  readonly migration: MigrationId;
  readonly from: HostId;
  readonly to: HostId;
  readonly result: MigrationOutcome;
  readonly reason: Reason;
  /** What a host says about a failure, or that the move was forced, for people; empty: nothing. */
  readonly detail: string;
  readonly totalMs: Millis | null;
  readonly pauseMs: Millis | null;
  readonly gapDownMs: Millis | null;
  readonly gapUpMs: Millis | null;
  readonly bytes: number | null;
  /** Packets for the VM that found the queue of its new port full while it stood, and are lost. */
  readonly overflowed: number | null;
  /** Whether all that was on its way to the old host had come before the guest stopped there (`led`), or why nobody knows; `null`: the guest was not stopped, or the home agent has not heard of it. */
  readonly hold: HoldOutcome | null;
  /** Packets that waited at the new port when the move was given up, and are lost; `null`: not known, or not yet (`counted`). */
  readonly undelivered: number | null;
}

/**
 * What a machine decided. `state` takes effect at once when `commit` is null; else when the store has it. `interim` is the state to
 * be in meanwhile (a route that cannot wait for the disk). `effects` are performed after `state` took effect.
 */
export interface Outcome<State> {
  readonly state: State;
  readonly reason: Reason;
  readonly detail: string;
  readonly commit: { readonly history: readonly HistoryChange[] } | null;
  readonly interim: State | null;
  readonly effects: readonly Effect[];
}

/** Nothing changes but, perhaps, what need not be written. */
export function decide<State>(state: State, reason: Reason, detail = "", effects: readonly Effect[] = []): Outcome<State> {
  return { state, reason, detail, commit: null, interim: null, effects };
}

/** The state is written first; only then it holds and `effects` happen. */
export function write<State>(state: State, history: readonly HistoryChange[] = [], effects: readonly Effect[] = [], interim: State | null = null): Outcome<State> {
  return { state, reason: "accepted", detail: "", commit: { history }, interim, effects };
}

/** Two decisions of one event, the second on the state that the first leaves. They are written together; the reason is the first one's. */
export function both<State>(first: Outcome<State>, decideNext: (state: State) => Outcome<State>): Outcome<State> {
  const next = decideNext(first.state);
  const commit = first.commit === null && next.commit === null ? null : { history: [...(first.commit?.history ?? []), ...(next.commit?.history ?? [])] };
  return { ...next, reason: first.reason, detail: first.detail, commit, interim: first.interim ?? next.interim, effects: [...first.effects, ...next.effects] };
}
