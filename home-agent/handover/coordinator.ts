import { migrationId, type HostId, type Millis } from "../../model/ids.js";
import { leadToken } from "../../model/lead-token.js";
import { changeState, freshEpoch, type Now } from "../bindings/binding.js";
import { bind, bindingDeadline, endGraces, type BindingEvent } from "../bindings/machine.js";
import { decide, write, type Outcome, type Question } from "../outcome.js";
import { ASK_AGAIN_MS, ASK_LIMIT, COPY_SLACK_MS, STAMPS_WAIT_MS, type Migration, type MoveRules, type VmEvent, type VmState } from "./migration.js";
import { copyLimit, movePlan } from "./move-plan.js";
import { ask, askAbort, askResume } from "./questions.js";
import { onHostBack, settleRecords } from "./recovery.js";
import { onSaid } from "./reports.js";
import { abort, commitTarget, enter, giveBack, lose, reasoned, settle, type Moving } from "./steps.js";

/**
 * The life of one VM: `(state, event, now) → (state, effects)`. Without a migration the binding machine decides; with one, this does. Events may come
 * in any order, twice or late: one final state.
 */
export function coordinate(state: VmState, event: VmEvent, now: Now, rules: MoveRules): Outcome<VmState> {
  const moving = state.migration === null ? null : { ...state, migration: state.migration };
  switch (event.type) {
    case "migrate": return onMigrate(state, event, now, rules);
    case "said": return onSaid(state, moving, event.host, event.body, now, rules);
    case "cancel": return moving?.migration.id === event.migration ? onCancel(moving, now, rules) : decide(state, "not-moving");
    case "disks-copied": return moving?.migration.id === event.migration ? onDisksCopied(moving, now) : decide(state, "not-moving");
    case "prepared": return moving?.migration.id === event.migration ? onPrepared(moving, event, now) : decide(state, "not-moving");
    case "refused": return moving?.migration.id === event.migration ? onRefused(moving, event, now, rules) : decide(state, "not-moving");
    case "host-gone": return moving === null ? decide(state, "accepted") : onHostGone(moving, event.host, now, rules);
    case "host-back": return moving === null ? settleRecords(state, event, event.records, now, rules) : onHostBack(moving, event, now, rules);
    case "resolve": return moving === null ? decide(state, "not-permitted", `${state.binding.vm} is not lost`) : onResolve(moving, event, now, rules);
    case "deadline": return moving === null ? inner(state, event, now, rules) : onDeadline(moving, now, rules);
    case "stop": return moving?.migration.phase === "lost" && moving.migration.postcopy && event.force ? onStopLost(moving, event, now, rules) : inner(state, event, now, rules);
    case "report":
    case "heartbeat":
    case "announcement":
    case "leaving":
    case "drained":
    case "came-home":
    case "restored":
    case "start":
    case "started":
    case "start-failed":
    case "stopped":
    case "stop-failed": return inner(state, event, now, rules);
  }
}

/** When a `deadline` event is due, monotonic. */
export function vmDeadline(state: VmState, rules: MoveRules): Millis | null {
  const { migration } = state;
  if (migration === null) return bindingDeadline(state.binding, rules);
  const limits = rules.handover;
  const times: number[] = state.binding.graces.map((grace) => grace.until);
  const gone = (since: Millis | null, limit: Millis): void => {
    if (since !== null) times.push(since + limit);
  };
  const again = migration.phaseAt + ASK_AGAIN_MS * (migration.tries + 1);
  switch (migration.phase) {
    case "prepare":
      gone(migration.targetGone, limits.targetGoneMs);
      break;
    case "copy":
    case "lead":
    case "stop":
      gone(migration.targetGone, limits.targetGoneMs);
      gone(migration.sourceGone, limits.sourceGoneMs);
      times.push(migration.phaseAt + copyLimit(migration.plan) + COPY_SLACK_MS);
      break;
    case "aborting":
      if (migration.sourceGone !== null && migration.targetGone !== null) times.push(Math.max(migration.sourceGone + limits.sourceGoneMs, migration.targetGone + limits.lostAfterMs));
      times.push(again);
      break;
    case "released":
      gone(migration.targetGone, limits.lostAfterMs);
      times.push(again);
      break;
    case "reclaim":
      gone(migration.sourceGone, limits.lostAfterMs);
      times.push(again);
      break;
    case "postcopy":
      gone(migration.targetGone, limits.lostAfterMs);
      break;
    case "settle":
      times.push(migration.phaseAt + STAMPS_WAIT_MS);
      break;
    case "lost": break;
  }
  return times.length === 0 ? null : (Math.min(...times) as Millis);
}

