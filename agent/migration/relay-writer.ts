import type { Socket } from "node:net";

/**
 * Hands to a hypervisor what comes over TLS, which gives out its records one by one, 16 KiB each: all that has come in one turn of the event loop is written at once, and the peer is
 * paused only when `highWaterBytes` wait, not at every record.
 */
export class RelayWriter {
  readonly #socket: Socket;
  readonly #highWaterBytes: number;
  #gathering = false;

  constructor(socket: Socket, highWaterBytes: number) {
    this.#socket = socket;
    this.#highWaterBytes = highWaterBytes;
  }

  /** False: wait for the socket's `drain` before more is written. What is written last is written before the socket's end. */
  write(data: Uint8Array): boolean {
    if (!this.#gathering) {
      this.#gathering = true;
      this.#socket.cork();
      setImmediate(() => {
        this.#gathering = false;
        this.#socket.uncork();
      });
    }
    this.#socket.write(data);
    return this.#socket.writableLength < this.#highWaterBytes;
  }
}
