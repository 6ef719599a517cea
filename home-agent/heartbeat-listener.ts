import { createSocket, type RemoteInfo, type Socket } from "node:dgram";
import type { AddressInfo } from "node:net";
import { isIPv6 } from "node:net";
import type { Clock } from "../model/clock.js";
import type { Endpoint } from "../model/config.js";
import { CareofError } from "../model/errors.js";
import type { Logger } from "../model/log.js";
import { MAX_ENVELOPE_BYTES } from "../proto/heartbeat.js";

/** Bytes that the kernel may hold for us: a second of ten thousand guests. */
const RECEIVE_BUFFER = 4 * 1024 * 1024;

export interface HeartbeatListenerOptions {
  readonly endpoint: Endpoint;
  readonly clock: Clock;
  readonly log: Logger;
  /** The datagram to answer with. */
  readonly receive: (datagram: Uint8Array) => Uint8Array | null;
  /** Datagrams a second that are looked at; more are dropped unread. */
  readonly maxPerSecond?: number;
}

/** Guests' heartbeats by UDP: one envelope a datagram, answered to where it came from. */
export class HeartbeatListener {
  readonly #options: HeartbeatListenerOptions;
  readonly #socket: Socket;
  #second = 0;
  #count = 0;
  /** Dropped for their size or their number. */
  dropped = 0;

  constructor(options: HeartbeatListenerOptions) {
    this.#options = options;
    this.#socket = createSocket({ type: isIPv6(options.endpoint.address) ? "udp6" : "udp4", recvBufferSize: RECEIVE_BUFFER });
    this.#socket.on("message", (datagram, from) => { this.#receive(datagram, from); });
  }

  /** @throws CareofError `cannot-listen` */
  open(): Promise<AddressInfo> {
    const { address, port } = this.#options.endpoint;
    return new Promise((resolve, reject) => {
      this.#socket.once("error", (cause) => { reject(new CareofError("cannot-listen", `cannot listen for heartbeats on ${address}:${String(port)}: ${cause.message}`, { cause })); });
      this.#socket.bind(port, address, () => {
        this.#socket.removeAllListeners("error");
        this.#socket.on("error", (error) => { this.#options.log.error({ err: error }, "heartbeat socket"); });
        resolve(this.#socket.address());
      });
    });
  }

  close(): Promise<void> {
    return new Promise((resolve) => { this.#socket.close(() => { resolve(); }); });
  }

  #receive(datagram: Buffer, from: RemoteInfo): void {
    const second = Math.floor(this.#options.clock.monotonic() / 1000);
    if (second !== this.#second) {
      this.#second = second;
      this.#count = 0;
    }
    this.#count += 1;
    if (datagram.length > MAX_ENVELOPE_BYTES || this.#count > (this.#options.maxPerSecond ?? 200_000)) {
      this.dropped += 1;
      return;
    }
    const answer = this.#options.receive(datagram);
    if (answer !== null) {
      this.#socket.send(answer, from.port, from.address, (error) => {
        if (error !== null) this.#options.log.debug({ err: error }, "a heartbeat's answer could not be sent");
      });
    }
  }
}
