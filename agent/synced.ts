import { closeSync, fsyncSync, openSync } from "node:fs";
import { open } from "node:fs/promises";

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
