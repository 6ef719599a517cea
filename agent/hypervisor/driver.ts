import type { Mac } from "../../model/address.js";
import type { Epoch, Millis, VmId } from "../../model/ids.js";
import type { QemuSpec } from "../../proto/messages.js";
import type { GuestDisks } from "./disks.js";

/** What this driver can do on this machine; goes to the home agent at registration. */
export interface DriverFacts {
  /** It opens the VM's TAP itself, so that the packets of a pause wait in the TAP's queue. */
  readonly ownsTap: boolean;
  /** The migration's bytes run through a socket that the agent holds: a dead link can be cut off. */
  readonly ownsStream: boolean;
  /** The source does not stop the guest before bytes from the target reached it (QEMU's switchover-ack). */
  readonly canLead: boolean;
  /** The target waits for `resume` when everything has arrived. */
  readonly canHoldTarget: boolean;
  /** `10.0.2`; empty: none. */
  readonly version: string;
  readonly accelerator: "kvm" | "tcg" | "none";
  /** Why that accelerator, for people. */
  readonly acceleratorReason: string;
}

/** One guest as it shall run here. */
export interface GuestSpec {
  readonly vm: VmId;
  /** Tells this life of the guest from others of the same VM on this host; part of its files' names. */
  readonly epoch: Epoch;
  readonly mac: Mac;
  /** Name of an existing TAP, `null` for a guest without network. */
  readonly port: string | null;
  readonly qemu: QemuSpec;
}

/**
 * Finds a guest again after the agent's restart. Plain data, kept on disk. `startTicks` (field 22 of /proc/PID/stat) and `bootId` tell the process from
 * another one that got the same number.
 */
export interface GuestIdentity {
  readonly pid: number;
  readonly startTicks: string;
  readonly bootId: string;
  readonly control: string;
  readonly console: string;
}

/**
 * `running` executes. `halted` may execute but does not (stopped by an operator, or inside a migration). `incoming` waits for its state. `loaded` is an
 * incoming guest that has all of it (by postcopy: all but memory) and waits for `resume`. `fetching` executes while part of its memory is at the source, `stranded` will never get it: it
 * stands as soon as it needs some of it. `handed-over` has sent all of it (QEMU: postmigrate). `gone` has no process any more.
 */
export type GuestStatus = "running" | "halted" | "incoming" | "loaded" | "fetching" | "stranded" | "handed-over" | "gone";

/** QEMU's words; `none` before the first migration. */
export type StreamStatus =
  | "none" | "setup" | "active" | "pre-switchover" | "device" | "postcopy-active" | "postcopy-paused" | "completed" | "failed" | "cancelling" | "cancelled";

export interface StreamProgress {
  readonly status: StreamStatus;
  readonly transferred: number;
  readonly remaining: number;
  readonly total: number;
  /** Times that the whole memory has been looked through. */
  readonly passes: number;
  readonly bytesPerSecond: number;
  readonly dirtyBytesPerSecond: number;
  /** How long the guest would stand if it were stopped now, by the hypervisor's own estimate; `null`: not known. */
  readonly expectedDowntimeMs: Millis | null;
  /** Of its processor time that the guest is denied for the copy's sake; 0 to 100. */
  readonly throttlePercent: number;
  /** The hypervisor's own words for a failure; empty: none. */
  readonly error: string;
}

export interface StreamOptions {
  /** The other end, or the agent's relay to it: a unix socket. The source connects to it, the target listens on it. */
  readonly socket: string;
  readonly lead: boolean;
  /** Bytes per second, 0 is unlimited. Source only. */
  readonly maxBandwidth: number;
  /** Source only. */
  readonly downtimeLimitMs: Millis;
  /** Slow a guest down that writes faster than is copied. Source only. */
  readonly autoConverge: boolean;
  /** More than 1: the memory goes over so many connections beside that of the guest's state (QEMU's multifd). The same on both sides. */
  readonly channels: number;
  /** `startPostcopy` may be asked for. The same on both sides. */
  readonly postcopy: boolean;
}

/** `at` is on `Clock.monotonic`. */
export type GuestEvent =
  | { readonly kind: "stopped"; readonly at: Millis }
  | { readonly kind: "resumed"; readonly at: Millis }
  | { readonly kind: "stream"; readonly status: StreamStatus }
  /** The copy of the disks (`GuestDisks.mirror`). */
  | { readonly kind: "disks"; readonly status: "ready" | "failed"; readonly detail: string }
  /** The whole memory has been looked through again; only the first few dozen of a copy are told. */
  | { readonly kind: "pass"; readonly passes: number; readonly at: Millis }
  /** Of a process that somebody else has started: whether its monitor answers. */
  | { readonly kind: "monitor"; readonly reachable: boolean }
  | { readonly kind: "gone"; readonly detail: string };

