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
 * The queue of TAP `name`, seen through the descriptor by which process `reader` reads it: the kernel says nowhere else how full it is. Nothing is read here, and the TAP is
 * kept open no longer than until `close`.
 * @throws CareofError `no-reader` (the process does not hold that TAP), `kernel-refused`
 */
export function tapQueue(reader: number, name: string): PortQueue {
  let fd: number | null = descriptorOf(reader, descriptorFor(reader, requireInterfaceName(name)));
  return {
    isEmpty: () => fd === null || !readable(fd),
    close: () => {
      if (fd !== null) close(fd);
      fd = null;
    },
  };
}

/** The number under which `reader` has TAP `name` open: the kernel tells by an `iff:` line. */
function descriptorFor(reader: number, name: string): number {
  const directory = `/proc/${String(reader)}/fdinfo`;
  for (const entry of entries(directory)) {
    if (lines(`${directory}/${entry}`).some((line) => line.startsWith("iff:") && line.slice(4).trim() === name)) return Number(entry);
  }
  throw new CareofError("no-reader", `process ${String(reader)} does not have TAP ${name} open`);
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
