import { createSocket, type Socket } from "node:dgram";
import { ipAddress, type IpAddress, type Ipv4 } from "../model/address.js";
import type { Clock, Timer } from "../model/clock.js";
import { toCareofError } from "../model/errors.js";
import { millis, type VmId } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import type { Body } from "../proto/messages.js";

/** A heartbeat envelope has at most 512 bytes (proto/careof.proto). */
const MAX_BYTES = 512;
const REBIND_MS = millis(200);

export interface HeartbeatRelayOptions {
  /** The guests' gateway: an address that only their ports carry, so that nothing comes here from elsewhere. */
  readonly address: Ipv4;
  readonly port: number;
  /** Tokens of each VM's bucket, and how many a second come back. */
  readonly perVmPerSecond: number;
  readonly clock: Clock;
  readonly log: Logger;
  /** Whose a home address is, among the VMs on this host. */
  owners(): ReadonlyMap<IpAddress, VmId>;
  say(body: Body<"relayedHeartbeat">): void;
}

interface Bucket {
  tokens: number;
  at: number;
}

/**
 * Passes the guests' heartbeats on to the home agent and its answers back, unread: the key is theirs. Datagrams that are too long, from an address of no VM on
 * this host, or more than a VM may send are dropped and counted.
 */
export class HeartbeatRelay {
  readonly #options: HeartbeatRelayOptions;
  readonly #buckets = new Map<VmId, Bucket>();
  readonly dropped: Record<"too-big" | "not-listed" | "too-many", number> = { "too-big": 0, "not-listed": 0, "too-many": 0 };
  #socket: Socket | null = null;
  #timer: Timer | null = null;
  #closed = false;
  #complained = false;

  constructor(options: HeartbeatRelayOptions) {
    this.#options = options;
  }

  /** The gateway's address exists only while a VM's port does: binding is tried until it does. */
  start(): void {
    if (this.#closed) return;
    const { address, port, clock, log } = this.#options;
    const socket = createSocket({ type: "udp4", reuseAddr: false });
    socket.once("error", (cause) => {
      socket.close();
      this.#socket = null;
      if (!this.#complained && !("code" in cause && cause.code === "EADDRNOTAVAIL")) {
        this.#complained = true;
        log.error({ reason: toCareofError(cause).code, err: cause }, "heartbeats of guests cannot be listened for");
      }
      this.#timer = clock.after("heartbeat-bind", REBIND_MS, () => { this.start(); });
    });
    socket.on("message", (message, from) => { this.#take(message, from.address, from.port); });
    socket.bind(port, address, () => {
      this.#complained = false;
      this.#socket = socket;
      log.debug({ address, port }, "listening for heartbeats");
    });
  }

  /** The port that is listened on, 0 while there is none. */
  get port(): number {
    return this.#socket?.address().port ?? 0;
  }

  answer(body: Body<"heartbeatAnswer">): void {
    if (this.#options.owners().get(body.address) !== body.vm) return; // it has left meanwhile
    this.#socket?.send(body.envelope, body.port, body.address, (error) => {
      if (error !== null) this.#options.log.debug({ vm: body.vm, reason: error.message }, "heartbeat answer not sent");
    });
  }

  close(): void {
    this.#closed = true;
    this.#timer?.cancel();
    this.#socket?.close();
    this.#socket = null;
  }

  #take(envelope: Buffer, address: string, port: number): void {
    const source = ipAddress(address);
    const vm = this.#options.owners().get(source);
    if (envelope.length > MAX_BYTES) this.dropped["too-big"]++;
    else if (vm === undefined) this.dropped["not-listed"]++;
    else if (!this.#spend(vm)) this.dropped["too-many"]++;
    else this.#options.say({ kind: "relayedHeartbeat", envelope, port, address: source });
  }

  #spend(vm: VmId): boolean {
    const { perVmPerSecond, clock } = this.#options;
    const now = clock.monotonic();
    const bucket = this.#buckets.get(vm) ?? { tokens: perVmPerSecond, at: now };
    bucket.tokens = Math.min(perVmPerSecond, bucket.tokens + ((now - bucket.at) / 1000) * perVmPerSecond);
    bucket.at = now;
    if (!this.#buckets.has(vm)) this.#buckets.set(vm, bucket);
    if (bucket.tokens < 1) return false;
    bucket.tokens--;
    return true;
  }
}
