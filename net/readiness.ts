import { Buffer } from "node:buffer";
import { readSync, writeSync } from "node:fs";
import type { CareofError } from "../model/errors.js";
import { EINTR, errnoOf } from "./errno.js";
import { close, eventDescriptor, poll } from "./syscall.js";

const POLLIN = 1;
const POLLFD = 8;

/**
 * Calls back when a descriptor that Node itself cannot wait for (netlink, packet sockets, TAPs) can be read: within 0.1 ms as a rule. All of them share one
 * thread of Node's pool. Whoever is called reads until there is no more.
 */
export class Readiness {
  readonly #watched = new Map<number, () => void>();
  readonly #wake = eventDescriptor();
  readonly #failed: (error: CareofError) => void;
  #waiting = false;
  #closed = false;

  /** `failed`: waiting is not possible any more. */
  constructor(failed: (error: CareofError) => void) {
    this.#failed = failed;
  }

  /** `ready` must not throw. */
  add(descriptor: number, ready: () => void): void {
    this.#watched.set(descriptor, ready);
    this.#again();
  }

  /** Before the descriptor is closed. */
  remove(descriptor: number): void {
    this.#watched.delete(descriptor);
    this.#again();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watched.clear();
    if (this.#waiting) this.#ring();
    else close(this.#wake);
  }

  /** What is waited for has changed: the thread comes back and is sent again. */
  #again(): void {
    if (this.#waiting) this.#ring();
    else this.#wait();
  }

  #ring(): void {
    const one = Buffer.alloc(8);
    one.writeBigUInt64LE(1n);
    writeSync(this.#wake, one);
  }

  #wait(): void {
    if (this.#closed || this.#waiting) return;
    const descriptors = [this.#wake, ...this.#watched.keys()];
    const polled = Buffer.alloc(POLLFD * descriptors.length);
    descriptors.forEach((descriptor, index) => {
      polled.writeInt32LE(descriptor, index * POLLFD);
      polled.writeInt16LE(POLLIN, index * POLLFD + 4);
    });
    this.#waiting = true;
    poll(polled, (failed) => {
      this.#waiting = false;
      if (this.#closed) {
        close(this.#wake);
        return;
      }
      if (failed !== null) {
        // A signal that Node handles has met just this thread: nothing is wrong, and nobody is ready.
        if (errnoOf(failed) === EINTR) this.#wait();
        else this.#failed(failed);
        return;
      }
      const ready = descriptors.filter((_, index) => polled.readInt16LE(index * POLLFD + 6) !== 0);
      for (const descriptor of ready) {
        if (descriptor === this.#wake) readSync(descriptor, Buffer.alloc(8));
        else this.#watched.get(descriptor)?.();
      }
      this.#wait();
    });
  }
}
