import type { CareofError } from "../../model/errors.js";
import { millis, type Epoch, type MigrationId, type Millis } from "../../model/ids.js";
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
  /** Bytes that wait for a slow reader before the writer is paused. */
  readonly highWaterBytes: number;
}

export const RELAY_LIMITS: RelayLimits = { connectMs: millis(10_000), maxHeldBytes: 1 << 20, highWaterBytes: 1 << 20 };

/**
 * The source's half: hypervisor's unix socket ⇄ authenticated, encrypted TCP. Contract:
 * the stream is carried byte for byte and in order, the end of either hypervisor's side behind its last byte. `closed` resolves once, when nothing will be
 * carried any more, with why (`null`: an orderly end after a release). After `cut` both hypervisors see their connection closed at once.
 */
export interface SourceRelay {
  /** The hypervisor sends its stream here. Exists until the relay is closed. */
  readonly socket: string;
  readonly closed: Promise<CareofError | null>;
  /** Bytes carried towards the target. */
  readonly bytes: number;
  /** Shuts the gate: what comes from the target waits. Idempotent. */
  hold(): void;
  /** Reads nothing more of the hypervisor, which soon stands still with its next write. Idempotent. */
  stall(): void;
  /** Reads on. Idempotent. */
  flow(): void;
  /** Opens the gate for good, and reads on. Idempotent. Returns the number of bytes that had waited. */
  open(): number;
  /** Sends RELEASE behind everything; no frame follows it. Resolves when it has been handed to the kernel. @throws CareofError `relay-failed` */
  release(release: Release): Promise<void>;
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
  /** Resolves with the source's RELEASE; never, if there is none before the end. */
  readonly released: Promise<Release>;
  /** The difference of both hosts' clocks as known now; `null` before the first comparison. */
  clock(): RelayClockReading | null;
  cut(cause: CareofError): void;
}

/** Nothing heard for so long: the path between the hosts is taken for dead. Longer than what a slow path's buffers hold back an answer. */
export const RELAY_SILENCE: Millis = millis(8_000);

/** Version of the relay's frames, said in hello. */
export const RELAY_VERSION = 1;
