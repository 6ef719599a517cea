import { EAGAIN, EINTR } from "./errno.js";
import { PIPE_BYTES, type PumpPipe } from "./pump-words.js";
import { close, trySplice } from "./syscall.js";

/**
 * What the bytes of one pump lie in between being read and being written, on the pumps' thread. Contract: bytes keep their order; neither call waits; both return how many bytes the kernel has moved
 * (sealed ones, where they are), 0 from `take` at the end of what is read, or the negative errno (`isForNow`: nothing was wrong).
 */
export interface Carrier {
  /** Bytes of the stream itself: read so far, and written so far. */
  readonly read: number;
  readonly written: number;
  /** Nothing waits to be written. */
  readonly empty: boolean;
  /** Nothing is read before something is written. */
  readonly full: boolean;
  take(from: number): number;
  give(to: number): number;
  close(): void;
}

export function isForNow(result: number): boolean {
  return result === -EAGAIN || result === -EINTR;
}

/** By splice(2), through a pipe: the bytes never come into this process. */
export class Splicing implements Carrier {
  readonly #pipe: PumpPipe;
  read = 0;
  written = 0;

  constructor(pipe: PumpPipe) {
    this.#pipe = pipe;
  }

  get empty(): boolean {
    return this.read === this.written;
  }

  get full(): boolean {
    return this.read - this.written >= PIPE_BYTES;
  }

  take(from: number): number {
    const bytes = trySplice(from, this.#pipe.writing, PIPE_BYTES - (this.read - this.written));
    if (bytes > 0) this.read += bytes;
    return bytes;
  }

  give(to: number): number {
    const bytes = trySplice(this.#pipe.reading, to, this.read - this.written);
    if (bytes > 0) this.written += bytes;
    return bytes;
  }

  close(): void {
    close(this.#pipe.reading);
    close(this.#pipe.writing);
  }
}
