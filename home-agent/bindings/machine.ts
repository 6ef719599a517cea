import { NEVER_BOUND, type Epoch, type HostId, type Millis } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import type { VmReport } from "../../proto/messages.js";
import type { Cause, HistoryChange } from "../history.js";
import { decide, write, type Effect, type Outcome } from "../outcome.js";
import { alarms, alarmsAt, claim, consider, onOutside, unseen, withdraw, type OutsideEvent, type OwnerNow } from "./announcements.js";
import { changeState, freshEpoch, type Binding, type Evidence, type Now } from "./binding.js";

/** What the configuration says about one VM. */
export interface Rules {
  readonly hosts: readonly HostId[];
  readonly driver: "qemu" | "external";
  readonly lifetimeMs: Millis;
  readonly graceMs: Millis;
}

export type BindingEvent =
  | OutsideEvent
  | { readonly type: "report"; readonly host: HostId; readonly report: VmReport; readonly careOfListed: boolean; readonly ownerConnected: boolean; readonly ownerPassesOn: boolean }
  | { readonly type: "heartbeat"; readonly via: HostId | null; readonly ownerConnected: boolean; readonly ownerPassesOn: boolean }
  /** Its own announcement was heard on the home LAN (RFC 5944 §4.6). */
  | { readonly type: "came-home" }
  | { readonly type: "deadline" }
  | { readonly type: "restored" }
  | { readonly type: "start"; readonly host: HostId; readonly actor: string; readonly connected: boolean }
  | { readonly type: "started"; readonly host: HostId; readonly epoch: Epoch }
  | { readonly type: "start-failed"; readonly host: HostId; readonly epoch: Epoch; readonly reason: Reason; readonly detail: string; readonly answered: boolean }
  /** `giveBack`: the guest runs on, and is nobody's any more. */
  | { readonly type: "stop"; readonly force: boolean; readonly giveBack?: boolean; readonly ownerConnected: boolean }
  | { readonly type: "stopped"; readonly host: HostId; readonly epoch: Epoch; readonly detail?: string }
  | { readonly type: "stop-failed"; readonly reason: Reason; readonly detail: string };

/** Former hosts of one VM that are heard at the same time. */
const MAX_GRACES = 4;

/** When the machine wants a `deadline` event, monotonic; `null`: never. Earlier or repeated ones do no harm. */
export function bindingDeadline(binding: Binding, rules: Rules): Millis | null {
  const times: number[] = [...binding.graces.map((grace) => grace.until), ...alarmsAt(binding)];
  if (binding.seenAt !== null && binding.phase === "bound") times.push(binding.seenAt + rules.lifetimeMs);
  if (binding.seenAt !== null && binding.phase === "stale") times.push(binding.seenAt + 2 * rules.lifetimeMs);
  return times.length === 0 ? null : (Math.min(...times) as Millis);
}

/** One VM's binding, outside a migration: `(state, event, now) → (state, effects)`. Inside one, the handover coordinator has the word and asks this for the rest. */
export function bind(binding: Binding, event: BindingEvent, now: Now, rules: Rules): Outcome<Binding> {
  switch (event.type) {
    case "report": return onReport(binding, event, now, rules);
    case "heartbeat": return onHeartbeat(binding, event, now, rules);
    case "announcement":
    case "leaving":
    case "drained": return onOutside(binding, event, now, rules);
    case "came-home": return onCameHome(binding, now, rules);
    case "deadline": return onDeadline(binding, now, rules);
    case "restored": return decide({ ...binding, seenAt: binding.phase === "none" ? null : now.mono, evidence: binding.phase === "none" ? "none" : "restored", ownerSees: true, starting: binding.starting === null ? null : { ...binding.starting, asked: false } }, "accepted");
    case "start": return onStart(binding, event, now, rules);
    case "started": {
      if (binding.starting?.host !== event.host || binding.starting.epoch !== event.epoch) return decide(binding, "stale-epoch");
      return own(binding, event.host, event.epoch, "started", "start", binding.starting.actor, now, [{ do: "started", epoch: event.epoch, reason: "accepted", detail: "" }]);
    }
    case "start-failed": return onStartFailed(binding, event);
    case "stop": return onStop(binding, event, now);
    case "stopped":
      if (binding.owner !== event.host || binding.epoch !== event.epoch) return decide(binding, "stale-epoch", "", [{ do: "stopped", reason: "accepted", detail: "" }]);
      return end(binding, now, [{ do: "stopped", reason: "accepted", detail: event.detail ?? "" }]);
    case "stop-failed": return decide({ ...binding, stopping: false }, event.reason, event.detail, [{ do: "stopped", reason: event.reason, detail: event.detail }]);
  }
}

