import { readdirSync, readFileSync } from "node:fs";
import { CareofError } from "../model/errors.js";
import { close, descriptorOf, readable } from "./syscall.js";
import { requireInterfaceName } from "./tap.js";

/** What waits in front of a VM's port until its reader takes it. */
export interface PortQueue {
  /** Whether the reader has taken everything that has been delivered to the port until now. */
  isEmpty(): boolean;
  /** Idempotent. */
  close(): void;
}

/**
 * The queues of TAP `name` (one, but for a QEMU with several), seen through the descriptors by which process `reader` reads them: the kernel says nowhere else how full they are. Nothing is read
 * here, and the TAP is kept open no longer than until `close`. What vhost-net has taken already and the guest has not is not seen.
 * @throws CareofError `no-reader` (the process does not hold that TAP), `kernel-refused`
 */
export function tapQueue(reader: number, name: string): PortQueue {
  const found = descriptorsFor(reader, requireInterfaceName(name));
  if (found.length === 0) throw new CareofError("no-reader", `process ${String(reader)} does not have TAP ${name} open`);
  const own: number[] = [];
  const closeAll = (): void => { for (const fd of own.splice(0)) close(fd); };
  try {
    for (const fd of found) own.push(descriptorOf(reader, fd));
  } catch (thrown) {
    closeAll();
    throw thrown;
  }
  return { isEmpty: () => !own.some((fd) => readable(fd)), close: closeAll };
}

/** The numbers under which `reader` has TAP `name` open: the kernel tells by an `iff:` line. */
function descriptorsFor(reader: number, name: string): readonly number[] {
  const directory = `/proc/${String(reader)}/fdinfo`;
  return entries(directory).filter((entry) => lines(`${directory}/${entry}`).some((line) => line.startsWith("iff:") && line.slice(4).trim() === name)).map(Number);
}

function entries(directory: string): readonly string[] {
  try {
    return readdirSync(directory);
  } catch (cause) {
    throw new CareofError("no-reader", `${directory} cannot be read`, { cause });
  }
}

/** Empty for a descriptor that was closed meanwhile. */
function lines(path: string): readonly string[] {
  try {
    return readFileSync(path, "utf8").split("\n");
  } catch {
    return [];
  }
}
