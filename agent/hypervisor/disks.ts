import type { DiskFormat, QemuSpec } from "../../proto/messages.js";
import type { FileId } from "./open-files.js";

/** One disk of a guest. `local`: this host alone sees it, and it moves with the guest. */
export interface Disk {
  readonly path: string;
  readonly format: DiskFormat;
  readonly local: boolean;
}

/** The guest's disks, in its order. */
export function disksOf({ disks, diskOptions }: Pick<QemuSpec, "disks" | "diskOptions">): readonly Disk[] {
  return disks.map((path) => {
    const options = diskOptions.find((each) => each.path === path);
    return { path, format: options?.format ?? (path.endsWith(".qcow2") ? "qcow2" : "raw"), local: options?.shared === false };
  });
}

export function localDisks(qemu: QemuSpec | null): readonly Disk[] {
  return qemu === null ? [] : disksOf(qemu).filter(({ local }) => local);
}

/** Bytes: what the guest sees, and what the file takes of its file system. `disk` counts the guest's disks from 0, shared ones too. */
export interface DiskSize {
  readonly disk: number;
  readonly virtualBytes: number;
  readonly allocatedBytes: number;
  /** The hypervisor's own name for the file, */
  readonly file: string;
  /** and what it has open under that name; `null`: the name is another file's by now. */
  readonly open: FileId | null;
}

/** Bytes over all disks, holes too; `total` grows with what the guest writes. */
export interface DiskProgress {
  readonly copied: number;
  readonly total: number;
}

export interface MirrorOptions {
  /** Unix socket of the target's exports, or of the agent's relay to them. */
  readonly socket: string;
  /** Bytes per second and disk, 0 is unlimited. */
  readonly maxBandwidth: number;
}

/**
 * The disks of one guest that its host alone sees. Contract (same tests for every driver), in the order of a move:
 *
 *   target `exportTo`; source `mirror`, event `disks ready`; the stream until `pre-switchover`; source `finish`; target `endExports`; source `continueSwitchover`.
 *
 * From `ready` on every write of the guest is on both sides before it is answered. Limits and errors as for `Guest`. A guest without such disks answers with nothing and does nothing.
 */
export interface GuestDisks {
  sizes(): Promise<readonly DiskSize[]>;
  /** Target, before the stream comes: whoever connects to `socket` may write the disks. */
  exportTo(socket: string): Promise<void>;
  /** Target: nobody may any more, and all that was written is in the disks. Idempotent. */
  endExports(): Promise<void>;
  /**
   * Source: begins to copy to exports of the same guest's disks, which must be empty. Holes stay holes, and zeros become some. The event `disks` follows, `ready` when
   * every disk is the same on both sides, or `failed`; a failure leaves the guest alone.
   */
  mirror(options: MirrorOptions): Promise<void>;
  /** Source. Where the hypervisor was not heard for a while, what it told of the copy meanwhile follows from this: the event `disks`, once. */
  progress(): Promise<DiskProgress>;
  /** Source, with the guest halted and `ready`: lets go of the exports with both sides the same. @throws CareofError `disk-failed`: they are not, or not for certain */
  finish(): Promise<void>;
  /** Source: the copy is given up, the guest and its disks are left alone. Resolves when nothing of the copy is left. Idempotent; also of an earlier life of the agent. */
  drop(): Promise<void>;
}
