import { closeSync, fstatSync, openSync, readSync } from "node:fs";

/** What a guest sees of its disk at `offset`, read from the image file: raw, or qcow2 as agent/hypervisor/image.ts makes it and QEMU fills it. */
export function readDisk(path: string, offset: number, length: number): Buffer {
  const file = openSync(path, "r");
  try {
    const magic = at(file, 0, 4).toString("latin1");
    return magic === "QFI\u00fb" ? readQcow2(file, offset, length) : at(file, offset, length);
  } finally {
    closeSync(file);
  }
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
