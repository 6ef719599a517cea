import type { MigrationRecord } from "../../proto/messages.js";
import type { Now } from "../bindings/binding.js";
import { keptItsState } from "../host-life.js";
import { both, decide, type Outcome } from "../outcome.js";
import { broken, isUnknown, onLateTarget, unknownHere } from "./given-back.js";
import { beforeRelease, type MoveRules, type VmEvent, type VmState } from "./migration.js";
import { ask, askAbort, askResume } from "./questions.js";
import { onLateRelease, onSaid } from "./reports.js";
import { abort, lose, type Moving } from "./steps.js";

/**
 * A host of an open migration has registered (again), with what it has on disk. After a restart of this process that is how the migration
 * goes on; after a mere loss of the connection it mostly changes nothing.
 */
export function onHostBack(state: Moving, event: HostBack, now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration } = state;
  const side = event.host === migration.from ? "source" : event.host === migration.to ? "target" : null;
  if (side === null) return settleRecords(state, event, event.records, now, rules);
  const record = event.records.find((each) => each.migration === migration.id && each.side === side)?.state ?? null;
  const outcome = side === "source"
    ? sourceBack({ ...state, migration: { ...migration, sourceGone: null } }, record, event.reported, now, rules)
    : targetBack({ ...state, migration: { ...migration, targetGone: null } }, record, event, now, rules);
  const older = event.records.filter((each) => each.migration !== migration.id);
  return both(outcome, (after) => settleRecords(after, event, older, now, rules));
}

type Recorded = MigrationRecord["state"] | null;
type HostBack = VmEvent & { type: "host-back" };

function sourceBack(state: Moving, record: Recorded, reported: HostBack["reported"], now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration } = state;
  const said = (result: "source-runs" | "source-released"): Outcome<VmState> =>
    onSaid(state, state, migration.from, { kind: "sourceEnded", migration: migration.id, result, reason: "migrate-failed", detail: "" }, now, rules);
  const revoke = ask(migration.from, { ask: "revoke", epoch: migration.epoch, forwardTo: migration.to });
  // Without a record it has settled that already: it was told to run the guest by an earlier word.
  if (migration.phase === "reclaim") return record === "resumed" || (record === null && reported === "runs") ? said("source-runs") : decide<VmState>(state, "accepted", "", [askResume(migration, "target-never-ran")]);
  if (migration.phase === "postcopy") return record === "resumed" ? said("source-runs") : decide<VmState>(state, "accepted");
  if (migration.phase === "settle" && record === "resumed") return said("source-runs");
  if (migration.phase === "settle") return decide<VmState>(state, "accepted", "", record === "released" ? [revoke] : []);
  if (record === "released") {
    const known = said("source-released");
    // A person has decided for it, and its record says that it has not heard of that.
    return migration.phase === "lost" && migration.resumeEpoch !== null ? { ...known, effects: [...known.effects, askResume(migration, "resolved-by-operator")] } : known;
  }
  if (record === "resumed") return said("source-runs");
  if (record === "active") return decide<VmState>(state, "accepted", "", migration.phase === "aborting" ? [askAbort(migration, migration.from, migration.reason ?? "timed-out")] : []);
  if (!beforeRelease(migration.phase) || migration.phase === "prepare") return decide<VmState>(state, "accepted");
  // It has no record: it never began, or was aborted and has settled that.
  if (reported === "runs" || reported === "paused" || migration.neverRan) return said("source-runs");
  return abort({ ...state, migration: { ...migration, sourceGone: now.mono } }, "source-gone", now);
}

function targetBack(state: Moving, record: Recorded, { reported, life }: HostBack, now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration } = state;
  const said = (result: "target-runs" | "target-never-ran"): Outcome<VmState> =>
    onSaid(state, state, migration.to, { kind: "targetEnded", migration: migration.id, result, reason: "target-gone", detail: "", undelivered: null }, now, rules);
  if (migration.phase === "settle" || migration.phase === "reclaim" || migration.phase === "prepare") return decide<VmState>(state, "accepted");
  // What is on its disk is spoken for by its own machine.
  if (migration.phase === "postcopy") return record === "continued" || reported === "runs" ? decide<VmState>(state, "accepted") : onSaid(state, state, migration.to, { kind: "targetEnded", migration: migration.id, result: "target-died", reason: "target-gone", detail: "it has no guest any more", undelivered: null }, now, rules);
  if (record === "continued" || reported === "runs") return said("target-runs");
  if (record === "prepared") return decide<VmState>(state, "accepted", "", migration.phase === "aborting" && migration.sourceGone !== null ? [askAbort(migration, migration.to, migration.reason ?? "source-gone")] : []);
  if (record === null && !keptItsState(migration.targetLife, life)) return unproven(state, now);
  // "never-ran", or nothing on the same disk: what was not written down can never be continued.
  return said("target-never-ran");
}

/** The target does not remember, and not because there was nothing: whether it runs the guest that it was given cannot be known from it any more. */
function unproven(state: Moving, now: Now): Outcome<VmState> {
  const { migration, binding } = state;
  const detail = `${migration.to} has lost what it knew of ${migration.id}: ${binding.vm} may run there all the same`;
  if (migration.neverRan) return decide<VmState>(state, "accepted");
  if (migration.phase === "released") return lose(state, now, detail);
  const alarm = broken(migration.to, detail);
  if (migration.phase === "aborting" || migration.phase === "lost") return decide<VmState>(state, "accepted", "", [alarm]);
  const given = abort(state, "target-gone", now);
  return { ...given, effects: [alarm, ...given.effects] };
}

/** A host remembers migrations that are settled here: it is told what became of them. */
export function settleRecords(state: VmState, back: HostBack, records: readonly MigrationRecord[], now: Now, rules: MoveRules): Outcome<VmState> {
  return records.reduce((outcome, record) => both(outcome, (before) => settleRecord(before, back, record, now, rules)), decide(state, "accepted"));
}

function settleRecord(state: VmState, { host, reported }: HostBack, { migration, state: recorded }: MigrationRecord, now: Now, rules: MoveRules): Outcome<VmState> {
  const { owner, vm } = state.binding;
  switch (recorded) {
    case "prepared":
      // It would be destroyed, and nobody here knows whether its source has given the right to run away.
      if (isUnknown(state, migration)) return decide(state, "accepted", "", [unknownHere(host, `is prepared for ${migration}`)]);
      return decide(state, "accepted", "", [ask(host, { ask: "abort", migration, reason: "not-moving" })]);
    // Before RELEASE the guest runs on.
    case "active": return decide(state, "accepted", "", [ask(host, { ask: "abort", migration, reason: "not-moving" })]);
    case "released": return onLateRelease(state, host, migration, now, rules);
    case "never-ran": return onLateTarget(state, host, migration, "never-ran") ?? decide(state, "accepted");
    case "continued": {
      const alarm = owner === host ? [] : [broken(host, `${host} has continued ${migration}, but ${owner ?? "nobody"} owns ${vm}`)];
      return onLateTarget(state, host, migration, "runs") ?? decide(state, "accepted", "", alarm);
    }
    // It was given the right to run again, by a person's word, say, who has changed his mind since.
    case "resumed": return decide(state, "accepted", "", owner !== null && owner !== host && reported === "runs" ? [broken(host, `${host} runs ${vm} again after ${migration}, but ${owner} owns it`)] : []);
  }
}
