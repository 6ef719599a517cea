import { Buffer } from "node:buffer";
import { readdirSync, readFileSync } from "node:fs";
import { CareofError } from "../model/errors.js";
import { wholePackets } from "./left-behind.js";
import { close, descriptorOf, readable, tryRead } from "./syscall.js";
import { offloadHeader, requireInterfaceName } from "./tap.js";

/** A TAP frame with its headers: 64 KiB of IP at most. */
const FRAME_BYTES = 65_600;

/** What waits in front of a VM's port until its reader takes it. */
export interface PortQueue {
  /** Whether the reader has taken everything that has been delivered to the port until now. */
  isEmpty(): boolean;
  /**
   * Takes up to `limit` frames away from a reader that does not read any more, oldest first; what they were as IPv4 packets, and of how many frames nothing can be made.
   * An answer without either: nothing is left. @throws CareofError `kernel-refused`
   */
  take(limit: number): Taken;
  /** Idempotent. */
  close(): void;
}

export interface Taken {
  readonly frames: number;
  readonly packets: readonly Buffer[];
  readonly unfit: number;
}

/**
 * The queues of TAP `name` (one, but for a QEMU with several), seen through the descriptors by which process `reader` reads them: the kernel says nowhere else how full they are. Nothing is read
 * here before `take`, and the TAP is kept open no longer than until `close`. What vhost-net has taken already and the guest has not is not seen.
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
  return { isEmpty: () => !own.some((fd) => readable(fd)), take: (limit) => takeFrom(own, limit), close: closeAll };
}

/** Only what is there: the descriptors are the reader's, and may be ones that wait. */
function takeFrom(descriptors: readonly number[], limit: number): Taken {
  const buffer = Buffer.allocUnsafe(FRAME_BYTES);
  const taken = { frames: 0, packets: new Array<Buffer>(), unfit: 0 };
  for (const fd of descriptors) {
    const header = offloadHeader(fd);
    while (taken.frames < limit && readable(fd)) {
      const length = tryRead(fd, buffer);
      if (length < 0) break;
      taken.frames++;
      const packets = wholePackets(buffer.subarray(0, length), header);
      if (packets === null) taken.unfit++;
      else taken.packets.push(...packets);
    }
  }
  return taken;
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
