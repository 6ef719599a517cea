import type { IpAddress } from "../../model/address.js";
import { millis, NEVER_BOUND, type Epoch, type HostId, type Millis } from "../../model/ids.js";
import { drainToken } from "../../model/lead-token.js";
import type { Reason } from "../../model/reasons.js";
import type { Stamps } from "../../net/tunnel.js";
import type { BindingUpdate, Peer, Sighting, VmSpec } from "../../proto/messages.js";

/**
 * A VM that somebody else makes, moves and removes, as one of its hosts sees it.
 *
 * ```
 *            its frame, `arrive`       ours and clear, or the limit
 *   away ──────────────────────▶ claiming ───────────────────────▶ here
 *    ▲ ▲                            │ ▲                             │ its port is gone, or `leave`
 *    │ └── refused, port gone ──────┘ └── it is back ── leaving ◀───┘
 *    └── grace over ── passing ◀──── another host owns it ──┘
 * ```
 *
 * away: what comes for it waits (bounded); when its port is up, stragglers go there. claiming: the same, and the home agent has been asked. Clear is the old path when the marker behind
 * its last packet has come by the old host, as the packets did; for want of it the home agent's word counts, which is not in their order. leaving: what comes is
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
  /** Away or claiming: nothing is on the old path any more, what comes directly need not wait for it. */
  readonly clear: boolean;
  /** Leaving or passing: the marker of this move that was answered, so that a repeated one is not; 0 while none was. */
  readonly marker: number;
}

export type OutsideEvent =
  | { readonly type: "port"; readonly port: Port | null }
  | { readonly type: "seen"; readonly what: Sighting }
  | { readonly type: "leave"; readonly to: HostId | null }
  | { readonly type: "binding"; readonly update: BindingUpdate; readonly registration: boolean }
  | { readonly type: "decided"; readonly what: Sighting; readonly basedOn: Epoch; readonly reason: Reason; readonly epoch: Epoch }
  | { readonly type: "drained"; readonly token: number }
  /** The home agent's own marker has come: nothing is sent here any more. */
  | { readonly type: "marker"; readonly token: number }
  /** A marker has come by another host. */
  | { readonly type: "passed"; readonly token: number }
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
/** The word that the old path is empty comes by way of the home agent, its last packet directly. Only where no marker has come behind that (an older host, a loss) the word counts, after this. */
export const DRAIN_SLACK = millis(50);
/** A VM that has left and turns up nowhere is passed on for so long. */
export const LEAVE_LIMIT = millis(5000);
/** After the VM has left, frames of it that are seen here again count only from then on. */
export const BLIND = millis(1000);

/** What the data plane shall do with packets for the VM. */
export type Delivery =
  /** What the VM sends from its port, where there is one, goes its way. */
  | { readonly to: "hold"; readonly port: Port | null }
  | { readonly to: "port"; readonly port: Port; readonly holdDirect: boolean }
  /** `holdStragglers`: it may be on its way back. */
  | { readonly to: "host"; readonly address: IpAddress; readonly port: Port | null; readonly holdStragglers: boolean };

export function newcomer(update: BindingUpdate): OutsideVm {
  return {
    spec: update.spec, peers: update.peers, phase: "away", owner: null, epoch: NEVER_BOUND, port: null, target: null, told: false,
    until: null, blindUntil: millis(0), clear: false, marker: 0,
  };
}

/** Follows from the state alone. */
export function deliveryOf({ phase, port, target, clear }: OutsideVm): Delivery {
  const here = port?.carrier === true ? port : null;
  if ((phase === "leaving" || phase === "passing") && target !== null) return { to: "host", address: target, port, holdStragglers: phase === "passing" };
  if (here === null || phase === "leaving") return { to: "hold", port };
  return { to: "port", port: here, holdDirect: phase !== "here" && !clear };
}

/** Whether frames of the VM on its port are news. */
export function looks({ phase, port, blindUntil }: OutsideVm, now: Millis): boolean {
  // Without a carrier too: the first frame is here before the kernel's word of the link, after which alone the kernel sends by it.
  return port !== null && (phase === "away" || phase === "passing") && now >= blindUntil;
}

/** When a `deadline` is due, monotonic. */
export function deadlineOf({ phase, until, blindUntil }: OutsideVm, now: Millis): Millis | null {
  const blind = (phase === "away" || phase === "passing") && blindUntil > now ? blindUntil : null;
  const times = [until, blind].filter((time) => time !== null);
  return times.length === 0 ? null : millis(Math.min(...times));
}