/** `host` becomes the owner under `epoch`; written before it is acknowledged. */
export function own(binding: Binding, host: HostId, epoch: Epoch, evidence: Evidence, cause: Cause, actor: string, now: Now, effects: readonly Effect[] = []): Outcome<Binding> {
  const next = changeState(binding, "bound", { owner: host, epoch, evidence }, now);
  return write(next, [{ change: "open", epoch, host, cause, actor, at: now.wall }], effects);
}

/** The VM is nobody's any more; its epoch stays as memory. */
export function end(binding: Binding, now: Now, effects: readonly Effect[] = []): Outcome<Binding> {
  const history: HistoryChange[] = [{ change: "close", at: now.wall }];
  return write({ ...changeState(binding, "none", { owner: null, epoch: binding.epoch, evidence: "none" }, now), seenAt: null, ownerSees: false, graces: [] }, history, effects);
}

/** A sign of life that may count for the owner. Only coming back from `expired`, which is on disk, is written. */
export function refresh(binding: Binding, evidence: Evidence, now: Now): Outcome<Binding> {
  if (binding.phase === "moving" || binding.phase === "lost") return decide({ ...binding, seenAt: now.mono }, "accepted");
  const next = changeState(binding, "bound", { owner: binding.owner, epoch: binding.epoch, evidence }, now);
  return binding.phase === "expired" ? write(next) : decide(next, "accepted");
}

function onReport(binding: Binding, event: BindingEvent & { type: "report" }, now: Now, rules: Rules): Outcome<Binding> {
  const { host, report } = event;
  if (!rules.hosts.includes(host)) return decide(binding, "not-listed");
  if (!event.careOfListed) return decide(binding, "foreign-care-of");
  const runs = report.state === "runs" || report.state === "paused";
  const starting = binding.starting;
  if (starting?.host === host) {
    if (runs && (report.basedOn === starting.epoch || report.basedOn === binding.epoch)) return own(binding, host, starting.epoch, "started", "start", starting.actor, now, [{ do: "started", epoch: starting.epoch, reason: "accepted", detail: "" }]);
    if (report.state === "absent" && !starting.asked) return write({ ...binding, starting: null }, [], [{ do: "started", epoch: starting.epoch, reason: "start-failed", detail: "the host says that it does not run" }]);
  }
  if (!runs) return onDenial(binding, event, now, rules);
  if (report.basedOn !== binding.epoch) return decide(binding, "stale-epoch");
  if (binding.owner === host && binding.phase !== "none") return refresh(binding, "report", now);
  if (binding.phase === "moving" || binding.phase === "lost") return decide(binding, "not-owner");
  if (binding.phase === "none" || binding.phase === "expired") return own(binding, host, freshEpoch(binding), "registration", "registration", host, now);
  const owner = ownerNow(binding, event);
  if (rules.driver === "external" && (report.evidence === "running" || !owner.sees)) return claim(binding, host, "announcement", owner.passesOn, now, rules);
  return owner.sees ? bothClaim(binding, host) : decide(binding, "not-owner");
}

