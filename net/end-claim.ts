import { readFileSync } from "node:fs";
import { CareofError } from "../model/errors.js";
import type { End } from "./ipip-device.js";
import { bind, close, socket } from "./syscall.js";

const AF_UNIX = 1;
const SOCK_DGRAM_CLOEXEC = 2 | 0o2000000;
const ENDS: Readonly<Record<End, { readonly other: End; readonly is: string }>> = { home: { other: "host", is: "a home agent" }, host: { other: "home", is: "a host agent" } };

let made = 0;

function prefixOf(end: End): string {
  return `careof-end-${end}-`;
}

/**
 * One network namespace is one end of the tunnels. With both on one uplink each takes the other's packets: the routes to a VM that is here are the same, what one end sends to the other's address never passes
 * the uplink's hooks, and either drops what the other's slow path hands over.
 * @throws CareofError `both-ends` while a process has the other end here
 */
export function requireOneEnd(end: End): void {
  const { is, other } = ENDS[end];
  // As the kernel's table of sockets begins those that have no file.
  const found = readFileSync("/proc/thread-self/net/unix", "latin1").includes(` @${prefixOf(other)}`);
  if (found) throw new CareofError("both-ends", `${ENDS[other].is} of careof runs in this network namespace, and ${is} cannot as well: give one of them a namespace of its own`);
}

/** Says which end this network namespace has: by the name of a socket, which belongs to the namespace and is gone with the process, however that ends. */
export class EndClaim {
  readonly #fd: number;

  /** @throws CareofError `both-ends`, `kernel-refused` */
  constructor(end: End) {
    requireOneEnd(end);
    this.#fd = socket(AF_UNIX, SOCK_DGRAM_CLOEXEC, 0);
    try {
      const family = Buffer.alloc(2);
      family.writeUInt16LE(AF_UNIX);
      bind(this.#fd, Buffer.concat([family, Buffer.from(`\0${prefixOf(end)}${String(process.pid)}-${String(++made)}`, "latin1")]));
    } catch (thrown) {
      close(this.#fd);
      throw thrown;
    }
  }

  close(): void {
    close(this.#fd);
  }
}
