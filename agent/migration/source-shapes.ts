import type { Epoch, MigrationId, Millis, VmId } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import type { HoldOutcome, OnTimeout } from "../../proto/messages.js";
import type { GuestStatus, StreamStatus } from "../hypervisor/driver.js";
import type { CopyState } from "./lead-moment.js";

/*
 * What the source's machine (source.ts) knows, hears and wants.
 */
export type SourcePhase =
  | "starting" | "mirroring" | "copying" | "leading" | "awaiting" | "opened" | "stopped" | "releasing" | "serving" | "released" | "reclaiming" | "returning" | "runs" | "gone" | "revoked";

export interface SourcePlan {
  readonly migration: MigrationId;
  readonly vm: VmId;
  /** Reserved for the target. */
  readonly epoch: Epoch;
  readonly lead: boolean;
  readonly holdMaxMs: Millis;
  readonly timeoutMs: Millis;
  readonly downtimeLimitMs: Millis;
  readonly onTimeout: OnTimeout;
  /** For what is left, once it is forced. */
  readonly forceMs: Millis;
  /** The guest has disks that only this host sees. */
  readonly disks: boolean;
  /** A copy that does not converge ends by postcopy. */
  readonly postcopy: boolean;
}

/** `none`: there is nothing to drop, because nothing was begun or all is dropped. `closed`: the same on both sides, and nobody holds on to the other. */
export type DiskState = "none" | "copying" | "ready" | "closed";

/**
 * `asked`: the guest was told to go over with its memory behind it. `begun`: the target has all but memory, and the guest can never run here again. `over`: no more of it is sent, because all is, or
 * because it cannot be.
 */
export type Postcopy = "no" | "asked" | "begun" | "over";

export interface SourceState {
  readonly plan: SourcePlan;
  readonly phase: SourcePhase;
  readonly hold: HoldOutcome;
  readonly stopAt: Millis | null;
  readonly markerAt: Millis | null;
  readonly bytes: number;
  readonly passes: number;
  /** Why it is given up; `accepted` while it is not. */
  readonly reason: Reason;
  readonly detail: string;
  /** `migrate` has been given to the hypervisor. */
  readonly sending: boolean;
  /** Nothing is read of the hypervisor's stream. */
  readonly stalled: boolean;
  /** The pass behind which it stands still. */
  readonly pass: number;
  /** Since when it does, */
  readonly stalledAt: Millis;
  /** and the first pass that was begun since. */
  readonly stillFrom: number | null;
  /** Bytes that the pass before left. */
  readonly leftBefore: number;
  /** The time was over: the guest is stopped whatever is left. */
  readonly forced: boolean;
  readonly disks: DiskState;
  readonly diskCopied: number;
  readonly postcopy: Postcopy;
}

export type SourceEvent =
  | { readonly kind: "recorded"; readonly state: "active" | "released" | "resumed" }
  | { readonly kind: "record-failed"; readonly detail: string }
  | { readonly kind: "relay-ready" }
  | { readonly kind: "relay-lost"; readonly detail: string }
  | { readonly kind: "stream"; readonly status: StreamStatus }
  /** Begun `at`, and heard of so much later. */
  | { readonly kind: "pass"; readonly passes: number; readonly at: Millis; readonly heardAt: Millis }
  | ({ readonly kind: "progress"; readonly transferred: number } & CopyState)
  | { readonly kind: "disk-progress"; readonly copied: number }
  | { readonly kind: "disks"; readonly what: "ready" | "closed" | "dropped" }
  | { readonly kind: "disks-failed"; readonly detail: string }
  | { readonly kind: "stopped"; readonly at: Millis }
  | { readonly kind: "resumed" }
  | { readonly kind: "guest"; readonly status: GuestStatus; readonly stream: StreamStatus }
  | { readonly kind: "command-failed"; readonly command: string; readonly detail: string }
  | { readonly kind: "lead"; readonly token: number }
  | { readonly kind: "marker"; readonly at: Millis }
  | { readonly kind: "timer"; readonly name: SourceTimer }
  | { readonly kind: "abort"; readonly reason: Reason }
  | { readonly kind: "resume" }
  | { readonly kind: "revoke" };

export type SourceTimer = "copy" | "hold" | "look" | "disks" | "serve";

export type SourceEffect =
  | { readonly kind: "record"; readonly state: "active" | "released" | "resumed" }
  | { readonly kind: "connect" }
  | { readonly kind: "mirror-disks" }
  | { readonly kind: "close-disks" }
  | { readonly kind: "drop-disks" }
  | { readonly kind: "send" }
  | { readonly kind: "stall" }
  | { readonly kind: "flow" }
  | { readonly kind: "measure" }
  | { readonly kind: "prefer-switchover" }
  | { readonly kind: "force-switchover" }
  | { readonly kind: "start-postcopy" }
  | { readonly kind: "halt-guest" }
  | { readonly kind: "open-gate" }
  | { readonly kind: "cut" }
  | { readonly kind: "watch-marker"; readonly token: number }
  | { readonly kind: "forward" }
  | { readonly kind: "deliver" }
  | { readonly kind: "continue-switchover" }
  | { readonly kind: "cancel-send" }
  | { readonly kind: "resume-guest" }
  | { readonly kind: "look" }
  | { readonly kind: "send-release" }
  /** The home agent has ended this host's binding, and with it the guest. */
  | { readonly kind: "destroy-guest" }
  /** It is of no use any more; nobody has said that it is elsewhere. */
  | { readonly kind: "end-guest" }
  | { readonly kind: "tell-lead-ready" }
  | { readonly kind: "tell-switch-over" }
  | { readonly kind: "report-released" }
  | { readonly kind: "report-ended"; readonly result: "source-runs" | "source-gone" }
  | { readonly kind: "timer"; readonly name: SourceTimer; readonly delay: Millis }
  | { readonly kind: "stop-timer"; readonly name: SourceTimer };

export interface SourceStep {
  readonly state: SourceState;
  readonly effects: readonly SourceEffect[];
  /** What to answer to a request that this event came from. */
  readonly decision: Reason;
}
