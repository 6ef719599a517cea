import type { CareofError } from "../../model/errors.js";
import { millis, type Epoch, type MigrationId, type Millis } from "../../model/ids.js";
import { MAX_CHANNELS } from "../../proto/messages.js";
import type { RelayClockReading } from "./relay-clock.js";

/** What the source says as its last word: the target has the right to run under this epoch. */
export interface Release {
  readonly migration: MigrationId;
  readonly epoch: Epoch;
  /** The guest's STOP, on the source's clock. */
  readonly stopAt: Millis;
}

export interface RelayLimits {
  /** Time for TCP, TLS and hello together. */
  readonly connectMs: Millis;
  /** Bytes of the way back that the gate holds; more is an error (QEMU's acknowledgement is a few bytes). */
  readonly maxHeldBytes: number;
  /** Bytes of the way back that wait for a slow reader before the writer is paused. */
  readonly highWaterBytes: number;
  /** Further channels at a time, both kinds together. */
  readonly maxChannels: number;
}

/** As many as a VM may have (proto's `disks`). */
const MAX_DISKS = 64;

export const RELAY_LIMITS: RelayLimits = { connectMs: millis(10_000), maxHeldBytes: 1 << 20, highWaterBytes: 4 << 20, maxChannels: MAX_DISKS + MAX_CHANNELS };

/**
 * The source's half: hypervisor's unix sockets ⇄ authenticated, encrypted channels, and beside them the stream, sealed unless the move is in clear. Contract:
 * each connection of the hypervisor is a channel of its own (what the source's hypervisor says on it goes beside that, by its way, way-source.ts), carried byte for byte and in order, the end of either hypervisor's side behind its last byte; a channel
 * that is not read holds back its own writer and no other. `closed` resolves once, when nothing will be
 * carried any more, with why (`null`: an orderly end after a release). After `cut`, or when a channel is lost, both hypervisors see all connections closed at once.
 */
export interface SourceRelay {
  /** The hypervisor sends its stream here: its first connection is the main stream, which the gate is for, each later one a further channel. Exists until the relay is closed. */
  readonly socket: string;
  /** The hypervisor's NBD clients connect here, each a channel to the target's NBD server. Exists until the relay is closed. */
  readonly diskSocket: string;
  readonly closed: Promise<CareofError | null>;
  /** Bytes of the stream, over all its connections, carried towards the target. */
  readonly bytes: number;
  /** Bytes of the disks carried towards the target. */
  readonly diskBytes: number;
  /** Shuts the gate: what comes from the target on the main stream waits. Idempotent. */
  hold(): void;
  /** Reads nothing more of the hypervisor's stream, within a moment, over all its connections; it soon stands still with its next write. Idempotent. */
  stall(): void;
  /** Resolves when all that was read so far has come to the target, but for what waits there in the socket to its hypervisor, or the relay is closed. */
  taken(): Promise<void>;
  /** Reads on. Idempotent. */
  flow(): void;
  /** Opens the gate for good, and reads on. Idempotent. Returns the number of bytes that had waited. */
  open(): number;
  /**
   * The disks are the same on both sides and nothing of ours holds on to the target's exports any more: has the target end them. Resolves when it has.
   * Never rejects: when the answer cannot come any more, `closed` says so.
   */
  endDisks(disks: number): Promise<void>;
  /** Ends the further channels and sends RELEASE behind everything; no frame follows it. Resolves when it has been handed to the kernel. @throws CareofError `relay-failed` */
  release(release: Release): Promise<void>;
  /** Sends RELEASE behind all that was read so far; the main stream goes on, both ways, until it ends by itself. For postcopy, which has no further channels. */
  releaseEarly(release: Release): void;
  /** Idempotent. */
  cut(cause: CareofError): void;
}

/** The target's half. Listens for one authenticated source; whoever fails to authenticate is refused and changes nothing. */
export interface TargetRelay {
  /** Where the source connects. */
  readonly address: string;
  readonly port: number;
  readonly closed: Promise<CareofError | null>;
  /** Resolves when the source has authenticated and said hello; never, if none does. */
  readonly connected: Promise<void>;
  /** Resolves when the source has its disks in order here, with their number; never, if it does not say so. */
  readonly disksDone: Promise<number>;
  /** The answer to it: nothing here exports them any more. */
  disksEnded(disks: number): void;
  /** Resolves with the source's RELEASE, when all further channels have ended too and our hypervisor has been handed all of the stream; never, if there is none before the end. */
  readonly released: Promise<Release>;
  /** The difference of both hosts' clocks as known now; `null` before the first comparison. */
  clock(): RelayClockReading | null;
  cut(cause: CareofError): void;
}

/** Nothing heard for so long: the path between the hosts is taken for dead. Longer than what a slow path's buffers hold back an answer. */
export const RELAY_SILENCE: Millis = millis(8_000);

/** Version of the relay's frames, said in hello. */
export const RELAY_VERSION = 4;

/** Versions are not mixed: a relay of another one has other channels, and RELEASE would not mean the same. */
export function otherVersion(peer: "source" | "target", version: number): string {
  return `the careof of the ${peer} speaks version ${String(version)} of the relay, and this host's version ${String(RELAY_VERSION)}: update the older one`;
}