/** The binding machine's decision about a VM. While something moves, it only hears signs of life. */
function inner(state: VmState, event: BindingEvent, now: Now, rules: MoveRules): Outcome<VmState> {
  const outcome = bind(state.binding, event, now, rules);
  if (state.migration !== null && event.type === "stop") return decide(state, "already-moving", `${state.binding.vm} is in a migration`);
  const around = (binding: VmState["binding"] | null): VmState | null =>
    binding === null ? null : { ...state, binding, givenBack: binding.owner === state.binding.owner ? state.givenBack : [] };
  if (state.migration !== null && state.binding.phase !== outcome.state.phase) {
    // After n+1 is committed the binding is "bound" while the migration is still open: what would end or move it waits until that is settled.
    // Whoever waits for an answer gets it all the same.
    const answers = outcome.effects.filter((effect) => effect.do === "started" || effect.do === "stopped");
    return decide(state, "already-moving", `${state.binding.vm} is in a migration`, answers);
  }
  return { ...outcome, state: around(outcome.state) ?? state, interim: around(outcome.interim) };
}

function onMigrate(state: VmState, event: VmEvent & { type: "migrate" }, now: Now, rules: MoveRules): Outcome<VmState> {
  const { binding, migration } = state;
  const { host } = event;
  if (!rules.hosts.includes(host)) return decide(state, "not-listed", `${host} is not among the hosts of ${binding.vm}`);
  if (rules.driver === "external") return decide(state, "unsupported", `${binding.vm} is moved by somebody else (driver external)`);
  if (migration !== null) return decide(state, "already-moving", `${binding.vm} moves from ${migration.from} to ${migration.to}`);
  if (binding.phase !== "bound" || binding.owner === null) return decide(state, "not-bound", `${binding.vm} is ${binding.phase}`);
  if (binding.stopping) return decide(state, "stop-pending", `${binding.vm} is being stopped`);
  if (binding.owner === host) return decide(state, "already-here", `${binding.vm} is on ${host}`);
  if (!event.sourceConnected) return decide(state, "host-gone", `${binding.owner} is not connected`);
  if (!event.targetConnected) return decide(state, "host-gone", `${host} is not connected`);
  const plan = movePlan(event.wishes ?? {}, rules.handover);
  if (plan.postcopy && plan.channels > 1) return decide(state, "unsupported", "postcopy goes over one channel: QEMU's multifd cannot do it");
  const epoch = freshEpoch(binding);
  const moving = { ...changeState(binding, "moving", { owner: binding.owner, epoch: binding.epoch, evidence: "migration" }, now), issued: epoch };
  const opened: Migration = {
    id: migrationId(binding.vm, epoch), from: binding.owner, to: host, epoch, actor: event.actor, startedAt: now.wall, targetLife: event.targetLife, phase: "prepare",
    plan, released: false, postcopy: false, forced: false, neverRan: false, resumeEpoch: null, reason: null, detail: "", cancelled: false,
    startedMono: now.mono, pointed: "source", lead: rules.handover.lead && event.sourceCanLead, token: leadToken(epoch),
    sourceGone: null, targetGone: null, phaseAt: now.mono, tries: 0, hold: null, undelivered: null, stopAt: null, markerAt: null, bytes: null, running: null,
  };
  return write<VmState>({ ...state, binding: moving, migration: opened }, [], [ask(host, { ask: "prepare" })]);
}

function onPrepared(state: Moving, event: VmEvent & { type: "prepared" }, now: Now): Outcome<VmState> {
  const { migration } = state;
  if (migration.phase !== "prepare") return decide<VmState>(state, "accepted");
  const lead = migration.lead && event.canLead;
  const question: Question = { ask: "migrate", relayAddress: event.relayAddress, relayPort: event.relayPort, lead };
  return decide<VmState>(enter(state, "copy", now, { lead }), "accepted", "", [ask(migration.from, question)]);
}

