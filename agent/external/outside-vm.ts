import type { IpAddress } from "../../model/address.js";
import { millis, NEVER_BOUND, type Epoch, type HostId, type Millis } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import type { BindingUpdate, Peer, Sighting, VmSpec } from "../../proto/messages.js";

/**
 * A VM that somebody else makes, moves and removes, as one of its hosts sees it.
 *
 * ```
 *            its frame, `arrive`             drained, or the limit
 *   away ──────────────────────▶ claiming ───────────────────────▶ here
 *    ▲ ▲                            │ ▲                             │ its port is gone, or `leave`
 *    │ └── refused, port gone ──────┘ └── it is back ── leaving ◀───┘
 *    └── grace over ── passing ◀──── another host owns it ──┘
 * ```
 *
 * away: what comes for it waits (bounded); when its port is up, stragglers go there. claiming: the same, and the home agent has been asked. leaving: what comes is
 * passed on to the next host where that is known, else waits. passing: the home agent has said who has it now.
 */
export type Phase = "away" | "claiming" | "here" | "leaving" | "passing";

export interface Port {
  readonly name: string;
  readonly index: number;
  readonly carrier: boolean;
}

export interface OutsideVm {
  readonly spec: VmSpec;
  readonly peers: readonly Peer[];
  readonly phase: Phase;
  /** The home agent's last word. */
  readonly owner: HostId | null;
  readonly epoch: Epoch;
  readonly port: Port | null;
  /** Where what comes is passed on to, while leaving or passing. */
  readonly target: IpAddress | null;
  /** Leaving: whoever moves it said so, its port may still be there. */
  readonly told: boolean;
  /** The present phase ends by itself then, monotonic. */
  readonly until: Millis | null;
  /** Its frames say nothing before: the last ones of a VM that has left are still on the way. */
  readonly blindUntil: Millis;
  /** The marker that was answered last, so that a repeated one is not. */
  readonly marker: number;
}

export type OutsideEvent =
  | { readonly type: "port"; readonly port: Port | null }
  | { readonly type: "seen"; readonly what: Sighting }
  | { readonly type: "leave"; readonly to: HostId | null }
  | { readonly type: "binding"; readonly update: BindingUpdate; readonly registration: boolean }
  | { readonly type: "decided"; readonly what: Sighting; readonly basedOn: Epoch; readonly reason: Reason; readonly epoch: Epoch }
  | { readonly type: "drained" }
  | { readonly type: "marker"; readonly token: number }
  | { readonly type: "deadline" };

export type OutsideEffect =
  | { readonly do: "announce"; readonly what: Sighting; readonly basedOn: Epoch }
  | { readonly do: "leaving"; readonly basedOn: Epoch; readonly to: HostId | null }
  | { readonly do: "unseen"; readonly basedOn: Epoch }
  | { readonly do: "drained"; readonly token: number };

export interface OutsideStep {
  readonly state: OutsideVm;
  readonly effects: readonly OutsideEffect[];
}

/** Longest that the direct path is held back for the old one. */
export const DRAIN_LIMIT = millis(250);
/** A VM that has left and turns up nowhere is passed on for so long. */
export const LEAVE_LIMIT = millis(5000);
/** After the VM has left, frames of it that are seen here again count only from then on. */
export const BLIND = millis(1000);

/** What the data plane shall do with packets for the VM. */
export type Delivery =
  | { readonly to: "hold" }
  | { readonly to: "port"; readonly port: Port; readonly holdDirect: boolean }
  | { readonly to: "host"; readonly address: IpAddress; readonly port: Port | null };

export function newcomer(update: BindingUpdate): OutsideVm {
  return {
    spec: update.spec, peers: update.peers, phase: "away", owner: null, epoch: NEVER_BOUND, port: null, target: null, told: false,
    until: null, blindUntil: millis(0), marker: 0,
  };
}

