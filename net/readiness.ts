import { Buffer } from "node:buffer";
import { readSync } from "node:fs";
import type { CareofError } from "../model/errors.js";
import { EINTR, errnoOf } from "./errno.js";
import { close, eventDescriptor, poll, ring } from "./syscall.js";

const POLLIN = 1;
const POLLFD = 8;

/** Of all that are not closed. */
let shared: Poller | null = null;

/**
 * Calls back when a descriptor that Node itself cannot wait for (netlink, packet sockets, TAPs) can be read: within 0.1 ms as a rule. However many there are
 * of these in a process, they share one thread of Node's pool, of which files and names need the others. Whoever is called reads until there is no more.
 */
export class Readiness {
  readonly #poller: Poller;
  readonly #failed: (error: CareofError) => void;

  /** `failed`: waiting is not possible any more. @throws CareofError `kernel-refused` */
  constructor(failed: (error: CareofError) => void) {
    this.#failed = failed;
    shared ??= new Poller();
    this.#poller = shared;
    this.#poller.join(this, (error) => { this.#failed(error); });
  }

  /** `ready` must not throw. */
  add(descriptor: number, ready: () => void): void {
    this.#poller.watch(this, descriptor, ready);
  }

  /** Before the descriptor is closed. */
  remove(descriptor: number): void {
    this.#poller.forget(this, descriptor);
  }

  /** Idempotent. What was added is not called any more, and what is added is not heeded. */
  close(): void {
    if (this.#poller.leave(this) && shared === this.#poller) shared = null;
  }
}

interface Watch {
  readonly owner: Readiness;
  readonly ready: () => void;
}

/** The thread: it waits for what all of them have added, as long as there is something. */
class Poller {
  readonly #members = new Map<Readiness, (error: CareofError) => void>();
  readonly #watched = new Map<number, Watch>();
  readonly #wake = eventDescriptor();
  #state: "idle" | "waiting" | "calling" = "idle";

  join(member: Readiness, failed: (error: CareofError) => void): void {
    this.#members.set(member, failed);
  }

  watch(owner: Readiness, descriptor: number, ready: () => void): void {
    if (!this.#members.has(owner)) return;
    this.#watched.set(descriptor, { owner, ready });
    this.#again();
  }

  forget(owner: Readiness, descriptor: number): void {
    // The number may be another descriptor's by now, and somebody else's.
    if (this.#watched.get(descriptor)?.owner !== owner) return;
    this.#watched.delete(descriptor);
    this.#again();
  }

  /** True when it was the last one: then this poller is at its end. */
  leave(member: Readiness): boolean {
    if (!this.#members.delete(member)) return false;
    for (const [descriptor, { owner }] of [...this.#watched]) if (owner === member) this.#watched.delete(descriptor);
    const last = this.#members.size === 0;
    if (this.#state === "waiting") ring(this.#wake);
    else if (last && this.#state === "idle") close(this.#wake);
    return last;
  }

  /** What is waited for has changed: the thread comes back and is sent again. Behind the calls of a turn it is sent anyway. */
  #again(): void {
    if (this.#state === "waiting") ring(this.#wake);
    else if (this.#state === "idle") this.#wait();
  }

  #wait(): void {
    if (this.#watched.size === 0) return;
    const watched = [...this.#watched];
    const descriptors = [this.#wake, ...watched.map(([descriptor]) => descriptor)];
    const polled = Buffer.alloc(POLLFD * descriptors.length);
    descriptors.forEach((descriptor, index) => {
      polled.writeInt32LE(descriptor, index * POLLFD);
      polled.writeInt16LE(POLLIN, index * POLLFD + 4);
    });
    this.#state = "waiting";
    poll(polled, (failed) => {
      this.#state = "calling";
      try {
        if (failed === null) this.#call(watched, descriptors.map((_, index) => polled.readInt16LE(index * POLLFD + 6) !== 0));
      } finally {
        this.#state = "idle";
        if (this.#members.size === 0) close(this.#wake);
        // A signal that Node handles has met just this thread: nothing is wrong, and nobody is ready.
        else if (failed === null || errnoOf(failed) === EINTR) this.#wait();
        else this.#fail(failed);
      }
    });
  }

  /** `ready`: of the wake, then of `watched` in its order. */
  #call(watched: readonly (readonly [number, Watch])[], [woken, ...ready]: readonly boolean[]): void {
    if (woken === true) readSync(this.#wake, Buffer.alloc(8));
    watched.forEach(([descriptor, watch], index) => {
      // One that was called before may have removed this one, and another have its number by now.
      if (ready[index] === true && this.#watched.get(descriptor) === watch) watch.ready();
    });
  }

  #fail(error: CareofError): void {
    for (const [member, failed] of [...this.#members]) if (this.#members.has(member)) failed(error);
  }
}
