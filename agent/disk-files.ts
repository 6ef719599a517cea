import { existsSync, renameSync, rmSync, statfsSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { CareofError, toCareofError } from "../model/errors.js";
import type { Epoch } from "../model/ids.js";
import type { DiskImage, VmSpec } from "../proto/messages.js";
import { localDisks, type DiskSize } from "./hypervisor/disks.js";

/** Room that is left to others: an image's own tables, and what the guest writes meanwhile. */
const SPARE_BYTES = 16 * 1024 * 1024;

/** The guest's own disks as the hypervisor sees them, with the paths of its specification. */
export function describeDisks(spec: VmSpec, sizes: readonly DiskSize[]): readonly DiskImage[] {
  const disks = spec.qemu?.disks ?? [];
  const local = localDisks(spec.qemu);
  return sizes.flatMap(({ disk, virtualBytes, allocatedBytes }) => {
    const known = local.find(({ path }) => path === disks[disk]);
    return known === undefined ? [] : [{ path: known.path, format: known.format, virtualBytes, allocatedBytes }];
  });
}

/**
 * Whether the disks can be made here: nothing stands in their place, and each file system has room for what they take at the source. Changes nothing.
 * @throws CareofError `disk-exists`, `no-room`, `disk-failed` (no directory, or the source has other disks than `spec`)
 */
export function checkDisks(spec: VmSpec, images: readonly DiskImage[]): void {
  const wanted = localDisks(spec.qemu).map(({ path, format }) => `${path} (${format})`).join(", ");
  const described = images.map(({ path, format }) => `${path} (${format})`).join(", ");
  if (wanted !== described) throw new CareofError("disk-failed", `${spec.vm} runs with the disks ${described || "none"} and is configured with ${wanted || "none"}: stop and start it first`);
  const needed = new Map<number, { readonly directory: string; readonly free: number; bytes: number }>();
  for (const { path, allocatedBytes } of images) {
    if (existsSync(path)) throw new CareofError("disk-exists", `${path} is there already: move it away if it is not needed`);
    const directory = dirname(path);
    const device = deviceOf(directory);
    const { bavail, bsize } = statfsSync(directory);
    const entry = needed.get(device) ?? { directory, free: bavail * bsize, bytes: SPARE_BYTES };
    entry.bytes += allocatedBytes;
    needed.set(device, entry);
  }
  for (const { directory, free, bytes } of needed.values()) {
    if (bytes > free) throw new CareofError("no-room", `${directory} has room for ${megabytes(free)} and the disks of ${spec.vm} take ${megabytes(bytes)}`);
  }
}

/** Removes what was made for a guest that never ran here. Idempotent. */
export function removeDisks(paths: readonly string[]): void {
  for (const path of paths) rmSync(path, { force: true });
}

/** The guest runs elsewhere with its disks for good: its old ones go, or are set aside as `PATH.moved-EPOCH`. Idempotent. */
export function retireDisks(spec: VmSpec, epoch: Epoch, keep: boolean): void {
  for (const { path } of localDisks(spec.qemu)) {
    if (!keep) rmSync(path, { force: true });
    else if (existsSync(path)) renameSync(path, `${path}.moved-${String(epoch)}`);
  }
}

function deviceOf(directory: string): number {
  try {
    return statSync(directory).dev;
  } catch (cause) {
    throw new CareofError("disk-failed", `no directory for a disk: ${toCareofError(cause).message}`, { cause });
  }
}

function megabytes(bytes: number): string {
  return `${String(Math.ceil(bytes / 1e6))} MB`;
}