/**
 * One guest process. Contract (same tests for every driver):
 * events come in the order in which things happened, `gone` last and once. Every call ends within a bounded time, by its result or by a CareofError:
 * `guest-gone` (no process), `guest-unreachable` (retryable: a process that somebody else has started lives, and its monitor does not answer), `qmp-timeout` (retryable),
 * `qmp-…` (the hypervisor refused). Calls may be made at any time.
 */
export interface Guest {
  readonly vm: VmId;
  readonly identity: GuestIdentity;
  readonly disks: GuestDisks;
  /** False: its process lives, as far as is known, and cannot be asked. It is tried again until it can. */
  readonly reachable: boolean;
  /** Returns the function that ends the subscription. */
  subscribe(listener: (event: GuestEvent) => void): () => void;
  /** Never rejects for a guest that is gone. */
  status(): Promise<GuestStatus>;
  progress(): Promise<StreamProgress>;
  /** Target: from now on the other side may connect to `socket`. */
  receive(options: StreamOptions): Promise<void>;
  /** Source: begins to copy. The guest stops by itself (`stopped`, `pre-switchover`) and waits there for `continueSwitchover`. */
  send(options: StreamOptions): Promise<void>;
  /** Source, little being left: stop as soon as the gate allows it, whatever the rate of the copy was. May be refused by an old hypervisor. */
  preferSwitchover(): Promise<void>;
  /** Source: stop as soon as the gate allows it, however much is left to copy. */
  forceSwitchover(): Promise<void>;
  /** Source, at the gate: stops the guest now, not when the hypervisor comes to it. Idempotent. Should the copy fail after this, the hypervisor may leave the guest halted. */
  halt(): Promise<void>;
  /**
   * Source: stops the guest and has it go over as soon as the gate allows it, with its memory behind it. From now on the hypervisor never lets the guest run by itself. `postcopy-active` comes when
   * the target has all but memory; from then on the guest can never run here again: nothing gives it up, and a stream that breaks is `postcopy-paused` for good. It may end by `completed` alone as well.
   */
  startPostcopy(): Promise<void>;
  continueSwitchover(): Promise<void>;
  /** Source: gives the copy up. The guest runs on or resumes by itself if the hypervisor had stopped it. No error when there is none. */
  cancelSend(): Promise<void>;
  /** Lets a halted, loaded or handed-over guest run. Idempotent. Who calls it has the right to run. */
  resume(): Promise<void>;
  /** The ACPI power button. Whether the guest obeys is its own business. */
  powerDown(): Promise<void>;
  /** Resolves when the process is gone for certain. One that somebody else has started is asked to end first, and has some seconds. Idempotent. */
  destroy(): Promise<void>;
  /** Lets go of the guest, which lives on. */
  release(): Promise<void>;
}

/** Makes guests. They survive the agent's process. */
export interface HypervisorDriver {
  readonly name: string;
  /** Cheap after the first call. */
  facts(): Promise<DriverFacts>;
  /** A guest that runs. @throws CareofError `start-failed` with the hypervisor's words; nothing is left behind. */
  start(spec: GuestSpec): Promise<Guest>;
  /** A guest that waits for its state and then for `resume`. @throws CareofError `start-failed` */
  incoming(spec: GuestSpec): Promise<Guest>;
  /** The guest of an earlier life of the agent; `null` when that process is gone. One that somebody else has started may be not reachable. */
  adopt(vm: VmId, identity: GuestIdentity): Promise<Guest | null>;
  /**
   * A guest that runs in a process that somebody else has started, whose monitor is `control`. Until it is given back it is driven like ours; its files stay its starter's.
   * @throws CareofError `adopt-failed`, `not-running`, `unsupported`: nothing was touched
   */
  takeOver(vm: VmId, control: string, memoryBytes: number): Promise<Guest>;
  /**
   * Lets go of a guest, which lives on and is none of this agent's any more: `cleanUp` does not know it. `record` is called before: when it has returned, it is durable that the guest is
   * nobody's here; when it throws, so does this and nothing has changed. Returns where its monitor is now.
   */
  giveBack(guest: Guest, record: () => void): Promise<{ readonly control: string }>;
  /** Ends every guest of this agent that is not in `keep` and removes the files that they left. Returns what was ended, for the log. */
  cleanUp(keep: readonly GuestIdentity[]): Promise<readonly string[]>;
}
