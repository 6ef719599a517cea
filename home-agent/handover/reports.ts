import { parseMigrationId, type HostId, type MigrationId } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import type { Body } from "../../proto/messages.js";
import { changeState, freshEpoch, type Now } from "../bindings/binding.js";
import { decide, write, type Effect, type Outcome } from "../outcome.js";
import { afterRelease, broken, onLateTarget } from "./given-back.js";
import { beforeRelease, type Migration, type MoveRules, type VmEvent, type VmState } from "./migration.js";
import { ask, askAbort, askResume } from "./questions.js";
import { abort, commitTarget, enter, giveBack, guestDied, reasoned, settle, type Moving } from "./steps.js";

type Said = (VmEvent & { readonly type: "said" })["body"];

/** What a host of a migration says. Each is a fact about that host, whatever the phase in which it arrives. */
export function onSaid(state: VmState, moving: Moving | null, host: HostId, body: Said, now: Now, rules: MoveRules): Outcome<VmState> {
  if (moving?.migration.id !== body.migration) return onLate(state, host, body, now, rules);
  const speaker = body.kind === "running" || body.kind === "targetEnded" ? moving.migration.to : moving.migration.from;
  if (host !== speaker) return decide(state, "not-permitted", `${host} has no say in that`);
  switch (body.kind) {
    case "leadReady": return onLeadReady(moving, now);
    case "switchOver": return onSwitchOver(moving, body, now);
    case "released": return onReleased(stamped(wentOver(moving, body), body.stopAt, body.markerAt, body.bytes), now, rules);
    case "running": return onRunning(moving, body, now, rules);
    case "sourceEnded": return onSourceEnded(moving, body, now, rules);
    case "targetEnded": return onTargetEnded(moving, body, now, rules);
  }
}

/** I4: the migration is over, nothing changes, unless a host contradicts what it was ended by. A source that has still not been told what became of its RELEASE is told. */
function onLate(state: VmState, host: HostId, body: Said, now: Now, rules: MoveRules): Outcome<VmState> {
  if (!isPast(state, body.migration) || body.kind === "leadReady" || body.kind === "switchOver") return decide(state, "not-moving");
  const target = body.kind === "running" ? "runs" : body.kind !== "targetEnded" || body.result === "target-died" ? null : body.result === "target-runs" ? "runs" : "never-ran";
  if (target !== null) {
    const late = onLateTarget(state, host, body.migration, target) ?? decide(state, "accepted");
    return { ...late, effects: [...late.effects, ...countedLate(state, host, body)] };
  }
  if (body.kind === "sourceEnded" && body.result === "source-runs" && isTargets(state, host, body.migration)) {
    return decide(state, "accepted", "", [broken(host, `${host} runs ${state.binding.vm} by ${body.migration}, and ${state.binding.owner ?? "nobody"} owns it`)]);
  }
  const released = body.kind === "released" || (body.kind === "sourceEnded" && body.result === "source-released");
  return released ? onLateRelease(state, host, body.migration, now, rules) : decide(state, "accepted");
}

/** What waited at the target of a move that was given back; it alone can say so. */
function countedLate({ givenBack }: VmState, host: HostId, body: Said): readonly Effect[] {
  if (body.kind !== "targetEnded" || body.undelivered === null || !givenBack.some(({ id, to }) => id === body.migration && to === host)) return [];
  return [{ do: "counted", migration: body.migration, undelivered: body.undelivered }];
}

export function onLateRelease(state: VmState, host: HostId, migration: MigrationId, now: Now, rules: MoveRules): Outcome<VmState> {
  return afterRelease(state, host, migration, now, (reopened) => onRunning(reopened, null, now, rules));
}

/** Whether that migration is the newest and was committed to its target: then no word of its source that it runs on can be a late one of before. */
function isTargets({ binding }: VmState, host: HostId, migration: MigrationId): boolean {
  return binding.owner !== null && binding.owner !== host && binding.epoch === parseMigrationId(migration).epoch;
}

/** Whether this VM's epochs have got that far: then it is a late message, else nobody's. */
function isPast(state: VmState, migration: MigrationId): boolean {
  const named = parseMigrationId(migration);
  return named.vm === state.binding.vm && named.epoch <= state.binding.issued;
}

function stamped(state: Moving, stopAt: Migration["stopAt"], markerAt: Migration["markerAt"], bytes: number | null): Moving {
  const { migration } = state;
  return { ...state, migration: { ...migration, stopAt: stopAt ?? migration.stopAt, markerAt: markerAt ?? migration.markerAt, bytes: bytes ?? migration.bytes } };
}

