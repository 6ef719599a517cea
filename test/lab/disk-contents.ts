import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import koffi from "koffi";

/** At a time, of a large disk. */
const CHUNK = 2 ** 20;
/** Node has no door to it. Negative: there is no data behind it. */
const lseek: (file: number, offset: number, whence: number) => number = koffi.load(null).func("lseek", "int64", ["int", "int64", "int"]);
const SEEK_DATA = 3;

export interface Image {
  readonly format: "raw" | "qcow2";
  /** What a guest sees of it. */
  readonly virtualBytes: number;
}

/** What an image file is, by its own first bytes. */
export function imageOf(path: string): Image {
  const file = openSync(path, "r");
  try {
    return isQcow2(file) ? { format: "qcow2", virtualBytes: Number(at(file, 24, 8).readBigUInt64BE()) } : { format: "raw", virtualBytes: fstatSync(file).size };
  } finally {
    closeSync(file);
  }
}

/** The first offset from `from` up to `to` at which a guest would see something else; `null`: nowhere. */
export function firstDifference(one: string, other: string, from: number, to: number): number | null {
  for (let offset = from; offset < to;) {
    const length = Math.min(CHUNK, to - offset);
    const [ours, theirs] = [readDisk(one, offset, length), readDisk(other, offset, length)];
    if (!ours.equals(theirs)) return offset + ours.findIndex((byte, i) => byte !== theirs[i]);
    offset = Math.min(nextData(one, offset + length), nextData(other, offset + length));
  }
  return null;
}

/** At or behind `offset`: up to there are nothing but zeros. */
function nextData(path: string, offset: number): number {
  const file = openSync(path, "r");
  try {
    if (isQcow2(file)) return offset;
    const found = lseek(file, offset, SEEK_DATA);
    return found < 0 ? Infinity : found;
  } finally {
    closeSync(file);
  }
}

/** What a guest sees of its disk at `offset`, read from the image file: raw, or qcow2 as agent/hypervisor/image.ts makes it and QEMU fills it. */
export function readDisk(path: string, offset: number, length: number): Buffer {
  const file = openSync(path, "r");
  try {
    return isQcow2(file) ? readQcow2(file, offset, length) : at(file, offset, length);
  } finally {
    closeSync(file);
  }
}

function isQcow2(file: number): boolean {
  return at(file, 0, 4).toString("latin1") === "QFI\u00fb";
}

/** Beyond the file's end are zeros. */
function at(file: number, offset: number, length: number): Buffer {
  const data = Buffer.alloc(length);
  if (offset < fstatSync(file).size) readSync(file, data, 0, length, offset);
  return data;
}

/** QEMU's docs/interop/qcow2.rst: L1 → L2 → cluster; neither compression nor snapshots. */
function readQcow2(file: number, offset: number, length: number): Buffer {
  const header = at(file, 0, 104);
  const cluster = 2 ** header.readUInt32BE(20);
  const perTable = cluster / 8;
  const l1 = Number(header.readBigUInt64BE(40));
  const out = Buffer.alloc(length);
  for (let done = 0; done < length;) {
    const where = offset + done;
    const number = Math.floor(where / cluster);
    const part = Math.min(length - done, cluster - (where % cluster));
    const table = address(file, l1 + Math.floor(number / perTable) * 8);
    const entry = table === 0 ? 0 : address(file, table + (number % perTable) * 8);
    if (entry !== 0) at(file, entry + (where % cluster), part).copy(out, done);
    done += part;
  }
  return out;
}

/** Where an entry points to; 0 for none and for a cluster that reads as zeros. */
function address(file: number, offset: number): number {
  const entry = at(file, offset, 8).readBigUInt64BE();
  return (entry & 1n) === 1n ? 0 : Number(entry & 0x00ff_ffff_ffff_fe00n);
}