/** The host does not run the guest: it counts only from the owner, and only of the present epoch (RFC 5213 §5.3.5). */
function onDenial(binding: Binding, event: BindingEvent & { type: "report" }, now: Now, rules: Rules): Outcome<Binding> {
  const { host, report } = event;
  if (report.state !== "absent") return decide(binding, "accepted");
  if (binding.owner !== host) return decide(withdraw(binding, host), "not-owner");
  if (report.basedOn !== binding.epoch || report.basedOn === NEVER_BOUND) return decide(binding, "stale-epoch");
  const over = report.evidence === "stopped" || report.evidence === "guest-gone";
  if (over && binding.phase !== "moving" && binding.phase !== "lost") {
    const died: Effect = { do: "alarm", alarm: "guest-died", hosts: [host], detail: `${binding.vm} has ended on ${host}, and nobody asked it to` };
    return end(binding, now, report.evidence === "guest-gone" && !binding.stopping ? [died] : []);
  }
  return binding.phase === "moving" || binding.phase === "lost" ? decide({ ...binding, ownerSees: false }, "accepted") : unseen(binding, now, rules);
}

function onHeartbeat(binding: Binding, event: BindingEvent & { type: "heartbeat" }, now: Now, rules: Rules): Outcome<Binding> {
  const { via } = event;
  if (via !== null && !rules.hosts.includes(via)) return decide(binding, "not-listed");
  const beaten = { ...binding, lastHeartbeat: now.wall };
  if (via === null || via === binding.owner) return binding.phase === "none" ? decide(beaten, "accepted") : refresh({ ...beaten, ownerSees: binding.ownerSees || via !== null }, "heartbeat", now);
  if (binding.phase === "moving" || binding.phase === "lost") return decide(beaten, "accepted");
  if (rules.driver !== "external") return decide(binding, "not-owner");
  if (binding.phase === "none" || binding.phase === "expired") return own(beaten, via, freshEpoch(binding), "heartbeat", "heartbeat", via, now);
  return consider(beaten, via, "heartbeat", ownerNow(binding, event), now, rules);
}

/** Two questions, not one: the word of an owner whose connection is gone does not stand any more, while what its data plane was told does for a while. */
function ownerNow(binding: Binding, { ownerConnected, ownerPassesOn }: { readonly ownerConnected: boolean; readonly ownerPassesOn: boolean }): OwnerNow {
  return { sees: ownerConnected && binding.ownerSees, passesOn: ownerPassesOn };
}

/** Like an announcement at a host: for a VM that something else moves it says where the VM is. One that careof runs itself cannot be there. */
function onCameHome(binding: Binding, now: Now, rules: Rules): Outcome<Binding> {
  const { owner, phase } = binding;
  if (phase === "none") return decide(binding, "accepted");
  if (rules.driver === "external" && phase !== "moving" && phase !== "lost") return end(binding, now);
  return decide(binding, "both-claim", "", [{ do: "alarm", alarm: "both-claim", hosts: owner === null ? [] : [owner], detail: `${binding.vm} announced itself on the home LAN, and is ${phase}${owner === null ? "" : ` on ${owner}`}; nothing was moved` }]);
}

function bothClaim(binding: Binding, host: HostId): Outcome<Binding> {
  const hosts = binding.owner === null ? [host] : [binding.owner, host];
  return decide(binding, "both-claim", "", [{ do: "alarm", alarm: "both-claim", hosts, detail: `${binding.vm} is claimed by ${hosts.join(" and ")}; nothing was moved` }]);
}

/** The host that a VM has left may send for it a little longer. */
export function withGrace(binding: Binding, host: HostId | null, now: Now, rules: Rules): Binding {
  if (host === null || host === binding.owner) return binding;
  const others = binding.graces.filter((grace) => grace.host !== host && grace.host !== binding.owner).slice(1 - MAX_GRACES);
  return { ...binding, graces: [...others, { host, until: (now.mono + rules.graceMs) as Millis }] };
}

export function endGraces(binding: Binding, now: Now): Binding {
  const graces = binding.graces.filter((grace) => grace.until > now.mono);
  if (graces.length === binding.graces.length) return binding;
  const { outside } = binding;
  const drained = outside.drain !== null && !graces.some((grace) => grace.host === outside.drain?.from);
  return { ...binding, graces, outside: drained ? { ...outside, drain: null } : outside };
}

