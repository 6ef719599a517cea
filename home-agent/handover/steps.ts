import { CareofError } from "../../model/errors.js";
import { millis, type Millis } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import { changeState, freshEpoch, type Now } from "../bindings/binding.js";
import { withGrace } from "../bindings/machine.js";
import type { HistoryChange } from "../history.js";
import { decide, write, type Effect, type MigrationOutcome, type MigrationResult, type Outcome } from "../outcome.js";
import { remember } from "./given-back.js";
import type { Migration, MoveRules, VmState } from "./migration.js";
import { askAbort } from "./questions.js";

/** A VM that has a migration. */
export interface Moving extends VmState {
  readonly migration: Migration;
}

/** The only place where a migration changes its phase. */
export function enter(state: Moving, phase: Migration["phase"], now: Now, change: Partial<Migration> = {}): Moving {
  return { ...state, migration: { ...state.migration, ...change, phase, phaseAt: now.mono, tries: 0 } };
}

/**
 * n+1 belongs to the target: the binding, whatever the guest does. Nothing to do when it already is so. When the source was given the VM back meanwhile, n+1 is in the past
 * and the target has it under a newer one.
 */
export function commitTarget(state: Moving, now: Now, rules: MoveRules): { readonly state: Moving; readonly history: readonly HistoryChange[] } {
  const { binding, migration } = state;
  if (binding.epoch >= migration.epoch && binding.owner === migration.to) return { state, history: [] };
  const epoch = migration.epoch > binding.epoch ? migration.epoch : freshEpoch(binding);
  const bound = changeState(binding, "bound", { owner: migration.to, epoch, evidence: "migration" }, now);
  return {
    state: { ...state, binding: withGrace(bound, migration.from, now, rules), givenBack: [] },
    history: [{ change: "open", epoch, host: migration.to, cause: "migration", actor: migration.actor, at: now.wall }],
  };
}

/** I5: what is given up ends at the source, under a new epoch. */
export function giveBack(state: Moving, now: Now, rules: MoveRules, reason: Reason, effects: readonly Effect[] = []): Outcome<VmState> {
  const { binding, migration } = state;
  const epoch = migration.resumeEpoch ?? freshEpoch(binding);
  const bound = changeState(binding, "bound", { owner: migration.from, epoch, evidence: "migration" }, now);
  // As `remember` has it: without the target's proof it was a person's word that let the source run it.
  const resolved = migration.resumeEpoch !== null && !migration.neverRan;
  const history: HistoryChange = { change: "open", epoch, host: migration.from, cause: resolved ? "resolved" : "migration-aborted", actor: resolved ? "operator" : migration.actor, at: now.wall };
  const interim: Moving = { ...state, migration: { ...migration, pointed: "source" } };
  return write<VmState>({ binding: withGrace(bound, migration.to, now, rules), migration: null, givenBack: remember(state.givenBack, migration) }, [history], [...effects, finished(migration, migration.cancelled ? "cancelled" : "failed", migration.reason ?? reason, now)], interim);
}

/** The guest itself is dead: nobody owns it. */
export function guestDied(state: Moving, now: Now, reason: Reason, detail: string, effects: readonly Effect[] = []): Outcome<VmState> {
  const { binding, migration } = state;
  const ended = changeState(binding, "none", { owner: null, epoch: binding.epoch, evidence: "none" }, now);
  return write<VmState>({ binding: { ...ended, issued: binding.issued > migration.epoch ? binding.issued : migration.epoch, graces: [], seenAt: null }, migration: null, givenBack: [] }, [{ change: "close", at: now.wall }], [
    ...effects,
    { do: "alarm", alarm: "guest-died", hosts: [migration.from, migration.to], detail: detail === "" ? `${binding.vm} died in a migration` : detail },
    finished(migration, reason === "postcopy-broken" ? "lost" : "failed", reason, now),
  ]);
}