/** Which marker is waited for: the home agent's, behind all that was sent here, or the same one passed on by the old host, behind all that came from there. */
export function awaits({ phase, target, marker, clear, until }: OutsideVm): "marker" | "passed" | null {
  if (phase === "leaving" || phase === "passing") return target !== null && marker === 0 ? "marker" : null;
  // Away, a while: its port has come, and the home agent may have taken that for a claim.
  return !clear && (phase === "claiming" || (phase === "away" && until !== null)) ? "passed" : null;
}

/** What the data plane has stamped, where that is news. */
export function noticed(state: OutsideVm, stamps: Pick<Stamps, "marker" | "passedMarker">, self: HostId): OutsideEvent | null {
  const wanted = awaits(state);
  if (wanted === "marker" && stamps.marker !== null && endsThisStay(state, stamps.marker.token, self)) return { type: "marker", token: stamps.marker.token };
  if (wanted === "passed" && stamps.passedMarker !== null && ofThisMove(state, stamps.passedMarker, self)) return { type: "passed", token: stamps.passedMarker };
  return null;
}

/** Whether a marker that an earlier move may have left behind is none of this one's: nobody has claimed yet, so that none of this one's can have come. */
export function begins(before: OutsideVm, after: OutsideVm): boolean {
  return awaits(after) === "passed" && awaits(before) !== "passed" && !(before.phase === "away" && carrier(before));
}

export function outside(state: OutsideVm, event: OutsideEvent, now: Millis, self: HostId): OutsideStep {
  switch (event.type) {
    case "port": return onPort(state, event.port, now, self);
    case "seen": return onSeen(state, event.what, now);
    case "leave": return onLeave(state, event.to, true, now, self);
    case "binding": return onBinding(state, event.update, event.registration, now, self);
    case "decided": return onDecided(state, event, now, self);
    case "drained": {
      if (state.phase !== "claiming" && state.phase !== "away") return stay(state);
      const limit = state.phase === "claiming" ? state.until ?? Infinity : Infinity;
      if (event.token !== 0 && !state.clear) return stay(enter(state, "claiming", { until: millis(Math.min(limit, now + DRAIN_SLACK)) }));
      return stay(carrier(state) ? enter(state, "here") : { ...state, clear: true });
    }
    case "marker": {
      if (awaits(state) !== "marker" || !endsThisStay(state, event.token, self)) return stay(state);
      return { state: { ...state, marker: event.token }, effects: [{ do: "drained", token: event.token }] };
    }
    case "passed": {
      if (awaits(state) !== "passed" || !ofThisMove(state, event.token, self)) return stay(state);
      return stay(state.owner === self && carrier(state) ? enter(state, "here") : { ...state, clear: true });
    }
    case "deadline": return onDeadline(state, now);
  }
}

function stay(state: OutsideVm): OutsideStep {
  return { state, effects: [] };
}

/** The only place where the phase changes. */
function enter(state: OutsideVm, phase: Phase, change: Partial<OutsideVm> = {}): OutsideVm {
  return { ...state, target: null, told: false, until: null, clear: false, ...change, phase };
}

/** A marker of an earlier move may be on its way still: it has the token of an epoch that is over, or another host's. */
function ofThisMove({ epoch, owner }: OutsideVm, token: number, self: HostId): boolean {
  return owner === self || owner === null ? token >= drainToken(epoch) : token > drainToken(epoch);
}

/** The same at the host that the VM leaves, where the stamp of an earlier move is still there when it goes a second time: the token is of its next owner's epoch, of which the home agent's word may have come already. */
function endsThisStay({ epoch, owner }: OutsideVm, token: number, self: HostId): boolean {
  return owner === self ? token > drainToken(epoch) : token >= drainToken(epoch);
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
    if (state.phase === "here" || state.phase === "claiming") return stay(state.clear ? enter(fresh, "here") : fresh);
    const announced: OutsideEffect = { do: "announce", what: "port", basedOn: state.epoch };
    // A link that comes back at the owner: nothing has moved.
    const claimed = state.owner === self && state.phase === "leaving" ? enter(fresh, "claiming", { until: millis(now + DRAIN_LIMIT) }) : fresh;
    // It may be coming back; what is still passed on is for another host's port no more.
    return { state: claimed.phase === "passing" || claimed.phase === "away" ? enter(claimed, "away", { until: millis(now + LEAVE_LIMIT) }) : claimed, effects: [announced] };
  }
  if (!was) return stay(next);
  if (state.phase === "here" || (state.phase === "claiming" && state.owner === self)) return onLeave(next, null, false, now, self);
  const away = state.phase === "claiming" || state.phase === "away" ? enter(next, "away") : next;
  return { state: away, effects: state.phase === "leaving" ? [] : [{ do: "unseen", basedOn: state.epoch }] };
}

