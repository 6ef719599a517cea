import { chmodSync, closeSync, existsSync, mkdirSync, openSync, statSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import { CareofError, toCareofError } from "../model/errors.js";
import type { End } from "./ipip-device.js";
import { lock } from "./syscall.js";

/** Root's alone: whoever can open a file can lock it, and keep careof from starting. */
export const CLAIMS = "/run/careof-ends";
const ENDS: Readonly<Record<End, { readonly other: End; readonly is: string }>> = { home: { other: "host", is: "a home agent" }, host: { other: "home", is: "a host agent" } };

/** Of this thread's network namespace: its number is that of no other one while it lives. */
function claimOf(end: End): string {
  return join(CLAIMS, `${String(statSync("/proc/thread-self/ns/net").ino)}-${end}`);
}

/**
 * One network namespace is one end of the tunnels. With both on one uplink each takes the other's packets: the routes to a VM that is here are the same, what one end sends to the other's address never passes
 * the uplink's hooks, and either drops what the other's slow path hands over.
 * @throws CareofError `both-ends` while a process has the other end here, `kernel-refused` (not root)
 */
export function requireOneEnd(end: End): void {
  if (existsSync(CLAIMS)) alone(() => { refuseBoth(end); });
}

/**
 * Says which end this network namespace has: by a lock on a file, which is gone with the process, however that ends. Any number of processes may have the same end (each has a `runDir` of its own), and a process any
 * number of claims: an agent has one from before it touches anything, each of its tunnels another.
 */
export class EndClaim {
  readonly #path: string;
  readonly #file: number;

  /** @throws CareofError `both-ends`, `kernel-refused` */
  constructor(end: End) {
    this.#path = claimOf(end);
    granted(() => {
      mkdirSync(CLAIMS, { recursive: true, mode: 0o700 });
      chmodSync(CLAIMS, 0o700);
    });
    this.#file = alone(() => {
      refuseBoth(end);
      const file = openSync(this.#path, "a", 0o600);
      if (lock(file, "shared")) return file;
      closeSync(file);
      throw new CareofError("kernel-refused", `${this.#path} is locked by a program that is not careof`);
    });
  }

  close(): void {
    closeSync(this.#file);
    if (existsSync(CLAIMS)) alone(() => { isHeld(this.#path); });
  }
}

function refuseBoth(end: End): void {
  const { is, other } = ENDS[end];
  if (isHeld(claimOf(other))) throw new CareofError("both-ends", `${ENDS[other].is} of careof runs in this network namespace, and ${is} cannot as well: give one of them a namespace of its own`);
}

/** A file that nobody holds is removed: the namespace may be gone. Within `alone` only, or it would be another's who has just opened it. */
function isHeld(path: string): boolean {
  if (!existsSync(path)) return false;
  const file = openSync(path, "r");
  try {
    if (!lock(file, "exclusive")) return true;
    unlinkSync(path);
    return false;
  } finally {
    closeSync(file);
  }
}

/** One process at a time, so that looking for the other end and claiming one's own are one step. It takes microseconds, so they wait for each other. */
function alone<T>(work: () => T): T {
  const gate = granted(() => openSync(CLAIMS, "r"));
  try {
    lock(gate, "exclusive, waiting");
    return work();
  } finally {
    closeSync(gate);
  }
}

function granted<T>(work: () => T): T {
  try {
    return work();
  } catch (thrown) {
    const cause = toCareofError(thrown);
    throw new CareofError("kernel-refused", `which end a network namespace has stands in ${CLAIMS}: ${cause.message}`, { cause });
  }
}