/** Nobody who could say whether the guest runs can be asked: it stays as it is, and a person decides. */
export function lose(state: Moving, now: Now, detail: string): Outcome<VmState> {
  const { binding, migration } = state;
  if (migration.phase === "lost") return write<VmState>(state);
  const moving = binding.phase === "moving" ? binding : changeState(binding, "moving", { owner: binding.owner, epoch: binding.epoch, evidence: "migration" }, now);
  const lost = changeState(moving, "lost", { owner: binding.owner, epoch: binding.epoch, evidence: "none" }, now);
  return write<VmState>({ ...enter(state, "lost", now), binding: lost }, [], [
    { do: "alarm", alarm: "lost", hosts: [migration.from, migration.to], detail: `${binding.vm}: ${detail}; ${migration.postcopy ? `when it does not come back, \`careof stop ${binding.vm} --force\` gives the guest up` : `\`careof resolve ${binding.vm} HOST\` decides`}` },
    finished(migration, "lost", "released-unknown", now),
  ]);
}

export function finished(migration: Migration, result: MigrationOutcome, reason: Reason, now: Now): Effect {
  const total = migration.startedMono === null ? null : millis(now.mono - migration.startedMono);
  const gaps = result === "completed" ? gapsOf(migration) : { pauseMs: null, gapDownMs: null, gapUpMs: null };
  const detail = result === "completed" ? howItWent(migration) : result === "failed" || reason === "postcopy-broken" ? migration.detail : "";
  const report: MigrationResult = { migration: migration.id, from: migration.from, to: migration.to, result, reason, detail, totalMs: total, ...gaps, bytes: migration.bytes, overflowed: migration.running?.overflowed ?? null, hold: migration.hold, undelivered: migration.undelivered };
  return { do: "finished", result: report };
}

/** What is out of the ordinary; empty: nothing. */
function howItWent({ forced, plan }: Migration): string {
  return forced ? `forced: not completed within ${String(plan.timeoutMs)} ms, so that the guest was stopped until the rest was copied (--on-timeout force)` : "";
}

/**
 * The time in which the guest ran and could not receive (down) or be heard (up), each term on one host's clock:
 * down = max(0, STOP at the source − marker seen there) + max(0, first packet deliverable at the target − RESUME there); up = from RESUME until what the target sends
 * passes here. The pause: from STOP to RESUME, by the comparison of the two hosts' clocks; the target does not know of STOP when the word that the guest may run came
 * from here and overtook the relay's. `null` when a stamp that it needs is missing.
 */
export function gapsOf(migration: Migration): { readonly pauseMs: Millis | null; readonly gapDownMs: Millis | null; readonly gapUpMs: Millis | null } {
  const { running, stopAt, markerAt } = migration;
  if (running === null) return { pauseMs: null, gapDownMs: null, gapUpMs: null };
  const { resumeAt, firstDeliverableAt, uplinkOpenAt, resumedAtSource } = running;
  const pauseMs = running.pauseMs ?? (stopAt === null || stopAt === 0 || resumedAtSource === null ? null : millis(Math.max(0, resumedAtSource - stopAt)));
  const down = stopAt === null || markerAt === null || firstDeliverableAt === null ? null : millis(Math.max(0, stopAt - markerAt) + Math.max(0, firstDeliverableAt - resumeAt));
  const up = uplinkOpenAt === null ? null : millis(Math.max(0, uplinkOpenAt - resumeAt));
  return { pauseMs, gapDownMs: down, gapUpMs: up };
}

/** The first reason for giving up is the one that is told. */
export function reasoned(state: Moving, reason: Reason, detail = ""): Moving {
  const { migration } = state;
  // A host's words go with the reason that they were said for.
  const words = migration.reason === null || (migration.reason === reason && migration.detail === "") ? detail : migration.detail;
  return { ...state, migration: { ...migration, reason: migration.reason ?? reason, detail: words } };
}

/** Asks the source to go on; the target is told when the source has said that it does, or when the source cannot be asked. */
export function abort(state: Moving, reason: Reason, now: Now): Outcome<VmState> {
  const { migration } = state;
  const pointed = migration.sourceGone === null ? "source" : migration.pointed;
  const next = enter(reasoned(state, reason), "aborting", now, { pointed });
  return decide<VmState>(next, "accepted", "", [askAbort(migration, migration.sourceGone === null ? migration.from : migration.to, reason)]);
}

/** The last stamps are here, or will not come: the migration is over. */
export function settle(state: Moving, now: Now): Outcome<VmState> {
  const { migration } = state;
  const done = finished(migration, "completed", "accepted", now);
  if (done.do !== "finished") throw new CareofError("internal", "a finished migration has a result");
  const { pauseMs, gapDownMs, gapUpMs } = done.result;
  return write<VmState>({ ...state, migration: null }, [{ change: "measured", epoch: state.binding.epoch, pauseMs, gapDownMs, gapUpMs }], [done]);
}
