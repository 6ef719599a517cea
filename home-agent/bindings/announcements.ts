import type { Epoch, HostId, Millis } from "../../model/ids.js";
import { drainToken } from "../../model/lead-token.js";
import type { Sighting } from "../../proto/messages.js";
import { decide, type Effect, type Outcome } from "../outcome.js";
import { freshEpoch, type Binding, type Evidence, type Now } from "./binding.js";
import { own, refresh, withGrace, type Rules } from "./machine.js";
import { NOTHING_OUTSIDE, type Candidate } from "./outside.js";

/*
 * The evidence for VMs that somebody else moves, weakest last. All of it counts only from a listed host and on the present epoch.
 *
 *   arrive, rarp, gratuitous-arp   moves at once: said on arrival, and only then
 *   packet                         moves at once, but not back to a host that the VM has just left while its owner still sees it: of two hosts that both see
 *                                  packets neither shall win every other time
 *   heartbeat by another host      moves when the owner no longer sees the VM
 *   port (an interface came up)    likewise: whoever migrates a VM makes the new port long before the VM is behind it
 *   silence                        never moves
 *
 * What does not move at once is remembered, and moves when the owner's "no longer" comes: both words may come in either order.
 */

export type OutsideEvent =
  | { readonly type: "announcement"; readonly host: HostId; readonly what: Sighting; readonly basedOn: Epoch; readonly careOfListed: boolean; readonly ownerPassesOn: boolean }
  | { readonly type: "leaving"; readonly host: HostId; readonly basedOn: Epoch }
  | { readonly type: "drained"; readonly host: HostId; readonly token: number };

/** Two hosts may see a VM's packets for so long before a person is called: the two halves of a move come from two hosts. A heartbeat is no such half. */
const BOTH_CLAIM_MS = { packet: 1000, heartbeat: 0 } as const;

export function onOutside(binding: Binding, event: OutsideEvent, now: Now, rules: Rules): Outcome<Binding> {
  if (!rules.hosts.includes(event.host)) return decide(binding, "not-listed");
  if (rules.driver !== "external") return decide(binding, "unsupported", `${binding.vm} is not moved by anybody else`);
  switch (event.type) {
    case "announcement": return onAnnouncement(binding, event, now, rules);
    case "leaving": return onLeaving(binding, event, now, rules);
    case "drained": return onDrained(binding, event);
  }
}

/** What the home agent knows of the present owner when another host says that the VM is there. */
export interface OwnerNow {
  readonly sees: boolean;
  /** What comes for the VM goes on from there, as far as is known (Hosts.mayPassOn). */
  readonly passesOn: boolean;
}

/** Evidence for `host` that counts only when the owner does not see the VM. Two such hosts: nothing moves. */
export function consider(binding: Binding, host: HostId, what: Candidate["what"], ownerNow: OwnerNow, now: Now, rules: Rules): Outcome<Binding> {
  const evidence = what === "heartbeat" ? "heartbeat" : "announcement";
  const others = binding.outside.candidates.filter((each) => each.host !== host);
  const rival = others.some((each) => each.what !== "port") || (what === "port" && others.length > 0);
  if (!ownerNow.sees && !rival) return claim(binding, host, evidence, ownerNow.passesOn, now, rules);
  const known = binding.outside.candidates.find((each) => each.host === host);
  const candidates = [...others, known !== undefined && (known.what === what || what === "port") ? known : { host, what, at: now.mono, alarmed: false }];
  const remembered = alarms({ ...binding, outside: { ...binding.outside, candidates } }, now);
  return decide(remembered.binding, what === "port" ? "not-owner" : "both-claim", "", remembered.effects);
}

/** The owner says that it no longer sees the VM: if exactly one other host does, it is there. */
export function unseen(binding: Binding, now: Now, rules: Rules): Outcome<Binding> {
  const next = { ...binding, ownerSees: false };
  const [first, second] = strongest(binding.outside.candidates);
  if (first === undefined || second !== undefined) return decide(next, "accepted");
  return claim(next, first.host, first.what === "heartbeat" ? "heartbeat" : "announcement", true, now, rules);
}

function strongest(candidates: readonly Candidate[]): readonly Candidate[] {
  const seen = candidates.filter(({ what }) => what !== "port");
  return seen.length > 0 ? seen : candidates;
}

/** The host's port is gone: what it claimed before is over. */
export function withdraw(binding: Binding, host: HostId): Binding {
  const candidates = binding.outside.candidates.filter((each) => each.host !== host);
  return candidates.length === binding.outside.candidates.length ? binding : { ...binding, outside: { ...binding.outside, candidates } };
}

