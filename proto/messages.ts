import type { IpAddress, Mac } from "../model/address.js";
import type { Epoch, HostId, MigrationId, Millis, VmId } from "../model/ids.js";
import type { Locator } from "../model/locator.js";
import type { Reason } from "../model/reasons.js";

/**
 * What the host-agent channel carries, decoded and checked: every name is well formed, every address has a family, every enumeration is known. The bytes
 * are described in careof.proto; `kind` is the name of the field in its Frame. Optional things that were not sent are `null`.
 */
export interface Decision { readonly reason: Reason; readonly epoch: Epoch; readonly detail: string }

export interface Capabilities {
  readonly ownsTap: boolean;
  readonly ownsStream: boolean;
  /** The source can be held at the gate (QEMU's switchover-ack). */
  readonly canLead: boolean;
  /** The target waits for `cont` (`-S`). */
  readonly canHoldTarget: boolean;
  readonly qemuVersion: string;
  readonly accelerator: "kvm" | "tcg" | "none";
  readonly dataPlane: string;
  readonly memoryBytes: number;
  /** It knows disks that move with their guest. */
  readonly localDisks: boolean;
  /** It can take over a guest that somebody else has started, and let go of one. */
  readonly adopts: boolean;
  /** It knows moves that end by postcopy. */
  readonly postcopy: boolean;
}

export type VmState = "absent" | "runs" | "paused" | "incoming" | "released";
export type ReportEvidence = "running" | "stopped" | "resync" | "refresh" | "guest-gone" | "port-gone";
/** What a host has seen of a VM that somebody else moves. */
export type Sighting = "rarp" | "gratuitous-arp" | "packet" | "port" | "arrive";
export type BindingState = "bound" | "moving" | "stale" | "expired" | "lost";

export interface QemuSpec {
  readonly memoryBytes: number;
  readonly cpus: number;
  readonly kernel: string;
  readonly initrd: string;
  readonly append: string;
  /** Paths, in the guest's order. */
  readonly disks: readonly string[];
  readonly extraArgs: readonly string[];
  /** Of the disks that are not simply shared, by path. */
  readonly diskOptions: readonly DiskOptions[];
}

export type DiskFormat = "raw" | "qcow2";

export interface DiskOptions {
  readonly path: string;
  /** False: the host's own, and moves with the guest. */
  readonly shared: boolean;
  readonly format: DiskFormat;
}

/** A disk that moves with its guest. Sizes in bytes: what the guest sees, and what it takes of the file system. */
export interface DiskImage {
  readonly path: string;
  readonly format: DiskFormat;
  readonly virtualBytes: number;
  readonly allocatedBytes: number;
}

export interface VmSpec {
  readonly vm: VmId;
  readonly homeAddresses: readonly IpAddress[];
  readonly mac: Mac;
  readonly driver: "qemu" | "external";
  readonly qemu: QemuSpec | null;
  readonly externalPort: string;
  readonly listsHost: boolean;
}

/** Where on a host a QEMU runs that somebody else has started: a QMP socket of it, and the interface that is the guest's port. */
export interface Adopt {
  readonly control: string;
  readonly port: string;
}

export interface VmReport {
  readonly vm: VmId;
  readonly state: VmState;
  readonly basedOn: Epoch;
  readonly locator: Locator | null;
  readonly evidence: ReportEvidence;
  /** Its process lives, and its monitor does not answer. */
  readonly unreachable: boolean;
}

export interface BindingUpdate {
  readonly vm: VmId;
  readonly epoch: Epoch;
  readonly state: BindingState;
  readonly owner: HostId | null;
  readonly forwardTo: Locator | null;
  readonly forwardMs: Millis;
  readonly spec: VmSpec;
  /** Of a VM that somebody else moves: the other hosts that are listed for it. */
  readonly peers: readonly Peer[];
}

export interface Peer {
  readonly host: HostId;
  readonly locator: Locator;
}

export interface MigrationRecord {
  readonly migration: MigrationId;
  readonly side: "source" | "target";
  readonly state: "active" | "released" | "resumed" | "prepared" | "continued" | "never-ran";
  readonly peer: HostId;
}

export interface MigrationParameters {
  /** Bytes per second, 0 is unlimited. */
  readonly maxBandwidth: number;
  readonly downtimeLimitMs: Millis;
  readonly lead: boolean;
  readonly holdMaxMs: Millis;
  readonly timeoutMs: Millis;
  readonly autoConverge: boolean;
  /** 1 to MAX_CHANNELS. */
  readonly channels: number;
  readonly onTimeout: OnTimeout;
  readonly forceMs: Millis;
  /** A copy that does not converge ends by postcopy. */
  readonly postcopy: boolean;
  /** Memory and disks go between the hosts in clear. */
  readonly clear: boolean;
}

/** What becomes of a copy that has not ended in time: the guest stays, or it is stopped and the rest is copied. */
export type OnTimeout = "abort" | "force";
/** Streams side by side; QEMU's own limit is 255, and more than the processors of a host are of no use. */
export const MAX_CHANNELS = 16;

export type MigrationPhase = "prepare" | "setup" | "disks" | "copy" | "lead" | "stop" | "released" | "postcopy" | "settle";
export type HoldOutcome = "led" | "hold-expired" | "no-gate" | "stopped-early";

