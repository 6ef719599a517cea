import { connect, type AddressInfo, type Socket } from "node:net";
import { createServer, type Server, type TLSSocket } from "node:tls";
import type { Clock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { millis, type MigrationId } from "../../model/ids.js";
import type { RelayFrame } from "../../proto/relay-framing.js";
import { RELAY_LIMITS, RELAY_SILENCE, RELAY_VERSION, type Release, type TargetRelay } from "./relay.js";
import type { RelayClockReading } from "./relay-clock.js";
import { RELAY_TLS, RelayConnection } from "./relay-connection.js";

export interface TargetRelayOptions {
  readonly migration: MigrationId;
  readonly secret: Uint8Array;
  readonly address: string;
  /** 0: any. */
  readonly port: number;
  /** Unix socket on which the hypervisor already listens. */
  readonly socket: string;
  readonly clock: Clock;
  /** Somebody failed to authenticate. For the log. */
  readonly onIntruder?: (detail: string) => void;
}

/** Connections that have not authenticated yet, and how long each may take: a stranger who opens them and says nothing must not keep the source out. */
const MAX_PENDING = 8;
const HANDSHAKE_MS = millis(3000);

/** @throws CareofError `relay-failed` when the address cannot be listened on */
export async function openTargetRelay(options: TargetRelayOptions): Promise<TargetRelay> {
  const relay = new Relay(options);
  await relay.listen();
  return relay;
}

class Relay implements TargetRelay {
  readonly closed: Promise<CareofError | null>;
  readonly connected: Promise<void>;
  readonly released: Promise<Release>;
  readonly address: string;
  port = 0;
  readonly #options: TargetRelayOptions;
  readonly #server: Server;
  #settle: (cause: CareofError | null) => void = () => undefined;
  #greeted: () => void = () => undefined;
  #give: (release: Release) => void = () => undefined;
  #connection: RelayConnection | null = null;
  #hypervisor: Socket | null = null;
  #gotRelease = false;
  #over = false;

  constructor(options: TargetRelayOptions) {
    this.#options = options;
    this.address = options.address;
    this.closed = new Promise((resolve) => { this.#settle = resolve; });
    this.connected = new Promise((resolve) => { this.#greeted = resolve; });
    this.released = new Promise((resolve) => { this.#give = resolve; });
    this.#server = createServer({
      ...RELAY_TLS, dhparam: "auto", handshakeTimeout: HANDSHAKE_MS,
      pskCallback: (_socket, identity) => (identity === options.migration ? options.secret : null),
    }, (socket) => { this.#accept(socket); });
    this.#server.maxConnections = MAX_PENDING;
    this.#server.on("tlsClientError", (cause, socket) => {
      // After a time-out Node leaves the connection open, and its place taken.
      socket.destroy();
      options.onIntruder?.(cause.message);
    });
  }

  async listen(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", (cause: Error) => { reject(new CareofError("relay-failed", `cannot listen for the relay on ${this.address}: ${cause.message}`, { cause })); });
      this.#server.listen(this.#options.port, this.#options.address, resolve);
    });
    const bound: AddressInfo | string | null = this.#server.address();
    if (bound !== null && typeof bound === "object") this.port = bound.port;
  }

  clock(): RelayClockReading | null {
    return this.#connection?.peerClock.reading(this.#options.clock.monotonic()) ?? null;
  }

  cut(cause: CareofError): void {
    if (!this.#over) this.#finish(cause);
  }

  #finish(cause: CareofError | null): void {
    this.#over = true;
    this.#server.close();
    this.#connection?.destroy();
    this.#hypervisor?.destroy();
    this.#settle(cause);
  }

  #accept(socket: TLSSocket): void {
    if (this.#connection !== null || this.#over) {
      socket.destroy();
      return;
    }
    this.#server.close();
    this.#connection = new RelayConnection({
      socket, clock: this.#options.clock, silenceMs: RELAY_SILENCE, highWaterBytes: RELAY_LIMITS.highWaterBytes,
      onFrame: (frame) => { this.#receive(frame); },
      onDrain: () => this.#hypervisor?.resume(),
      onEnd: (cause) => { this.#ended(cause); },
    });
  }

  #receive(frame: RelayFrame): void {
    switch (frame.type) {
      case "hello":
        if (frame.version !== RELAY_VERSION || frame.migration !== this.#options.migration) throw new CareofError("relay-failed", `a relay of version ${String(frame.version)} for ${frame.migration} came`);
        if (this.#hypervisor !== null) throw new CareofError("malformed-relay", "a second hello");
        this.#connectHypervisor();
        this.#greeted();
        this.#connection?.send({ type: "hello", version: RELAY_VERSION, migration: this.#options.migration });
        return;
      case "data":
        if (this.#hypervisor === null) throw new CareofError("malformed-relay", "data before hello");
        if (!this.#hypervisor.write(frame.data)) this.#connection?.pause();
        return;
      case "close":
        this.#hypervisor?.end();
        return;
      case "release":
        if (frame.migration !== this.#options.migration) throw new CareofError("malformed-relay", `a release for ${frame.migration}`);
        this.#gotRelease = true;
        this.#give({ migration: frame.migration, epoch: frame.epoch, stopAt: frame.stopAt });
        return;
      case "drained":
        return;
      case "ping":
      case "pong":
        throw new CareofError("malformed-relay", `"${frame.type}" is the connection's own`);
    }
  }

  #connectHypervisor(): void {
    const hypervisor = connect({ path: this.#options.socket, allowHalfOpen: true });
    this.#hypervisor = hypervisor;
    hypervisor.on("data", (chunk: Buffer) => {
      if (this.#connection?.send({ type: "data", data: chunk }) === false) hypervisor.pause();
    });
    hypervisor.on("drain", () => this.#connection?.resume());
    hypervisor.on("end", () => { this.#connection?.send({ type: "close", reason: "relay-failed", detail: "stream ended" }); });
    hypervisor.on("error", (cause) => { this.#connection?.send({ type: "close", reason: "relay-failed", detail: cause.message }); });
  }

  #ended(cause: CareofError | null): void {
    if (this.#over) return;
    this.#finish(this.#gotRelease ? null : cause ?? new CareofError("relay-failed", "the source's relay hung up before its release"));
  }
}