function onSeen(state: OutsideVm, what: Sighting, now: Millis): OutsideStep {
  if (state.phase === "here" || state.port === null || (state.phase === "claiming" && what !== "arrive")) return stay(state);
  return { state: enter(state, "claiming", { until: millis(now + DRAIN_LIMIT), clear: state.clear }), effects: [{ do: "announce", what, basedOn: state.epoch }] };
}

/** `to` null: where there is one other host, there. */
function onLeave(state: OutsideVm, to: HostId | null, told: boolean, now: Millis, self: HostId): OutsideStep {
  const [only, another] = state.peers;
  const peer = to === null ? (another === undefined ? only : undefined) : state.peers.find(({ host }) => host === to);
  const next = enter(state, "leaving", { target: peer?.locator.address ?? null, told, until: millis(now + LEAVE_LIMIT), marker: 0 });
  if (state.owner !== self) return { state: next, effects: [] };
  return { state: next, effects: told ? [{ do: "leaving", basedOn: state.epoch, to: peer?.host ?? null }] : [{ do: "unseen", basedOn: state.epoch }] };
}

function onBinding(state: OutsideVm, update: BindingUpdate, registration: boolean, now: Millis, self: HostId): OutsideStep {
  if (update.epoch < state.epoch) return stay(state);
  const newer = update.epoch > state.epoch;
  const known: OutsideVm = { ...state, spec: update.spec, peers: update.peers, owner: update.owner, epoch: update.epoch };
  // This move's may have been answered before the word of it came; an earlier one's says nothing of it.
  const next: OutsideVm = endsThisStay(known, known.marker, self) ? known : { ...known, marker: 0 };
  const offer: readonly OutsideEffect[] = carrier(next) && (newer || registration) ? [{ do: "announce", what: "port", basedOn: next.epoch }] : [];
  if (next.owner === self) {
    if (!carrier(next)) return { state: next, effects: registration ? [{ do: "unseen", basedOn: next.epoch }] : [] };
    if (next.phase === "here") return stay(next);
    if (next.phase === "leaving" && !registration) return stay(next);
    if (registration) return { state: enter(next, "here"), effects: offer };
    if (next.clear) return stay(enter(next, "here"));
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
    if ((owned.phase !== "away" && owned.phase !== "claiming") || !carrier(owned)) return stay(owned);
    if (owned.clear) return stay(enter(owned, "here"));
    // That nothing is left on the old path is heard by itself.
    if (owned.phase === "claiming") return stay(owned);
    return stay(enter(owned, "claiming", { until: millis(now + DRAIN_LIMIT) }));
  }
  // A packet that was on its way when the VM left looks the same: the next one tells. Everything else is said once, so it is said again.
  if (reason === "stale-epoch" && event.epoch > event.basedOn && what !== "packet" && known.owner !== self && carrier(known) && (state.phase === "claiming" || state.phase === "away")) {
    return { state: known, effects: [{ do: "announce", what, basedOn: event.epoch }] };
  }
  // Of two claims of ours the first was taken.
  if (state.phase !== "claiming" || known.owner === self) return stay(known);
  if (reason !== "stale-epoch") return stay(enter(known, "away", { blindUntil: millis(now + BLIND) }));
  // It may be another claim of ours that was taken, and its answer is on the way.
  return stay(enter(known, "away", { blindUntil: millis(0), until: millis(now + DRAIN_LIMIT), clear: state.clear }));
}

function onDeadline(state: OutsideVm, now: Millis): OutsideStep {
  if (state.until === null || now < state.until) return stay(state);
  switch (state.phase) {
    case "claiming": return stay(enter(state, carrier(state) ? "here" : "away"));
    case "leaving": return stay({ ...state, target: null, until: null, blindUntil: millis(0) });
    case "passing": return stay(enter(state, "away"));
    case "away": return stay({ ...state, until: null, clear: false });
    case "here": return stay({ ...state, until: null });
  }
}
