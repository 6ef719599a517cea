import { closeSync, fsyncSync, openSync, renameSync, writeSync } from "node:fs";
import { open } from "node:fs/promises";
import { dirname } from "node:path";

/** The file's whole content, by way of FILE.new: a crash at any point leaves the old one or the new one. Survives the power being cut when this has returned. */
export function writeDurably(file: string, bytes: Uint8Array): void {
  const descriptor = openSync(`${file}.new`, "w", 0o600);
  try {
    for (let done = 0; done < bytes.length;) done += writeSync(descriptor, bytes, done);
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
  renameSync(`${file}.new`, file);
  syncDirectoryNow(dirname(file));
}

/** What was made, named anew or removed in a directory survives the power being cut when this has returned. For what nothing may run beside. */
export function syncDirectoryNow(directory: string): void {
  const descriptor = openSync(directory, "r");
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

/** The same, while others go on: for directories whose file system may be busy with a guest. */
export async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
