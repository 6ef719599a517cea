import { open, rm, type FileHandle } from "node:fs/promises";
import { dirname } from "node:path";
import { CareofError, toCareofError } from "../../model/errors.js";
import type { DiskImage } from "../../proto/messages.js";
import { syncDirectory } from "../synced.js";

const CLUSTER_BITS = 16;
const CLUSTER = 2 ** CLUSTER_BITS;
/** An entry of the first table stands for a cluster full of 8-byte entries of the second one, each a cluster. */
const L1_ENTRY_BYTES = CLUSTER * (CLUSTER / 8);
/** Header, refcount table and refcount block come before the first table, a cluster each. */
const L1_CLUSTER = 3;
const HEADER_BYTES = 104;
const REFCOUNT_ORDER = 4;

/**
 * Makes an empty image of the disk's size that takes next to nothing of the file system, and is on disk with its name when this resolves.
 * @throws CareofError `disk-exists`: there is a file already, which is left alone; `disk-failed`: nothing is left behind
 */
export async function makeImage({ path, format, virtualBytes }: Pick<DiskImage, "path" | "format" | "virtualBytes">): Promise<void> {
  let file: FileHandle;
  try {
    file = await open(path, "wx", 0o600);
  } catch (cause) {
    if (cause instanceof Error && "code" in cause && cause.code === "EEXIST") throw new CareofError("disk-exists", `${path} is there already`, { cause });
    throw new CareofError("disk-failed", `cannot make ${path}: ${toCareofError(cause).message}`, { cause });
  }
  try {
    if (format === "raw") await file.truncate(virtualBytes);
    else await writeQcow2(file, virtualBytes);
    await file.sync();
    await syncDirectory(dirname(path));
  } catch (cause) {
    await rm(path, { force: true });
    throw new CareofError("disk-failed", `cannot make ${path}: ${toCareofError(cause).message}`, { cause });
  } finally {
    await file.close();
  }
}

/** An empty qcow2 image, version 3, as QEMU's docs/interop/qcow2.rst lays it out; written here because qemu-img is a package of its own. */
async function writeQcow2(file: FileHandle, virtualBytes: number): Promise<void> {
  const l1Entries = Math.max(1, Math.ceil(virtualBytes / L1_ENTRY_BYTES));
  const clusters = L1_CLUSTER + Math.ceil((l1Entries * 8) / CLUSTER);
  const refcountBits = 2 ** REFCOUNT_ORDER;
  if (clusters > (CLUSTER * 8) / refcountBits) throw new CareofError("disk-failed", `${String(virtualBytes)} bytes are too many for one refcount block`);
  const header = Buffer.alloc(HEADER_BYTES);
  header.write("QFI\u00fb", 0, "latin1");
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(CLUSTER_BITS, 20);
  header.writeBigUInt64BE(BigInt(virtualBytes), 24);
  header.writeUInt32BE(l1Entries, 36);
  header.writeBigUInt64BE(BigInt(L1_CLUSTER * CLUSTER), 40);
  header.writeBigUInt64BE(BigInt(CLUSTER), 48);
  header.writeUInt32BE(1, 56);
  header.writeUInt32BE(REFCOUNT_ORDER, 96);
  header.writeUInt32BE(HEADER_BYTES, 100);
  const refcountTable = Buffer.alloc(8);
  refcountTable.writeBigUInt64BE(BigInt(2 * CLUSTER));
  const refcounts = Buffer.alloc((clusters * refcountBits) / 8);
  for (let cluster = 0; cluster < clusters; cluster++) refcounts.writeUInt16BE(1, cluster * 2);
  await file.truncate(clusters * CLUSTER);
  await file.write(header, 0, header.length, 0);
  await file.write(refcountTable, 0, refcountTable.length, CLUSTER);
  await file.write(refcounts, 0, refcounts.length, 2 * CLUSTER);
}