/** The limit of the copy counts from here on. */
function onDisksCopied(state: Moving, now: Now): Outcome<VmState> {
  if (state.migration.phase !== "copy") return decide<VmState>(state, "not-moving");
  return decide<VmState>({ ...state, migration: { ...state.migration, phaseAt: now.mono } }, "accepted");
}

/** Until Migrate was sent the source has not been touched. After that, only its own word says that it runs on; "not-moving" is one: it never began. */
function onRefused(state: Moving, event: VmEvent & { type: "refused" }, now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration } = state;
  if (event.ask === "prepare" && migration.phase === "prepare") {
    return giveBack(reasoned(state, event.reason, event.detail), now, rules, event.reason, [askAbort(migration, migration.to, event.reason)]);
  }
  if (event.ask === "migrate" && migration.phase === "copy") {
    if (event.answered) return giveBack(reasoned(state, event.reason, event.detail), now, rules, event.reason, [askAbort(migration, migration.to, event.reason)]);
    return abort(state, event.reason, now);
  }
  if (event.ask === "abort" && migration.phase === "aborting" && event.answered && event.reason === "not-moving") {
    return giveBack(state, now, rules, event.reason, [askAbort(migration, migration.to, migration.reason ?? event.reason)]);
  }
  return decide<VmState>(state, "accepted");
}

function onCancel(state: Moving, now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration } = state;
  const cancelled: Moving = { ...state, migration: { ...migration, cancelled: true, reason: "cancelled-by-operator" } };
  if (migration.phase === "prepare") return giveBack(cancelled, now, rules, "cancelled-by-operator", [askAbort(migration, migration.to, "cancelled-by-operator")]);
  if (migration.phase === "copy" || migration.phase === "lead" || migration.phase === "stop") return abort(cancelled, "cancelled-by-operator", now);
  if (migration.phase === "aborting") return decide<VmState>(state, "accepted", "it is being given up already");
  return decide<VmState>(state, "not-permitted", "the source has given the right to run away: too late to cancel");
}

function onHostGone(state: Moving, host: HostId, now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration } = state;
  const marked = {
    ...migration,
    sourceGone: host === migration.from ? (migration.sourceGone ?? now.mono) : migration.sourceGone,
    targetGone: host === migration.to ? (migration.targetGone ?? now.mono) : migration.targetGone,
  };
  const next: Moving = { ...state, migration: marked };
  // The target's proof is all that was wanted, and the source cannot be asked any more: it runs there or nowhere.
  return migration.phase === "aborting" && migration.neverRan && host === migration.from ? giveBack(next, now, rules, "source-gone") : decide<VmState>(next, "accepted");
}

function onDeadline(before: Moving, now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration } = before;
  const state: Moving = { ...before, binding: endGraces(before.binding, now) };
  const limits = rules.handover;
  const over = (since: Millis | null, limit: number): boolean => since !== null && now.mono - since >= limit;
  const sourceGone = over(migration.sourceGone, limits.sourceGoneMs);
  const again = now.mono - migration.phaseAt >= ASK_AGAIN_MS * (migration.tries + 1);
  const retried: Moving = { ...state, migration: { ...migration, tries: migration.tries + 1 } };
  switch (migration.phase) {
    case "prepare":
      if (over(migration.targetGone, limits.targetGoneMs)) return giveBack(reasoned(state, "target-gone"), now, rules, "target-gone");
      break;
    case "copy":
    case "lead":
    case "stop":
      if (over(migration.targetGone, limits.targetGoneMs)) return abort(state, "target-gone", now);
      if (sourceGone) return abort(state, "source-gone", now);
      if (over(migration.phaseAt, copyLimit(migration.plan) + COPY_SLACK_MS)) return abort(state, "timed-out", now);
      break;
    case "aborting":
      if (sourceGone && over(migration.targetGone, limits.lostAfterMs)) return lose(state, now, "neither host can be asked whether it runs");
      if (again && migration.tries >= ASK_LIMIT) return lose(state, now, "no host says whether it runs");
      if (again) return decide<VmState>(retried, "accepted", "", [askAbort(migration, migration.sourceGone === null ? migration.from : migration.to, migration.reason ?? "timed-out")]);
      break;
    case "released":
      if (over(migration.targetGone, limits.lostAfterMs)) return lose(state, now, `${migration.to} was given the right to run and is gone`);
      if (again && migration.tries >= ASK_LIMIT) return lose(state, now, `${migration.to} was given the right to run and does not say that it does`);
      if (again) return decide<VmState>(retried, "accepted");
      break;
    case "reclaim":
      if (over(migration.sourceGone, limits.lostAfterMs)) return giveBack(state, now, rules, migration.reason ?? "source-gone");
      if (again) return decide<VmState>(retried, "accepted", "", migration.sourceGone === null ? [askResume(state.migration, "target-never-ran")] : []);
      break;
    case "postcopy":
      if (over(migration.targetGone, limits.lostAfterMs)) return lose(state, now, `${migration.to} runs it, memory of it was still at ${migration.from}, and ${migration.to} is gone`);
      break;
    case "settle":
      if (now.mono - migration.phaseAt >= STAMPS_WAIT_MS) return settle(state, now);
      break;
    case "lost": break;
  }
  return decide<VmState>(state, "accepted");
}