/** Follows from the state alone. */
export function deliveryOf({ phase, port, target }: OutsideVm): Delivery {
  const here = port?.carrier === true ? port : null;
  if ((phase === "leaving" || phase === "passing") && target !== null) return { to: "host", address: target, port };
  if (here === null || phase === "leaving") return { to: "hold" };
  return { to: "port", port: here, holdDirect: phase !== "here" };
}

/** Whether frames of the VM on its port are news. */
export function looks({ phase, port, blindUntil }: OutsideVm, now: Millis): boolean {
  return port?.carrier === true && (phase === "away" || phase === "passing") && now >= blindUntil;
}

/** When a `deadline` is due, monotonic. */
export function deadlineOf({ phase, until, blindUntil }: OutsideVm, now: Millis): Millis | null {
  const blind = (phase === "away" || phase === "passing") && blindUntil > now ? blindUntil : null;
  if (until === null || blind === null) return until ?? blind;
  return millis(Math.min(until, blind));
}

/** Whether markers are waited for: they say that all that was sent here before them has come. */
export function awaitsMarker({ phase, target }: OutsideVm): boolean {
  return (phase === "leaving" || phase === "passing") && target !== null;
}

export function outside(state: OutsideVm, event: OutsideEvent, now: Millis, self: HostId): OutsideStep {
  switch (event.type) {
    case "port": return onPort(state, event.port, now, self);
    case "seen": return onSeen(state, event.what, now);
    case "leave": return onLeave(state, event.to, true, now, self);
    case "binding": return onBinding(state, event.update, event.registration, now, self);
    case "decided": return onDecided(state, event, now, self);
    case "drained": return stay(carrier(state) && (state.phase === "claiming" || state.phase === "away") ? enter(state, "here") : state);
    case "marker": {
      if (!awaitsMarker(state) || event.token === state.marker) return stay(state);
      return { state: { ...state, marker: event.token }, effects: [{ do: "drained", token: event.token }] };
    }
    case "deadline": return onDeadline(state, now);
  }
}

function stay(state: OutsideVm): OutsideStep {
  return { state, effects: [] };
}

/** The only place where the phase changes. */
function enter(state: OutsideVm, phase: Phase, change: Partial<OutsideVm> = {}): OutsideVm {
  return { ...state, target: null, told: false, until: null, ...change, phase };
}

function carrier(state: OutsideVm): boolean {
  return state.port?.carrier === true;
}

function onPort(state: OutsideVm, port: Port | null, now: Millis, self: HostId): OutsideStep {
  const was = carrier(state);
  const next: OutsideVm = { ...state, port };
  if (carrier(next) === was && port?.index === state.port?.index) return stay(next);
  if (carrier(next)) {
    const fresh: OutsideVm = { ...next, blindUntil: millis(0) };
    if (state.phase === "here" || state.phase === "claiming") return stay(fresh);
    const announced: OutsideEffect = { do: "announce", what: "port", basedOn: state.epoch };
    // A link that comes back at the owner: nothing has moved.
    const claimed = state.owner === self && state.phase === "leaving" ? enter(fresh, "claiming", { until: millis(now + DRAIN_LIMIT) }) : fresh;
    return { state: claimed, effects: [announced] };
  }
  if (!was) return stay(next);
  if (state.phase === "here" || (state.phase === "claiming" && state.owner === self)) return onLeave(next, null, false, now, self);
  const away = state.phase === "claiming" ? enter(next, "away") : next;
  return { state: away, effects: state.phase === "leaving" || state.phase === "passing" ? [] : [{ do: "unseen", basedOn: state.epoch }] };
}

function onSeen(state: OutsideVm, what: Sighting, now: Millis): OutsideStep {
  if (!carrier(state) && what !== "arrive") return stay(state);
  if (state.phase === "here" || (state.phase === "claiming" && what !== "arrive")) return stay(state);
  return { state: enter(state, "claiming", { until: millis(now + DRAIN_LIMIT) }), effects: [{ do: "announce", what, basedOn: state.epoch }] };
}