function onDeadline(binding: Binding, now: Now, rules: Rules): Outcome<Binding> {
  const { binding: next, effects } = alarms(endGraces(binding, now), now);
  const silent = binding.seenAt === null ? 0 : now.mono - binding.seenAt;
  const { owner, epoch, evidence } = binding;
  if (next.phase === "bound" && silent >= rules.lifetimeMs) return onDeadline(changeState(next, "stale", { owner, epoch, evidence }, now), now, rules);
  if (next.phase === "stale" && silent >= 2 * rules.lifetimeMs) return write(changeState(next, "expired", { owner, epoch, evidence }, now));
  return decide(next, "accepted", "", effects);
}

function onStart(binding: Binding, event: BindingEvent & { type: "start" }, _now: Now, rules: Rules): Outcome<Binding> {
  const { host, actor } = event;
  if (!rules.hosts.includes(host)) return decide(binding, "not-listed", `${host} is not among the hosts of ${binding.vm}`);
  if (rules.driver === "external") return decide(binding, "unsupported", `${binding.vm} is started by somebody else (driver external)`);
  if (binding.starting !== null) return decide(binding, "start-pending", `${binding.starting.host} was asked to start ${binding.vm} and has not answered`);
  if (binding.phase === "expired" && binding.owner !== host) return decide(binding, "already-running", `${binding.vm} may still run on ${String(binding.owner)}, which is silent; make sure that it does not, then stop it with force`);
  if (binding.phase !== "none" && binding.phase !== "expired") return decide(binding, "already-running", `${binding.vm} is ${binding.phase} on ${String(binding.owner)}`);
  if (!event.connected) return decide(binding, "host-gone", `${host} is not connected`);
  const epoch = freshEpoch(binding);
  return write({ ...binding, issued: epoch, starting: { host, epoch, actor, asked: true } }, [], [{ do: "ask", host, what: { ask: "start", epoch } }]);
}

function onStartFailed(binding: Binding, event: BindingEvent & { type: "start-failed" }): Outcome<Binding> {
  const { starting } = binding;
  if (starting?.host !== event.host || starting.epoch !== event.epoch) return decide(binding, "stale-epoch");
  const told: Effect = { do: "started", epoch: event.epoch, reason: event.reason, detail: event.detail };
  if (event.answered) return write({ ...binding, starting: null }, [], [told]);
  return decide({ ...binding, starting: { ...starting, asked: false } }, event.reason, event.detail, [
    told,
    { do: "alarm", alarm: "start-pending", hosts: [event.host], detail: `${event.host} was asked to start ${binding.vm} and did not answer: it may run there` },
  ]);
}

function onStop(binding: Binding, event: BindingEvent & { type: "stop" }, now: Now): Outcome<Binding> {
  const { owner, epoch } = binding;
  const giveBack = event.giveBack ?? false;
  if (binding.phase === "moving" || binding.phase === "lost") return decide(binding, "already-moving", `${binding.vm} is ${binding.phase}`);
  if (giveBack && binding.stopping) return decide(binding, "stop-pending", `${binding.vm} is being stopped`);
  if (binding.starting !== null) {
    if (!event.force || binding.starting.asked) return decide(binding, "start-pending", `${binding.starting.host} was asked to start ${binding.vm}`);
    return write({ ...binding, starting: null }, [], [{ do: "stopped", reason: "accepted", detail: "" }]);
  }
  if (owner === null) return decide(binding, "not-running", `${binding.vm} does not run`);
  // He waits for the end of the same stop, unless he wants it harder.
  if (binding.stopping && !event.force) return decide(binding, "accepted");
  if (event.ownerConnected) return decide({ ...binding, stopping: true }, "accepted", "", [{ do: "ask", host: owner, what: { ask: "stop", epoch, force: event.force, ...(giveBack ? { giveBack } : {}) } }]);
  if (event.force) return end(binding, now, [{ do: "stopped", reason: "accepted", detail: `${owner} is not connected; taken as stopped on the operator's word` }]);
  return decide(binding, "host-gone", `${owner} is not connected`);
}
