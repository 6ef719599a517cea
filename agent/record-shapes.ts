import { z } from "zod";
import { fields } from "../model/config.js";
import { epoch, millis, parseMigrationId, type Epoch, type HostId, type MigrationId, type Millis } from "../model/ids.js";
import type { Locator } from "../model/locator.js";
import type { Adopt, Peer, VmSpec } from "../proto/messages.js";
import type { GuestIdentity } from "./hypervisor/driver.js";
import type { FileId } from "./hypervisor/open-files.js";

/** Shapes of what this agent keeps on disk. A field is only ever added, with a default: an older file must stay readable. */

const epochField: z.ZodType<Epoch> = z.number().transform((value) => epoch(value));
const millisField: z.ZodType<Millis> = z.number().transform((value) => millis(value));
const migrationField: z.ZodType<MigrationId> = z.string().transform((text) => parseMigrationId(text).id);

const spec: z.ZodType<VmSpec> = z.strictObject({
  vm: fields.vm,
  homeAddresses: z.array(fields.ipAddress),
  mac: fields.mac,
  driver: z.enum(["qemu", "external"]),
  qemu: z.strictObject({
    memoryBytes: z.number(), cpus: z.number(), kernel: z.string(), initrd: z.string(), append: z.string(), disks: z.array(z.string()), extraArgs: z.array(z.string()),
    diskOptions: z.array(z.strictObject({ path: z.string(), shared: z.boolean(), format: z.enum(["raw", "qcow2"]) })).default([]),
  }).nullable(),
  externalPort: z.string(),
  listsHost: z.boolean(),
});

const identity: z.ZodType<GuestIdentity> = z.strictObject({ pid: z.number(), startTicks: z.string(), bootId: z.string(), control: z.string(), console: z.string() });

const locator: z.ZodType<Locator> = z.strictObject({ address: fields.ipAddress, encapsulation: z.literal("ip-in-ip"), port: z.number(), pathMtu: z.number() });

/**
 * What this host knows of a VM. `owner`: a guest of it runs (or ran, when the agent was last seen) here under `epoch`; `identity` is null between the decision to
 * start it and its process. `ended`: a tombstone, nothing up to `epoch` may ever run here again.
 */
export interface VmRecord {
  readonly state: "owner" | "ended";
  readonly epoch: Epoch;
  readonly spec: VmSpec;
  readonly identity: GuestIdentity | null;
  /** Interface and monitor of a guest that somebody else has started, `null` for one of ours. */
  readonly adopted: Adopt | null;
}

export const vmRecord: z.ZodType<VmRecord> = z.strictObject({
  state: z.enum(["owner", "ended"]), epoch: epochField, spec, identity: identity.nullable(), adopted: z.strictObject({ control: z.string(), port: z.string() }).nullable().default(null),
});

/** What the home agent said last of a VM that somebody else moves, so that its traffic lives on while this agent is started again. */
export interface OutsideRecord {
  readonly spec: VmSpec;
  readonly epoch: Epoch;
  readonly owner: HostId | null;
  readonly peers: readonly Peer[];
}

export const outsideRecord: z.ZodType<OutsideRecord> = z.strictObject({ spec, epoch: epochField, owner: fields.host.nullable(), peers: z.array(z.strictObject({ host: fields.host, locator })) });

/** One unsettled migration, by VM. `stopAt`, `markerAt` and `bytes` are the source's, to be said again. */
export interface MigrationFile {
  readonly migration: MigrationId;
  readonly side: "source" | "target";
  readonly state: "active" | "released" | "resumed" | "prepared" | "continued" | "never-ran";
  readonly epoch: Epoch;
  readonly peer: string;
  readonly peerLocator: Locator;
  readonly spec: VmSpec;
  readonly identity: GuestIdentity | null;
  readonly stopAt: Millis | null;
  readonly markerAt: Millis | null;
  readonly bytes: number;
  /** Files that the target has made, or was about to, and that go with a guest which never ran. */
  readonly madeDisks: readonly string[];
  /** The files that the source's guest has open as its own disks, and that go when it has gone. */
  readonly movedDisks: readonly DiskFile[];
  /** It was continued while memory of it was still at the source. */
  readonly fetching: boolean;
  /** The source's, once it is released: the guest went with its memory behind it, and can never run here again. */
  readonly postcopy: boolean;
}

/** A file of this host's, and not another one that has its name later. */
export interface DiskFile extends FileId {
  readonly path: string;
}

export const migrationFile: z.ZodType<MigrationFile> = z.strictObject({
  migration: migrationField,
  side: z.enum(["source", "target"]),
  state: z.enum(["active", "released", "resumed", "prepared", "continued", "never-ran"]),
  epoch: epochField,
  peer: z.string(),
  peerLocator: locator,
  spec,
  identity: identity.nullable(),
  stopAt: millisField.nullable(),
  markerAt: millisField.nullable(),
  bytes: z.number(),
  madeDisks: z.array(z.string()).default([]),
  movedDisks: z.array(z.strictObject({ path: z.string(), dev: z.string(), ino: z.string() })).default([]),
  fetching: z.boolean().default(false),
  postcopy: z.boolean().default(false),
});
