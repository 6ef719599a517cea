import type { Epoch, HostId, MigrationId, Millis } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import type { Body, HoldOutcome, MigrationRecord, VmState as ReportedState } from "../../proto/messages.js";
import type { Binding, BindingPhase } from "../bindings/binding.js";
import type { BindingEvent, Rules } from "../bindings/machine.js";
import type { HandoverConfig } from "../config.js";
import type { HostLife } from "../host-life.js";
import type { GivenBack } from "./given-back.js";
import type { MovePlan, MoveWishes } from "./move-plan.js";

/**
 * Where a migration stands, as the home agent knows it.
 *
 * ```
 *  prepare ──Prepared──▶ copy ──LeadReady──▶ lead ──SwitchOver──▶ stop ──Released──▶ released ──Running──▶ settle ──stamps, or 1 s──▶ completed
 *     │                   │ └──────────────────┴── SwitchOver ────▶ ▲                  │ ▲ │
 *     │ refused           │ source or target failed, gone, cancel   │                  │ │ └─ target gone ──▶ lost ── resolve, or a host's word
 *     ▼                   ▼                                         │       never ran  ▼ │ Released after all
 *   failed             aborting ──source runs──▶ failed, cancelled ─┘               reclaim ──source runs──▶ failed
 * ```
 *
 * By postcopy there is one more phase before `settle`: the guest runs at the target, n+1 is committed and traffic goes there, but memory of it is still at the source, which is not revoked.
 *
 * ```
 *  released ──Running, postcopy──▶ postcopy ──Running──▶ settle
 *                                   │ ├── the target says that the rest cannot come: it is dead, `postcopy-broken`
 *                                   │ └── the target is gone for too long ──▶ lost ── its word, or stop --force
 *                                   ▼ never back: the source can neither be resumed nor resolved to
 * ```
 *
 * Released and Running may come in any order and at any phase: they are facts. Before `released` the binding is at the source's epoch n, from
 * then on at the target's n+1; what is given back ends at n+2.
 */
export type MovePhase = "prepare" | "copy" | "lead" | "stop" | "aborting" | "released" | "reclaim" | "postcopy" | "settle" | "lost";

export interface Migration {
  readonly id: MigrationId;
  readonly from: HostId;
  readonly to: HostId;
  /** n+1, reserved for the target. */
  readonly epoch: Epoch;
  readonly actor: string;
  readonly startedAt: Millis;
  /** Durable. */
  readonly plan: MovePlan;
  /** Which life of the target is asked to prepare: what a later one does not remember proves something only if it has the same disk. Durable. */
  readonly targetLife: HostLife | null;
  readonly phase: MovePhase;
  /** RELEASE is known to exist: the source never runs again by itself. Durable. */
  readonly released: boolean;
  /** It went over by postcopy: the guest can never run at the source again. Durable once the target runs it. */
  readonly postcopy: boolean;
  /** Its guest was stopped because the time for the copy was over. */
  readonly forced: boolean;
  /** The target has durably said that it never ran and never will. */
  readonly neverRan: boolean;
  /** Epoch under which the source was asked to resume. Durable before it is sent. */
  readonly resumeEpoch: Epoch | null;
  /** Why it is being given up, and whether by a person. */
  readonly reason: Reason | null;
  /** Likewise, in a host's words; empty: none. */
  readonly detail: string;
  readonly cancelled: boolean;

  readonly startedMono: Millis | null;
  /** Whom the tunnel points to. */
  readonly pointed: "source" | "target";
  readonly lead: boolean;
  /** Names the markers of this migration. */
  readonly token: number;
  readonly sourceGone: Millis | null;
  readonly targetGone: Millis | null;
  /** When the present phase began. */
  readonly phaseAt: Millis;
  /** Repetitions of a question that was not answered. */
  readonly tries: number;
  /** How the source's gate was opened; `null`: not said, or not known any more. */
  readonly hold: HoldOutcome | null;
  /** Packets that were lost with the port of a target which never ran; `null`: it has not said so. */
  readonly undelivered: number | null;
  readonly stopAt: Millis | null;
  readonly markerAt: Millis | null;
  readonly bytes: number | null;
  readonly running: Body<"running"> | null;
}

