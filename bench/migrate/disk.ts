import { randomBytes } from "node:crypto";
import { closeSync, openSync, writeSync } from "node:fs";
import { makeImage } from "../../agent/hypervisor/image.js";

const MIB = 2 ** 20;
export const DISK_BYTES = 128 * MIB;
/** As much as a small system has written to it; the rest are holes. */
const FILLED_MIB = 48;

/** A raw disk that nobody writes to, so that every move carries the same. */
export async function makeDisk(path: string): Promise<void> {
  await makeImage({ path, format: "raw", virtualBytes: DISK_BYTES });
  const file = openSync(path, "r+");
  try {
    for (let at = 0; at < FILLED_MIB; at++) writeSync(file, randomBytes(MIB), 0, MIB, at * MIB);
  } finally {
    closeSync(file);
  }
}