function wentOver(state: Moving, { postcopy, forced }: Body<"released">): Moving {
  const { migration } = state;
  return { ...state, migration: { ...migration, postcopy: migration.postcopy || postcopy, forced: migration.forced || forced } };
}

/** The gate is held: from now on new packets go to the target, and a marker behind the last old one tells the source when it has all. */
function onLeadReady(state: Moving, now: Now): Outcome<VmState> {
  const { migration } = state;
  const question = ask(migration.from, { ask: "lead", token: migration.token });
  if (migration.phase === "lead") return decide<VmState>(state, "accepted", "", [question]);
  if (migration.phase !== "copy") return decide<VmState>(state, "not-moving");
  if (!migration.lead) return decide<VmState>(state, "unsupported");
  return decide<VmState>(enter(state, "lead", now, { pointed: "target" }), "accepted", "", [question]);
}

function onSwitchOver(state: Moving, body: Body<"switchOver">, now: Now): Outcome<VmState> {
  const stopped = stamped(state, body.stopAt, body.markerAt, null);
  const seen: Moving = { ...stopped, migration: { ...stopped.migration, hold: body.hold } };
  const { phase } = state.migration;
  if (phase !== "copy" && phase !== "lead") return decide<VmState>(seen, "accepted");
  return decide<VmState>(enter(seen, "stop", now, { pointed: "target", lead: phase === "lead" }), "accepted");
}

function onReleased(state: Moving, now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration } = state;
  const released: Moving = { ...state, migration: { ...migration, released: true } };
  if (migration.phase === "released" || migration.phase === "reclaim" || migration.phase === "postcopy") return decide<VmState>(state, "accepted");
  if (migration.phase === "settle") return migration.running?.final === true ? settle(state, now) : decide<VmState>(state, "accepted");
  if (migration.neverRan) return reclaim(released, now);
  if (migration.phase === "lost") return migration.released ? decide<VmState>(state, "accepted") : write<VmState>(released);
  const committed = commitTarget(released, now, rules);
  const interim: Moving = { ...state, migration: { ...migration, pointed: "target" } };
  return write<VmState>(enter(committed.state, "released", now, { pointed: "target" }), committed.history, [], interim);
}

/** The source has given the right away and the target will never use it: the source may run again, under an epoch that is written first. */
function reclaim(state: Moving, now: Now): Outcome<VmState> {
  const { binding, migration } = state;
  const resumeEpoch = migration.resumeEpoch ?? freshEpoch(binding);
  const issued = resumeEpoch > binding.issued ? resumeEpoch : binding.issued;
  const next = enter({ ...state, binding: { ...binding, issued } }, "reclaim", now, { resumeEpoch, pointed: "source", neverRan: true });
  const interim: Moving = { ...state, migration: { ...migration, pointed: "source" } };
  return write<VmState>(next, [], migration.sourceGone === null ? [askResume(next.migration, "target-never-ran")] : [], interim);
}

function onRunning(state: Moving, body: Body<"running"> | null, now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration } = state;
  if (body !== null && body.epoch !== migration.epoch) return decide<VmState>(state, "stale-epoch");
  if (migration.neverRan) return contradicted(state, migration.to, `${migration.to} runs ${state.binding.vm} after it said that it never would`);
  // Its disk says that it was continued, and not whether all of its memory is there: its machine says that itself.
  if (body === null && migration.plan.postcopy) return decide<VmState>(state, "accepted");
  const fetching = body?.postcopy ?? false;
  const heard: Moving = { ...state, migration: { ...migration, released: true, postcopy: migration.postcopy || fetching, running: body ?? migration.running } };
  if (migration.phase === "settle") {
    // Released comes by another connection and carries the time of the stop: it may be the later one.
    if (fetching) return decide<VmState>(state, "accepted");
    return body?.final === true && heard.migration.stopAt !== null ? settle(heard, now) : decide<VmState>(heard, "accepted");
  }
  if (fetching && migration.phase === "postcopy") return decide<VmState>(heard, "accepted");
  const committed = commitTarget(heard, now, rules);
  const found = committed.state.binding.phase === "lost"
    ? changeState(committed.state.binding, "bound", { owner: migration.to, epoch: committed.state.binding.epoch, evidence: "migration" }, now)
    : committed.state.binding;
  const interim: Moving = { ...state, migration: { ...migration, pointed: "target" } };
  // The source has what the guest still needs: it is not revoked before that has come.
  if (fetching) return write<VmState>(enter({ ...committed.state, binding: found }, "postcopy", now, { pointed: "target", targetGone: null }), committed.history, [], interim);
  const settling = enter({ ...committed.state, binding: found }, "settle", now, { pointed: "target", targetGone: null });
  const revoke = ask(migration.from, { ask: "revoke", epoch: found.epoch, forwardTo: migration.to });
  if (body?.final === true && settling.migration.stopAt !== null) {
    const done = settle(settling, now);
    return write<VmState>(done.state, [...committed.history, ...(done.commit?.history ?? [])], [revoke, ...done.effects], interim);
  }
  return write<VmState>(settling, committed.history, [revoke], interim);
}