export interface BodyByKind {
  readonly decision: Decision;
  readonly register: {
    readonly version: number;
    readonly host: HostId;
    readonly instance: string;
    readonly restartCounter: number;
    readonly locators: readonly Locator[];
    readonly capabilities: Capabilities;
    readonly software: string;
    readonly vms: readonly VmReport[];
    readonly migrations: readonly MigrationRecord[];
    /** VMs that something else moves, of which the host keeps something. */
    readonly known: readonly VmId[];
  };
  readonly vmReport: VmReport;
  readonly relayedHeartbeat: { readonly envelope: Uint8Array; readonly port: number; readonly address: IpAddress };
  readonly progress: {
    readonly migration: MigrationId;
    readonly phase: MigrationPhase;
    readonly transferred: number;
    readonly remaining: number;
    readonly total: number;
    readonly passes: number;
    readonly bytesPerSecond: number;
    readonly dirtyBytesPerSecond: number;
    /** `null`: not known. */
    readonly expectedDowntimeMs: Millis | null;
    /** 0 to 100. */
    readonly throttlePercent: number;
    readonly diskCopied: number;
    readonly diskTotal: number;
    readonly diskBytesPerSecond: number;
  };
  readonly leadReady: { readonly migration: MigrationId };
  readonly switchOver: { readonly migration: MigrationId; readonly stopAt: Millis; readonly markerAt: Millis | null; readonly hold: HoldOutcome };
  readonly released: { readonly migration: MigrationId; readonly epoch: Epoch; readonly stopAt: Millis; readonly markerAt: Millis | null; readonly bytes: number; readonly postcopy: boolean; readonly forced: boolean };
  readonly running: {
    readonly migration: MigrationId;
    readonly epoch: Epoch;
    readonly resumeAt: Millis;
    readonly firstDeliverableAt: Millis | null;
    readonly uplinkOpenAt: Millis | null;
    readonly pauseMs: Millis | null;
    readonly pauseErrorMs: Millis;
    readonly final: boolean;
    /** Packets that found the queue of the VM's port full. */
    readonly overflowed: number;
    /** Memory is still at the source. */
    readonly postcopy: boolean;
    /** `resumeAt` on the source's clock, for whoever knows when the guest stopped there; within `pauseErrorMs`. `null`: the clocks were not compared. */
    readonly resumedAtSource: Millis | null;
  };
  readonly sourceEnded: { readonly migration: MigrationId; readonly result: "source-runs" | "source-released" | "source-gone"; readonly reason: Reason; readonly detail: string };
  readonly targetEnded: { readonly migration: MigrationId; readonly result: "target-runs" | "target-never-ran" | "target-died"; readonly reason: Reason; readonly detail: string; readonly undelivered: number | null };
  readonly announcement: { readonly vm: VmId; readonly basedOn: Epoch; readonly locator: Locator; readonly what: Sighting; readonly at: Millis };
  readonly leaving: { readonly vm: VmId; readonly basedOn: Epoch; readonly to: HostId | null };
  /** `overflowed`, `expired`: packets that were lost while they waited for the VM, since the last time. With token 0 that is all it says. */
  readonly drained: { readonly vm: VmId; readonly token: number; readonly overflowed: number; readonly expired: number };
  readonly registered: {
    readonly decision: Decision;
    readonly restartCounter: number;
    readonly tunnelAddresses: readonly IpAddress[];
    readonly keepAliveMs: Millis;
    readonly lifetimeMs: Millis;
    readonly bindings: readonly BindingUpdate[];
    readonly heartbeatPort: number;
  };
  readonly bindingUpdate: BindingUpdate;
  readonly startVm: { readonly spec: VmSpec; readonly epoch: Epoch; readonly adopt: Adopt | null };
  readonly stopVm: { readonly vm: VmId; readonly epoch: Epoch; readonly force: boolean; readonly patienceMs: Millis; readonly giveBack: boolean };
  readonly prepare: {
    readonly migration: MigrationId;
    readonly spec: VmSpec;
    readonly epoch: Epoch;
    readonly source: HostId;
    readonly sourceLocator: Locator;
    readonly secret: Uint8Array;
    readonly parameters: MigrationParameters;
    readonly disks: readonly DiskImage[];
  };
  readonly describeDisks: { readonly vm: VmId };
  readonly disksDescribed: { readonly disks: readonly DiskImage[] };
  readonly migrate: {
    readonly migration: MigrationId;
    readonly vm: VmId;
    readonly epoch: Epoch;
    readonly target: HostId;
    readonly targetLocator: Locator;
    readonly relayAddress: string;
    readonly relayPort: number;
    readonly secret: Uint8Array;
    readonly parameters: MigrationParameters;
  };
  readonly lead: { readonly migration: MigrationId; readonly token: number };
  readonly abort: { readonly migration: MigrationId; readonly vm: VmId; readonly reason: Reason };
  readonly resume: { readonly migration: MigrationId; readonly vm: VmId; readonly epoch: Epoch; readonly evidence: "target-never-ran" | "resolved-by-operator" };
  readonly revoke: { readonly vm: VmId; readonly epoch: Epoch; readonly forwardTo: Locator | null; readonly graceMs: Millis };
  readonly uplinkSeen: { readonly migration: MigrationId; readonly token: number };
  readonly heartbeatAnswer: { readonly envelope: Uint8Array; readonly port: number; readonly address: IpAddress; readonly vm: VmId };
  readonly prepared: { readonly decision: Decision; readonly relayAddress: string; readonly relayPort: number; readonly canLead: boolean };
  readonly keepAlive: { readonly at: Millis };
}

export type Kind = keyof BodyByKind;
export type Body<K extends Kind = Kind> = { readonly [P in K]: { readonly kind: P } & BodyByKind[P] }[K];

/** One message of the channel. `id` 0 wants no answer; `inReplyTo` 0 is no answer. */
export interface Frame {
  readonly id: number;
  readonly inReplyTo: number;
  readonly body: Body;
}