/** What went by postcopy has no way back to its source: a person gives it up instead. */
function onStopLost(state: Moving, event: BindingEvent & { readonly type: "stop" }, now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration } = state;
  // The RELEASE may have turned up when it was lost already: then n+1 is not committed, and the source takes no revocation that is older than what it released under.
  const committed = commitTarget(state, now, rules);
  const { epoch } = committed.state.binding;
  const bound = changeState(committed.state.binding, "bound", { owner: migration.to, epoch, evidence: "operator" }, now);
  const outcome = inner({ ...committed.state, binding: bound, migration: null }, event, now, rules);
  const history = [...committed.history, ...(outcome.commit?.history ?? [])];
  return { ...outcome, commit: { history }, effects: [ask(migration.from, { ask: "revoke", epoch, forwardTo: null }), ...outcome.effects] };
}

function onResolve(state: Moving, event: VmEvent & { type: "resolve" }, now: Now, rules: MoveRules): Outcome<VmState> {
  const { migration, binding } = state;
  if (migration.phase !== "lost") return decide<VmState>(state, "not-permitted", `${binding.vm} is not lost: it is in "${migration.phase}"`);
  if (event.host !== migration.from && event.host !== migration.to) return decide<VmState>(state, "not-permitted", `it may be on ${migration.from} or on ${migration.to}, nowhere else`);
  if (!event.connected) return decide<VmState>(state, "host-gone", `${event.host} is not connected`);
  if (event.host === migration.from && migration.postcopy) {
    return decide<VmState>(state, "postcopy-broken", `it went to ${migration.to} by postcopy and can never run on ${migration.from} again; \`careof stop ${binding.vm} --force\` gives it up, \`careof start\` starts it from its disks`);
  }
  if (event.host === migration.from) {
    const epoch = migration.resumeEpoch ?? freshEpoch(binding);
    const asked: Moving = { ...state, binding: { ...binding, issued: epoch > binding.issued ? epoch : binding.issued }, migration: { ...migration, resumeEpoch: epoch } };
    return write<VmState>(asked, [], [askResume(asked.migration, "resolved-by-operator")]);
  }
  if (!migration.released) return decide<VmState>(state, "released-unknown", `${migration.to} can only run with the RELEASE of ${migration.from}, and that was never seen`);
  // The source was told to run it, and may by now, whether or not it is there to say so. Its word may have got lost with its connection, and after a restart of this process nobody is there at first.
  if (migration.resumeEpoch !== null && !event.force) {
    const { from, to } = migration;
    return decide<VmState>(state, "not-permitted", `${from} was told to run ${binding.vm} and has not said yet whether it does: its own word decides as soon as it is heard. If you have seen to it that ${binding.vm} does not run on ${from}, and will not: \`careof resolve ${binding.vm} ${to} --force\``);
  }
  const found: Moving = { ...state, migration: { ...migration, pointed: "target" } };
  const committed = commitTarget(found, now, rules);
  const bound = changeState(committed.state.binding, "bound", { owner: migration.to, epoch: committed.state.binding.epoch, evidence: "operator" }, now);
  // Whoever decided for the source before has changed his mind: nothing that the source may say of that counts any more.
  const { epoch } = bound;
  return write<VmState>(enter({ ...committed.state, binding: bound }, "released", now, { targetGone: null, resumeEpoch: null }), [...committed.history, { change: "caused", epoch, cause: "resolved", actor: event.actor }]);
}
