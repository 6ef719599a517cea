import { CareofError } from "../../model/errors.js";
import { nextEpoch, type Epoch, type HostId, type Millis, type VmId } from "../../model/ids.js";
import { NOTHING_OUTSIDE, type Outside } from "./outside.js";

/** `none` is a VM that was never bound, or whose binding has ended; its epoch stays as memory. */
export type BindingPhase = "none" | "bound" | "moving" | "stale" | "expired" | "lost";

/** What a binding rests on at present: the word in `where`. */
export type Evidence = "registration" | "started" | "report" | "heartbeat" | "announcement" | "migration" | "restored" | "operator" | "none";

/** An instant on both clocks: `mono` is for deadlines, `wall` for people. */
export interface Now {
  readonly mono: Millis;
  readonly wall: Millis;
}

export interface Starting {
  readonly host: HostId;
  readonly epoch: Epoch;
  readonly actor: string;
  /** The host has been asked and has not answered: a report of before the question says nothing. */
  readonly asked: boolean;
}

/** The binding of one VM. The first group is durable, the second begins anew with the process. */
export interface Binding {
  readonly vm: VmId;
  readonly phase: BindingPhase;
  readonly owner: HostId | null;
  /** Epoch of the newest owner. */
  readonly epoch: Epoch;
  /** Newest epoch ever issued, `epoch` or newer: one that was reserved and burnt is never issued again. */
  readonly issued: Epoch;
  readonly since: Millis;
  readonly starting: Starting | null;

  /** The owner has been asked to stop the guest and has not answered. After a restart of this process its report says what became of it. */
  readonly stopping: boolean;
  readonly evidence: Evidence;
  /** Last accepted sign of life, monotonic. */
  readonly seenAt: Millis | null;
  /** Last accepted heartbeat of the guest, wall clock. */
  readonly lastHeartbeat: Millis | null;
  /** Whether the owner's last report had the VM. */
  readonly ownerSees: boolean;
  /** Hosts that may still send for the VM after it left them, until when (monotonic). */
  readonly graces: readonly { readonly host: HostId; readonly until: Millis }[];
  readonly outside: Outside;
}

export function unbound(vm: VmId, epoch: Epoch): Binding {
  return {
    vm, phase: "none", owner: null, epoch, issued: epoch, since: 0 as Millis, starting: null,
    stopping: false, evidence: "none", seenAt: null, lastHeartbeat: null, ownerSees: false, graces: [], outside: NOTHING_OUTSIDE,
  };
}

const NEXT: Readonly<Record<BindingPhase, readonly BindingPhase[]>> = {
  none: ["bound"],
  bound: ["bound", "moving", "stale", "none"],
  moving: ["bound", "lost", "none"],
  stale: ["bound", "expired", "none"],
  expired: ["bound", "none"],
  lost: ["bound", "moving", "none"],
};

export interface Change {
  readonly owner: HostId | null;
  readonly epoch: Epoch;
  readonly evidence: Evidence;
}

/**
 * The only place where a binding changes its phase.
 *
 * ```
 *              registration, start                      prepare (reserves n+1)
 *   none ─────────────────────────────▶ bound@A, n ──────────────────────────────▶ moving A→B, still n
 *    ▲                                  ▲ │  ▲   ▲                                  │   │   ▲ │
 *    │ stopped, guest gone     sign of  │ │  │   └── released, runs at B: B, n+1 ───┤   │   │ │ nobody can be asked
 *    ├──────────────────────── life ────┤ ▼  │   └── given back: A, n+2 ────────────┘   │   │ ▼
 *    │                                 stale │                                          │  lost ── a word of a host, or a person's ──▶ bound
 *    │                                    │  │ claim: n+1                               │
 *    │                silent for another  ▼  │                     guest died           │
 *    └────────────── lifetime ───────── expired                  ◀──────────────────────┘ (to none)
 *
 *   bound, stale or expired @A, n ──── announced elsewhere (a VM that somebody else moves) ────▶ bound@B, n+1
 *   bound, stale or expired @A, n ──── announced on the home LAN (likewise) ────▶ none
 * ```
 *
 * @throws CareofError `internal` for a step that the diagram does not have: an older epoch, or another owner under the same one (I1).
 */
export function changeState(binding: Binding, phase: BindingPhase, change: Change, now: Now): Binding {
  const wrong = !NEXT[binding.phase].includes(phase)
    ? `${binding.phase} never becomes ${phase}`
    : change.epoch < binding.epoch
      ? `epoch ${String(change.epoch)} is older than ${String(binding.epoch)}`
      : change.owner !== null && change.owner !== binding.owner && change.epoch === binding.epoch
        ? `a second owner under epoch ${String(change.epoch)}`
        : null;
  if (wrong !== null) throw new CareofError("internal", `${binding.vm}: ${wrong}`);
  const moved = change.owner !== binding.owner || change.epoch !== binding.epoch;
  return {
    ...binding,
    phase,
    owner: change.owner,
    epoch: change.epoch,
    issued: change.epoch > binding.issued ? change.epoch : binding.issued,
    since: moved || phase === "none" ? now.wall : binding.since,
    starting: moved ? null : binding.starting,
    stopping: moved ? false : binding.stopping,
    evidence: change.evidence,
    seenAt: phase === "bound" ? now.mono : binding.seenAt,
    ownerSees: phase === "bound" ? true : binding.ownerSees,
    outside: moved ? NOTHING_OUTSIDE : binding.outside,
  };
}

/** The epoch for the next owner: above everything that was ever issued. */
export function freshEpoch(binding: Binding): Epoch {
  return nextEpoch(binding.issued);
}
