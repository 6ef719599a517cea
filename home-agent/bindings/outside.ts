import type { HostId, Millis } from "../../model/ids.js";

/** Evidence that a VM is elsewhere, which is not enough while its owner still sees it. */
export interface Candidate {
  readonly host: HostId;
  readonly what: "port" | "packet" | "heartbeat";
  /** When it came, monotonic. */
  readonly at: Millis;
  /** A person has been told that two hosts claim the VM. */
  readonly alarmed: boolean;
}

/** What is known of the moves of a VM that somebody else moves. None of it is durable: the hosts say it again when they register. */
export interface Outside {
  /** Whom the tunnel points to while the claim is being written. */
  readonly claimed: HostId | null;
  readonly candidates: readonly Candidate[];
  /** The owner has said that the VM is leaving, and passes on what comes for it. */
  readonly leaving: boolean;
  /** Markers with `token` go to `from` until it says that it has passed everything on; the new owner holds the direct path back so long. */
  readonly drain: { readonly from: HostId; readonly token: number } | null;
}

export const NOTHING_OUTSIDE: Outside = { claimed: null, candidates: [], leaving: false, drain: null };