function onSourceEnded(state: Moving, body: Body<"sourceEnded">, now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration } = state;
  if (body.result === "source-released") return onReleased(state, now, rules);
  const reason = failure(body.reason);
  const open = beforeRelease(migration.phase) || (migration.phase === "lost" && !migration.released);
  if (body.result === "source-gone") {
    // The target has proven that it never ran there.
    if (migration.phase === "reclaim") return guestDied(reasoned(state, reason, body.detail), now, reason, body.detail);
    // A person has decided that it runs there or nowhere. The target is told now, and whatever it has on disk of the move is aborted when it registers.
    const decided = migration.phase === "lost" && migration.resumeEpoch !== null;
    if (!open && !decided) return decide<VmState>(state, "accepted");
    if (reason === "postcopy-broken") return guestDied(reasoned(state, reason, body.detail), now, reason, body.detail, [askAbort(migration, migration.to, reason)]);
    return guestDied(reasoned(state, "source-gone", body.detail), now, "source-gone", body.detail, [askAbort(migration, migration.to, "source-gone")]);
  }
  // Told to run it or not: the target has said that it does.
  const atTarget = migration.phase === "settle" || migration.phase === "postcopy";
  if (!open && (migration.resumeEpoch === null || atTarget)) return contradicted(state, migration.from, `${migration.from} runs ${state.binding.vm} after it gave the right to away`);
  return giveBack(reasoned(causeBefore(state, reason), reason, body.detail), now, rules, reason, migration.neverRan ? [] : [askAbort(migration, migration.to, reason)]);
}

/** All that a target sees of a source that gives up is a stream that breaks. Its word may come first: then it was not the reason, and the source says what was. */
function causeBefore(state: Moving, reason: Reason): Moving {
  const { migration } = state;
  const symptom = migration.reason === "migrate-failed" || migration.reason === "relay-failed";
  return symptom && reason !== "migrate-failed" && reason !== "relay-failed" ? { ...state, migration: { ...migration, reason: null, detail: "" } } : state;
}

function onTargetEnded(state: Moving, body: Body<"targetEnded">, now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration, binding } = state;
  if (body.result === "target-runs") return onRunning(state, null, now, rules);
  if (body.result === "target-died") {
    const why = body.reason === "postcopy-broken" ? body.reason : "target-gone";
    return guestDied(reasoned(state, why, body.detail), now, why, body.detail, [ask(migration.from, { ask: "revoke", epoch: migration.epoch, forwardTo: null })]);
  }
  if (migration.neverRan) return decide<VmState>(state, "accepted");
  const reason = failure(body.reason);
  const known = reasoned(state, reason, body.detail);
  const proven: Moving = { ...known, migration: { ...known.migration, neverRan: true, undelivered: body.undelivered } };
  switch (migration.phase) {
    case "prepare": return giveBack(proven, now, rules, reason);
    case "copy":
    case "lead":
    case "stop":
    case "aborting": {
      if (migration.sourceGone !== null) return giveBack(proven, now, rules, reason);
      const given = abort(proven, reason, now);
      return write<VmState>(given.state, [], given.effects, { ...state, migration: { ...migration, pointed: "source" } });
    }
    case "released": return reclaim(proven, now);
    case "lost": {
      if (migration.released) return reclaim(proven, now);
      if (migration.sourceGone !== null) return giveBack(proven, now, rules, reason);
      const { owner, epoch } = binding;
      const again = abort({ ...proven, binding: changeState(binding, "moving", { owner, epoch, evidence: "migration" }, now) }, reason, now);
      return write<VmState>(again.state, [], again.effects);
    }
    case "reclaim": return decide<VmState>(state, "accepted");
    case "postcopy":
    case "settle": return contradicted(state, migration.to, `${migration.to} says that ${binding.vm} never ran there, after it said that it does`);
  }
}

/** A host contradicts what it said before. Nothing is believed, a person is called. */
function contradicted(state: Moving, host: HostId, detail: string): Outcome<VmState> {
  return decide<VmState>(state, "not-permitted", detail, [broken(host, detail)]);
}

/** A failure never goes by the name of success. */
function failure(reason: Reason): Reason {
  return reason === "accepted" ? "migrate-failed" : reason;
}