/** `to` null: where there is one other host, there. */
function onLeave(state: OutsideVm, to: HostId | null, told: boolean, now: Millis, self: HostId): OutsideStep {
  const [only, another] = state.peers;
  const peer = to === null ? (another === undefined ? only : undefined) : state.peers.find(({ host }) => host === to);
  const next = enter(state, "leaving", { target: peer?.locator.address ?? null, told, until: millis(now + LEAVE_LIMIT) });
  if (state.owner !== self) return { state: next, effects: [] };
  return { state: next, effects: told || peer !== undefined ? [{ do: "leaving", basedOn: state.epoch, to: peer?.host ?? null }] : [{ do: "unseen", basedOn: state.epoch }] };
}

function onBinding(state: OutsideVm, update: BindingUpdate, registration: boolean, now: Millis, self: HostId): OutsideStep {
  if (update.epoch < state.epoch) return stay(state);
  const newer = update.epoch > state.epoch;
  const next: OutsideVm = { ...state, spec: update.spec, peers: update.peers, owner: update.owner, epoch: update.epoch };
  const offer: readonly OutsideEffect[] = carrier(next) && (newer || registration) ? [{ do: "announce", what: "port", basedOn: next.epoch }] : [];
  if (next.owner === self) {
    if (!carrier(next)) return { state: next, effects: registration ? [{ do: "unseen", basedOn: next.epoch }] : [] };
    if (next.phase === "here") return stay(next);
    if (next.phase === "leaving" && !registration) return stay(next);
    if (registration) return { state: enter(next, "here"), effects: offer };
    return stay(next.phase === "claiming" ? next : enter(next, "claiming", { until: millis(now + DRAIN_LIMIT) }));
  }
  const blindUntil = newer && state.owner === self ? millis(now + BLIND) : state.blindUntil;
  const { forwardTo, forwardMs } = update;
  if (forwardTo !== null && next.phase !== "claiming") return { state: enter(next, "passing", { target: forwardTo.address, until: millis(now + forwardMs), blindUntil }), effects: offer };
  // Somebody else's claim was taken while ours was on its way: the answer to ours says so.
  if (next.phase === "claiming" && !registration) return stay(next);
  const stillLeaving = next.phase === "leaving" && !newer;
  return { state: stillLeaving || next.phase === "passing" ? next : enter(next, "away", { blindUntil }), effects: offer };
}

function onDecided(state: OutsideVm, event: OutsideEvent & { readonly type: "decided" }, now: Millis, self: HostId): OutsideStep {
  const { what, reason } = event;
  const known = event.epoch > state.epoch ? { ...state, epoch: event.epoch, owner: reason === "accepted" ? self : null } : state;
  if (reason === "accepted") {
    const owned: OutsideVm = { ...known, owner: self };
    // The word that nothing is left on the old path comes by itself, and as a rule has come already.
    if (owned.phase !== "away" || !carrier(owned)) return stay(owned);
    return stay(enter(owned, "claiming", { until: millis(now + DRAIN_LIMIT) }));
  }
  // A packet that was on its way when the VM left looks the same: the next one tells. Everything else is said once, so it is said again.
  if (reason === "stale-epoch" && event.epoch > event.basedOn && what !== "packet" && carrier(known) && (state.phase === "claiming" || state.phase === "away")) {
    return { state: known, effects: [{ do: "announce", what, basedOn: event.epoch }] };
  }
  if (state.phase !== "claiming") return stay(known);
  return stay(enter(known, "away", { blindUntil: reason === "stale-epoch" ? millis(0) : millis(now + BLIND) }));
}

function onDeadline(state: OutsideVm, now: Millis): OutsideStep {
  if (state.until === null || now < state.until) return stay(state);
  switch (state.phase) {
    case "claiming": return stay(enter(state, carrier(state) ? "here" : "away"));
    case "leaving": return stay({ ...state, target: null, until: null, blindUntil: millis(0) });
    case "passing": return stay(enter(state, "away"));
    case "away":
    case "here": return stay({ ...state, until: null });
  }
}
