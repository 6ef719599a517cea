import { existsSync, realpathSync, statfsSync, statSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { CareofError, toCareofError } from "../model/errors.js";
import type { Epoch } from "../model/ids.js";
import type { DiskImage, VmSpec } from "../proto/messages.js";
import { disksOf, localDisks, type DiskSize } from "./hypervisor/disks.js";
import { fileAt, sameFile } from "./hypervisor/open-files.js";
import type { DiskFile } from "./record-shapes.js";
import { syncDirectory } from "./synced.js";

/** Room that is left to others: an image's own tables, and what the guest writes meanwhile. */
const SPARE_BYTES = 16 * 1024 * 1024;
/** In which stat(2) counts. */
const BLOCK_BYTES = 512;

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
 * The files of these disks, as the hypervisor has them open, so that a move copies and removes no other file than meant. The last part of a path may be no symbolic link, since it would be the link
 * that is removed; those before it are resolved.
 * @throws CareofError `disk-failed`: the hypervisor has another file than the configuration says, or one file is two disks
 */
export function diskFiles(spec: VmSpec, sizes: readonly DiskSize[]): readonly DiskFile[] {
  const files = sizes.flatMap((size) => {
    const path = spec.qemu?.disks[size.disk];
    return path === undefined ? [] : [diskFile(spec, path, size)];
  });
  const all = spec.qemu === null ? [] : disksOf(spec.qemu);
  for (const file of files) {
    // A link to it, or a second name of it, elsewhere in the list.
    const names = all.filter(({ path, local }) => sameFile(file, local ? fileAt(path) : resolvedFile(path)));
    if (names.length > 1) throw new CareofError("disk-failed", `${names.map(({ path }) => path).join(" and ")} are one file: a disk that moves is nobody else's`);
  }
  return files;
}

function diskFile({ vm }: VmSpec, path: string, { file, open }: DiskSize): DiskFile {
  const found = fileAt(path);
  if (found === null) throw new CareofError("disk-failed", `${vm} runs with ${file}, and there is no ${path}`);
  if (found.kind === "link") throw new CareofError("disk-failed", `${path} is a symbolic link: configure the path of the file itself`);
  if (found.kind === "other") throw new CareofError("disk-failed", `${path} is no file, and only files move with their guest`);
  if (!sameFile(found, open)) throw new CareofError("disk-failed", `${vm} runs with ${file}, and not with the file that is at ${path}`);
  return { path: resolved(path), dev: found.dev, ino: found.ino };
}

/** Where that file is when the links on the way to it lead elsewhere. @throws CareofError `disk-failed` when there is no such directory */
export function resolved(path: string): string {
  try {
    return join(realpathSync(dirname(path)), basename(path));
  } catch (cause) {
    throw new CareofError("disk-failed", `no directory for a disk: ${toCareofError(cause).message}`, { cause });
  }
}

function resolvedFile(path: string): ReturnType<typeof fileAt> {
  try {
    return fileAt(realpathSync(path));
  } catch {
    // A shared disk that is not there is not ours to judge.
    return null;
  }
}

/**
 * Whether the disks can be made here: nothing stands in their place, and each file system has room for what they take at the source, besides what disks of other guests that are `coming` have
 * still to take. Changes nothing.
 * @throws CareofError `disk-exists`, `no-room`, `disk-failed` (no directory, or the source has other disks than `spec`)
 */
export function checkDisks(spec: VmSpec, images: readonly DiskImage[], coming: readonly DiskImage[] = []): void {
  const wanted = localDisks(spec.qemu).map(({ path, format }) => `${path} (${format})`).join(", ");
  const described = images.map(({ path, format }) => `${path} (${format})`).join(", ");
  if (wanted !== described) throw new CareofError("disk-failed", `${spec.vm} runs with the disks ${described || "none"} and is configured with ${wanted || "none"}: stop and start it first`);
  const needed = new Map<number, { readonly directory: string; readonly free: number; bytes: number; promised: number }>();
  for (const { path, allocatedBytes } of images) {
    if (fileAt(path) !== null) throw new CareofError("disk-exists", `${path} is there already: move it away if it is not needed`);
    const directory = dirname(path);
    const device = deviceOf(directory);
    const { bavail, bsize } = statfsSync(directory);
    const entry = needed.get(device) ?? { directory, free: bavail * bsize, bytes: SPARE_BYTES, promised: 0 };
    entry.bytes += allocatedBytes;
    needed.set(device, entry);
  }
  for (const each of coming) {
    const entry = needed.get(statSync(dirname(each.path), { throwIfNoEntry: false })?.dev ?? NaN);
    if (entry !== undefined) entry.promised += stillWanted(each);
  }
  for (const { directory, free, bytes, promised } of needed.values()) {
    const besides = promised === 0 ? "" : ` besides ${megabytes(promised)} for guests that come as well`;
    if (bytes > free - promised) throw new CareofError("no-room", `${directory} has room for ${megabytes(Math.max(0, free - promised))}${besides} and the disks of ${spec.vm} take ${megabytes(bytes)}`);
  }
}

/** Bytes that a copy under way will take yet. */
function stillWanted({ path, allocatedBytes }: DiskImage): number {
  return Math.max(0, allocatedBytes - (statSync(path, { throwIfNoEntry: false })?.blocks ?? 0) * BLOCK_BYTES);
}

/** Removes what was made for a guest that never ran here; durable when it resolves. A large file takes its time, in which everything else goes on. Idempotent. @throws CareofError `disk-failed` */
export async function removeDisks(paths: readonly string[]): Promise<void> {
  // Without its directory (unmounted, say) there is nothing of it either.
  for (const path of paths) if (existsSync(dirname(path))) await durably(path, () => rm(path, { force: true }));
}

/**
 * The guest runs elsewhere with its disks for good: its old ones go, or are set aside as `PATH.moved-EPOCH`; durable when it resolves, with what has such a name by now and is another file, and was left
 * alone. Idempotent. @throws CareofError `disk-failed`
 */
export async function retireDisks(files: readonly DiskFile[], epoch: Epoch, keep: boolean): Promise<readonly string[]> {
  const others: string[] = [];
  for (const file of files) {
    const { path } = file;
    const found = fileAt(path);
    if (found === null) continue;
    if (sameFile(found, file)) await durably(path, () => (keep ? rename(path, `${path}.moved-${String(epoch)}`) : rm(path)));
    else others.push(path);
  }
  return others;
}

async function durably(path: string, change: () => Promise<void>): Promise<void> {
  try {
    await change();
    await syncDirectory(dirname(path));
  } catch (cause) {
    throw new CareofError("disk-failed", `${path} could not be removed: ${toCareofError(cause).message}`, { cause });
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