/** When a person is to be told of a double claim; monotonic. */
export function alarmsAt(binding: Binding): readonly Millis[] {
  return binding.outside.candidates.flatMap(({ what, alarmed, at }) => (what === "port" || alarmed ? [] : [(at + BOTH_CLAIM_MS[what]) as Millis]));
}

/** The alarms that are due, each once. */
export function alarms(binding: Binding, now: Now): { readonly binding: Binding; readonly effects: readonly Effect[] } {
  const due = binding.outside.candidates.filter(({ what, alarmed, at }) => what !== "port" && !alarmed && now.mono - at >= BOTH_CLAIM_MS[what]);
  if (due.length === 0) return { binding, effects: [] };
  const hosts = [...(binding.owner === null ? [] : [binding.owner]), ...due.map(({ host }) => host)];
  const candidates = binding.outside.candidates.map((each) => (due.includes(each) ? { ...each, alarmed: true } : each));
  return {
    binding: { ...binding, outside: { ...binding.outside, candidates } },
    effects: [{ do: "alarm", alarm: "both-claim", hosts, detail: `${binding.vm} is claimed by ${hosts.join(" and ")}; nothing was moved` }],
  };
}

function onAnnouncement(binding: Binding, event: OutsideEvent & { type: "announcement" }, now: Now, rules: Rules): Outcome<Binding> {
  const { host, what, ownerPassesOn } = event;
  const ownerNow: OwnerNow = { sees: binding.ownerSees, passesOn: ownerPassesOn };
  if (!event.careOfListed) return decide(binding, "foreign-care-of");
  if (event.basedOn !== binding.epoch) return decide(binding, "stale-epoch");
  if (binding.owner === host && binding.phase !== "none") {
    const back = { ...binding, outside: { ...binding.outside, claimed: null, leaving: false } };
    const outcome = refresh(back, "announcement", now);
    // It waits for the old path in any case; while that is being emptied, the old owner has the word.
    return binding.outside.drain === null ? { ...outcome, effects: [...outcome.effects, { do: "drained", host, token: 0 }] } : outcome;
  }
  if (binding.phase === "none" || binding.phase === "expired") return claim(binding, host, "announcement", ownerPassesOn, now, rules);
  if (what === "port") return consider(binding, host, what, ownerNow, now, rules);
  const justLeft = binding.graces.some((grace) => grace.host === host);
  if (what === "packet" && justLeft && binding.ownerSees) return consider(binding, host, what, ownerNow, now, rules);
  // Whoever says `arrive` said `leave` before, as a rule; that word comes from another host, and may come later.
  return claim(what === "arrive" ? { ...binding, outside: { ...binding.outside, leaving: true } } : binding, host, "announcement", ownerPassesOn, now, rules);
}

/** Whoever moves the VM said so at the owner. */
function onLeaving(binding: Binding, event: OutsideEvent & { type: "leaving" }, now: Now, rules: Rules): Outcome<Binding> {
  if (event.basedOn !== binding.epoch) return decide(binding, "stale-epoch");
  if (binding.owner !== event.host || binding.phase === "none") return decide(binding, "not-owner");
  return unseen({ ...binding, outside: { ...binding.outside, leaving: true } }, now, rules);
}

function onDrained(binding: Binding, event: OutsideEvent & { type: "drained" }): Outcome<Binding> {
  const { claimed, drain } = binding.outside;
  const to = claimed ?? binding.owner;
  if (drain === null || to === null || drain.from !== event.host || drain.token !== event.token) return decide(binding, "stale-epoch");
  return decide({ ...binding, outside: { ...binding.outside, drain: null } }, "accepted", "", [{ do: "drained", host: to, token: event.token }]);
}

/**
 * `host` becomes the owner. The tunnel points there before the new epoch is on disk: a crash in between leaves the old binding, and the host, which was
 * not answered, claims again. Only an owner that is still listed, and connected or lost a moment ago, passes on what comes for the VM and the marker behind it; for any other the new
 * one would hold back the direct path in vain, for as long as it does at most.
 */
export function claim(binding: Binding, host: HostId, evidence: Evidence & ("announcement" | "heartbeat"), ownerPassesOn: boolean, now: Now, rules: Rules): Outcome<Binding> {
  const epoch = freshEpoch(binding);
  const { owner } = binding;
  const passesOn = owner !== null && owner !== host && ownerPassesOn && rules.hosts.includes(owner);
  const drain = binding.outside.leaving && passesOn ? { from: owner, token: drainToken(epoch) } : null;
  const outcome = own(binding, host, epoch, evidence, evidence, host, now);
  return {
    ...outcome,
    state: withGrace({ ...outcome.state, outside: { ...NOTHING_OUTSIDE, drain } }, binding.owner, now, rules),
    interim: { ...binding, outside: { ...binding.outside, claimed: host, drain } },
  };
}
