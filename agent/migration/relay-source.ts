import { rmSync, unlinkSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { connect, type TLSSocket } from "node:tls";
import type { Clock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import type { MigrationId } from "../../model/ids.js";
import type { RelayFrame } from "../../proto/relay-framing.js";
import { RELAY_LIMITS, RELAY_SILENCE, RELAY_VERSION, type Release, type RelayLimits, type SourceRelay } from "./relay.js";
import { RELAY_TLS, RelayConnection } from "./relay-connection.js";

export interface SourceRelayOptions {
  readonly migration: MigrationId;
  readonly address: string;
  readonly port: number;
  /** 32 bytes, of this move alone. */
  readonly secret: Uint8Array;
  /** Path of the unix socket to make for the hypervisor. */
  readonly socket: string;
  readonly clock: Clock;
  readonly limits?: Partial<RelayLimits>;
}

/**
 * Connects to the target's relay, authenticates and opens the hypervisor's socket.
 * @throws CareofError `relay-failed` (retryable): no connection, wrong secret or no hello within `connectMs`; nothing is left behind.
 */
export async function openSourceRelay(options: SourceRelayOptions): Promise<SourceRelay> {
  const relay = new Relay(options);
  try {
    await relay.connect();
    await relay.listen();
  } catch (thrown) {
    const cause = thrown instanceof CareofError ? thrown : new CareofError("relay-failed", `the relay could not be opened: ${thrown instanceof Error ? thrown.message : String(thrown)}`, { retryable: true, cause: thrown });
    relay.cut(cause);
    throw cause;
  }
  return relay;
}

class Relay implements SourceRelay {
  readonly socket: string;
  readonly closed: Promise<CareofError | null>;
  bytes = 0;
  readonly #options: SourceRelayOptions;
  readonly #limits: RelayLimits;
  #settle: (cause: CareofError | null) => void = () => undefined;
  #connection: RelayConnection | null = null;
  #server: Server | null = null;
  #hypervisor: Socket | null = null;
  #greeted: (() => void) | null = null;
  #held: Uint8Array[] | null = null;
  /** What came back before our hypervisor has connected. */
  readonly #early: Uint8Array[] = [];
  #heldBytes = 0;
  #endHeld = false;
  #stalled = false;
  /** Read of the hypervisor, not sent yet. */
  readonly #read: Buffer[] = [];
  #readBytes = 0;
  #released = false;
  #over = false;

  constructor(options: SourceRelayOptions) {
    this.#options = options;
    this.#limits = { ...RELAY_LIMITS, ...options.limits };
    this.socket = options.socket;
    this.closed = new Promise((resolve) => { this.#settle = resolve; });
  }

  async connect(): Promise<void> {
    const { address, port, migration, secret, clock } = this.#options;
    await new Promise<void>((resolve, reject) => {
      let socket: TLSSocket | null = null;
      const failed = (message: string, cause?: unknown): void => {
        limit.cancel();
        socket?.destroy();
        reject(new CareofError("relay-failed", message, { retryable: true, cause }));
      };
      const limit = clock.after("relay-connect", this.#limits.connectMs, () => { failed(`no answer of the target's relay at ${address}:${String(port)}`); });
      socket = connect({
        ...RELAY_TLS, host: address, port,
        pskCallback: () => ({ psk: secret, identity: migration }),
        // The key proves who the peer is; there is no certificate.
        checkServerIdentity: () => undefined,
      });
      const early = (cause: Error): void => { failed(`no connection to the target's relay at ${address}:${String(port)}: ${cause.message}`, cause); };
      socket.once("error", early);
      const connected = socket;
      socket.once("secureConnect", () => {
        connected.off("error", early);
        this.#connection = new RelayConnection({
          socket: connected, clock, silenceMs: RELAY_SILENCE, highWaterBytes: this.#limits.highWaterBytes,
          onFrame: (frame) => { this.#receive(frame); },
          onDrain: () => { if (!this.#stalled) this.#hypervisor?.resume(); },
          onEnd: (cause) => {
            failed("the target's relay hung up", cause);
            this.#ended(cause);
          },
        });
        this.#greeted = () => {
          limit.cancel();
          resolve();
        };
        this.#connection.send({ type: "hello", version: RELAY_VERSION, migration });
      });
    });
  }

  async listen(): Promise<void> {
    // The path is the VM's: an agent that was killed in an earlier migration of it has left its socket there.
    rmSync(this.socket, { force: true });
    const server = createServer({ allowHalfOpen: true }, (hypervisor) => { this.#accept(hypervisor); });
    this.#server = server;
    server.maxConnections = 1;
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(this.socket, resolve);
    });
  }

  hold(): void {
    if (!this.#over) this.#held ??= this.#early.splice(0);
  }

  stall(): void {
    if (this.#over) return;
    this.#stalled = true;
    this.#hypervisor?.pause();
  }

  flow(): void {
    this.#stalled = false;
    this.#hypervisor?.resume();
  }

  open(): number {
    this.flow();
    const waited = this.#heldBytes;
    const held = this.#held ?? [];
    this.#held = null;
    this.#heldBytes = 0;
    for (const chunk of held) this.#hypervisor?.write(chunk);
    if (this.#endHeld) this.#hypervisor?.end();
    return waited;
  }

  async release(release: Release): Promise<void> {
    if (this.#connection === null || this.#over) throw new CareofError("relay-failed", "the relay is closed");
    this.#sendRead();
    this.#released = true;
    await this.#connection.sendLast({ type: "release", ...release });
  }

  cut(cause: CareofError): void {
    if (this.#over) return;
    this.#over = true;
    this.#connection?.destroy();
    this.#hypervisor?.destroy();
    this.#closeServer();
    this.#settle(cause);
  }

  #accept(hypervisor: Socket): void {
    if (this.#hypervisor !== null || this.#over) {
      hypervisor.destroy();
      return;
    }
    this.#hypervisor = hypervisor;
    for (const chunk of this.#early.splice(0)) hypervisor.write(chunk);
    hypervisor.on("data", (chunk: Buffer) => { this.#fromHypervisor(chunk); });
    hypervisor.on("drain", () => this.#connection?.resume());
    hypervisor.on("end", () => { this.#hypervisorEnded("stream-ended"); });
    hypervisor.on("error", (cause) => { this.#hypervisorEnded(`stream-broken: ${cause.message}`); });
  }

  /**
   * Everything that the hypervisor has ready is read before any of it is encrypted: behind the gate, the guest is stopped only after the last page was taken
   * from the hypervisor, and is deaf meanwhile.
   */
  #fromHypervisor(chunk: Buffer): void {
    this.bytes += chunk.length;
    this.#readBytes += chunk.length;
    if (this.#read.push(chunk) === 1) setImmediate(() => { this.#sendRead(); });
    if (this.#readBytes >= this.#limits.highWaterBytes) this.#hypervisor?.pause();
  }

  #sendRead(): void {
    this.#readBytes = 0;
    let room = true;
    for (const data of this.#read.splice(0)) room = this.#connection?.send({ type: "data", data }) ?? true;
    if (!room) this.#hypervisor?.pause();
    else if (!this.#stalled) this.#hypervisor?.resume();
  }

  /** The target's hypervisor shall see that no more comes, as if it were connected directly. */
  #hypervisorEnded(reason: string): void {
    this.#sendRead();
    if (!this.#released && !this.#over) this.#connection?.send({ type: "close", reason: "relay-failed", detail: reason });
  }

  #receive(frame: RelayFrame): void {
    switch (frame.type) {
      case "hello":
        if (frame.migration !== this.#options.migration) throw new CareofError("relay-failed", `the target's relay speaks for ${frame.migration}`);
        this.#greeted?.();
        return;
      case "data":
        this.#fromTarget(frame.data);
        return;
      case "close":
        if (this.#held === null) this.#hypervisor?.end();
        else this.#endHeld = true;
        return;
      default:
        throw new CareofError("malformed-relay", `a target's relay does not send "${frame.type}"`);
    }
  }

  #fromTarget(bytes: Uint8Array): void {
    if (this.#held === null && this.#hypervisor !== null) {
      if (!this.#hypervisor.write(bytes)) this.#connection?.pause();
      return;
    }
    this.#heldBytes += bytes.length;
    if (this.#heldBytes > this.#limits.maxHeldBytes) throw new CareofError("relay-failed", "too much came back while the gate was shut");
    (this.#held ?? this.#early).push(bytes);
  }

  #ended(cause: CareofError | null): void {
    if (this.#over) return;
    if (cause === null && this.#released) {
      this.#over = true;
      this.#hypervisor?.destroy();
      this.#closeServer();
      this.#settle(null);
    } else {
      this.cut(cause ?? new CareofError("relay-failed", "the target's relay hung up"));
    }
  }

  #closeServer(): void {
    const server = this.#server;
    this.#server = null;
    if (server === null) return;
    server.close();
    try {
      unlinkSync(this.socket);
    } catch (thrown) {
      if (!(thrown instanceof Error && "code" in thrown && thrown.code === "ENOENT")) throw thrown;
    }
  }
}