/** One VM: its binding and, while it moves, its migration. */
export interface VmState {
  readonly binding: Binding;
  readonly migration: Migration | null;
  /** Oldest first. Empty when the VM has come to its owner by other ways since. */
  readonly givenBack: readonly GivenBack[];
}

type Report = "leadReady" | "switchOver" | "released" | "running" | "sourceEnded" | "targetEnded";

export type VmEvent =
  | BindingEvent
  | { readonly type: "migrate"; readonly host: HostId; readonly actor: string; readonly wishes?: MoveWishes; readonly sourceConnected: boolean; readonly targetConnected: boolean; readonly targetLife: HostLife | null; readonly sourceCanLead: boolean }
  | { readonly type: "prepared"; readonly migration: MigrationId; readonly relayAddress: string; readonly relayPort: number; readonly canLead: boolean }
  /** A question to the target (prepare) or to the source was refused, or (`answered` false) its fate is not known. */
  | { readonly type: "refused"; readonly migration: MigrationId; readonly ask: "prepare" | "migrate" | "abort"; readonly reason: Reason; readonly detail: string; readonly answered: boolean }
  | { readonly type: "said"; readonly host: HostId; readonly body: Body<Report> }
  /** Bytes of the guest's own disks were copied: how long they take is not known, and the source watches that they do not stand still. */
  | { readonly type: "disks-copied"; readonly migration: MigrationId }
  | { readonly type: "cancel"; readonly migration: MigrationId }
  | { readonly type: "host-gone"; readonly host: HostId }
  | { readonly type: "host-back"; readonly host: HostId; readonly life: HostLife; readonly records: readonly MigrationRecord[]; readonly reported: ReportedState | null }
  /** `force`: a person vouches that the source, which was told to run it, does not. */
  | { readonly type: "resolve"; readonly host: HostId; readonly actor: string; readonly force: boolean; readonly connected: boolean };

export interface MoveRules extends Rules {
  readonly handover: HandoverConfig;
}

/** How long the last stamps of the target are waited for. */
export const STAMPS_WAIT_MS = 1000;
/** An abort or a resume that nobody answered is asked again after so long. */
export const ASK_AGAIN_MS = 2000;
/** After so many repetitions a person is called. */
export const ASK_LIMIT = 10;
/** Beyond the source's own time limit for the whole copy. */
export const COPY_SLACK_MS = 30_000;

/** Phases in which the source may still say that it runs on by itself. */
export function beforeRelease(phase: MovePhase): boolean {
  return phase === "prepare" || phase === "copy" || phase === "lead" || phase === "stop" || phase === "aborting";
}

/** Where the tunnel of a VM shall end, and who may send for it. `null`: the VM has no entry. */
export interface Route {
  readonly active: HostId | null;
  readonly accept: readonly HostId[];
}

/** Follows from the state alone, so that it can be put again at any time (I2). */
export function routeOf(state: VmState): Route | null {
  const { binding, migration } = state;
  const { claimed } = binding.outside;
  if (binding.phase === "none" && migration === null && claimed === null) return null;
  const active: HostId | null = claimed !== null ? claimed : binding.phase === "expired" ? null : migration === null ? binding.owner : migration.pointed === "source" ? migration.from : migration.to;
  const accept = new Set<HostId>();
  if (active !== null) accept.add(active);
  if (migration !== null) {
    accept.add(migration.from);
    accept.add(migration.to);
  }
  if (binding.owner !== null && claimed !== null) accept.add(binding.owner);
  for (const grace of binding.graces) accept.add(grace.host);
  return { active, accept: [...accept] };
}

/** Token of the markers that should be sent now, `null` for none: to the source behind the last packet that went there, to the target before the first. */
export function markersOf(state: VmState): number | null {
  const move = state.migration;
  if (move === null || move.pointed === "source") return null;
  return move.phase === "lead" || (move.phase === "stop" && !move.lead) ? move.token : null;
}

/** Whether the target's up markers are being waited for. */
export function watchesUplink(state: VmState): boolean {
  const phase = state.migration?.phase;
  return phase === "copy" || phase === "lead" || phase === "stop" || phase === "released" || phase === "postcopy" || phase === "settle";
}

export type PublicState = "bound" | "moving" | "stale" | "expired" | "lost";

export function publicState(phase: BindingPhase): PublicState {
  return phase === "none" ? "expired" : phase;
}
