import { randomBytes } from "node:crypto";
import { rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import type { Clock } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import type { MigrationId } from "../../model/ids.js";
import type { PumpSeal } from "../../net/pump.js";
import { WAY_TOKEN_BYTES, type RelayChannel, type RelayFrame } from "../../proto/relay-framing.js";
import { RELAY_LIMITS, type Release, type RelayLimits, type SourceRelay } from "./relay.js";
import type { RelayConnection } from "./relay-connection.js";
import { dialRelay } from "./relay-dial.js";
import { RelayPipe } from "./relay-pipe.js";
import { WaySource } from "./way-source.js";

export interface SourceRelayOptions {
  readonly migration: MigrationId;
  readonly address: string;
  readonly port: number;
  /** 32 bytes, of this move alone. */
  readonly secret: Uint8Array;
  /** Paths of the unix sockets to make for the hypervisor: for its stream, and for the disks. */
  readonly socket: string;
  readonly diskSocket: string;
  /** The hypervisor's stream is not sealed on its way (way-source.ts). The same on both sides; as a rule it is. */
  readonly clear?: boolean;
  readonly clock: Clock;
  readonly limits?: Partial<RelayLimits>;
}

/**
 * Connects to the target's relay, authenticates and opens the hypervisor's sockets.
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
  readonly diskSocket: string;
  readonly closed: Promise<CareofError | null>;
  readonly #options: SourceRelayOptions;
  readonly #limits: RelayLimits;
  #settle: (cause: CareofError | null) => void = () => undefined;
  #connection: RelayConnection | null = null;
  readonly #servers: Server[] = [];
  #hypervisor: Socket | null = null;
  /** Of the main stream's way. */
  readonly #token = randomBytes(WAY_TOKEN_BYTES);
  #way: WaySource | null = null;
  readonly #pipes = new Map<RelayPipe, Exclude<RelayChannel, "main">>();
  /** Read of further channels that are over. */
  readonly #carried = { stream: 0, disk: 0 };
  #held: Uint8Array[] | null = null;
  /** What came back before our hypervisor has connected. */
  readonly #early: Uint8Array[] = [];
  #heldBytes = 0;
  #endHeld = false;
  #stalled = false;
  /** The target's, of its `close`. */
  #lastWords = "";
  #disksEnded: () => void = () => undefined;
  #released = false;
  #over = false;

  constructor(options: SourceRelayOptions) {
    this.#options = options;
    this.#limits = { ...RELAY_LIMITS, ...options.limits };
    this.socket = options.socket;
    this.diskSocket = options.diskSocket;
    this.closed = new Promise((resolve) => { this.#settle = resolve; });
  }

  get #inClear(): boolean {
    return this.#options.clear ?? false;
  }

  get bytes(): number {
    return (this.#way?.bytes ?? 0) + this.#sum("stream");
  }

  get diskBytes(): number {
    return this.#sum("disk");
  }

  #sum(channel: Exclude<RelayChannel, "main">): number {
    let bytes = this.#carried[channel];
    for (const [pipe, kind] of this.#pipes) if (kind === channel) bytes += pipe.bytes;
    return bytes;
  }

  async connect(): Promise<void> {
    const connection = await dialRelay({
      ...this.#options, channel: "main", way: this.#token, inClear: this.#inClear, limits: this.#limits,
      onFrame: (frame) => { this.#receive(frame); },
      onEnd: (cause) => { this.#ended(cause); },
    });
    this.#connection = connection;
    if (!this.#over) return;
    connection.destroy();
    throw new CareofError("relay-failed", "the target's relay hung up", { retryable: true });
  }

  async listen(): Promise<void> {
    await this.#listen(this.socket, (hypervisor) => { this.#accept(hypervisor); });
    await this.#listen(this.diskSocket, (client) => { this.#openChannel("disk", client); });
  }

  async #listen(path: string, accept: (hypervisor: Socket) => void): Promise<void> {
    // The path is the VM's: an agent that was killed in an earlier migration of it has left its socket there.
    rmSync(path, { force: true });
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, accept);
    this.#servers.push(server);
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(path, resolve);
    });
  }

  hold(): void {
    if (!this.#over) this.#held ??= this.#early.splice(0);
  }

  stall(): void {
    if (this.#over) return;
    this.#stalled = true;
    this.#way?.stall();
    for (const pipe of this.#streams()) pipe.stall();
  }

  flow(): void {
    this.#stalled = false;
    this.#way?.flow();
    for (const pipe of this.#streams()) pipe.flow();
  }

  async taken(): Promise<void> {
    await Promise.all([this.#way?.taken(), ...this.#streams().map((pipe) => pipe.taken())]);
  }

  /** The further connections of the hypervisor's stream. */
  #streams(): RelayPipe[] {
    return [...this.#pipes].filter(([, kind]) => kind === "stream").map(([pipe]) => pipe);
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

  endDisks(disks: number): Promise<void> {
    return new Promise((resolve) => {
      this.#disksEnded = resolve;
      this.#connection?.send({ type: "endDisks", disks });
    });
  }

  async release(release: Release): Promise<void> {
    if (this.#connection === null || this.#over) throw new CareofError("relay-failed", "the relay is closed");
    this.#released = true;
    for (const pipe of this.#pipes.keys()) pipe.sayEnd("released");
    await this.#connection.sendLast({ type: "release", ...release, sent: this.#way?.last() ?? 0 });
  }

  releaseEarly(release: Release): void {
    this.#connection?.send({ type: "release", ...release, sent: this.#way?.bytes ?? 0 });
  }

  cut(cause: CareofError): void {
    if (this.#over) return;
    this.#over = true;
    this.#connection?.giveUp(cause);
    this.#closeAll();
    this.#settle(cause);
  }

  #accept(hypervisor: Socket): void {
    if (this.#hypervisor !== null) {
      this.#openChannel("stream", hypervisor);
      return;
    }
    if (this.#over) {
      hypervisor.destroy();
      return;
    }
    this.#hypervisor = hypervisor;
    for (const chunk of this.#early.splice(0)) hypervisor.write(chunk);
    hypervisor.on("drain", () => this.#connection?.resume());
    hypervisor.on("error", (cause) => { this.#hypervisorEnded(`stream-broken: ${cause.message}`); });
    const connection = this.#connection;
    if (connection === null) return;
    try {
      this.#way = this.#openWay(hypervisor, this.#token, connection, (detail) => { this.#hypervisorEnded(detail); }, (cause) => { this.cut(cause); });
      if (this.#stalled) this.#way.stall();
    } catch (thrown) {
      this.cut(toCareofError(thrown));
    }
  }

  /** The target's hypervisor shall see that no more comes, as if it were connected directly. */
  #hypervisorEnded(reason: string): void {
    if (!this.#released && !this.#over) this.#connection?.send({ type: "close", reason: "relay-failed", detail: reason, sent: this.#way?.last() ?? 0 });
  }

  #receive(frame: RelayFrame): void {
    switch (frame.type) {
      case "data":
        this.#fromTarget(frame.data);
        return;
      case "close":
        this.#lastWords = frame.detail;
        if (this.#held === null) this.#hypervisor?.end();
        else this.#endHeld = true;
        return;
      case "disksEnded":
        this.#disksEnded();
        return;
      case "begin":
        this.#way?.begun();
        return;
      case "marked":
        this.#way?.marked(frame.bytes);
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
      this.#closeAll();
      this.#settle(null);
    } else {
      this.cut(cause ?? new CareofError("relay-failed", `the target's relay hung up${this.#lastWords === "" ? "" : `: ${this.#lastWords}`}`));
    }
  }

  /** A further connection of the hypervisor gets a connection of its own to the target. Nothing of it is read before the target has answered. */
  #openChannel(channel: Exclude<RelayChannel, "main">, hypervisor: Socket): void {
    if (this.#over || this.#released || this.#pipes.size >= this.#limits.maxChannels) {
      hypervisor.destroy();
      return;
    }
    const pipe = new RelayPipe("source", hypervisor, {
      onOver: (cause) => {
        this.#pipes.delete(pipe);
        this.#carried[channel] += pipe.bytes;
        if (cause !== null) this.cut(cause);
      },
    });
    this.#pipes.set(pipe, channel);
    if (this.#stalled && channel === "stream") pipe.stall();
    const token = randomBytes(WAY_TOKEN_BYTES);
    dialRelay({
      ...this.#options, channel, way: token, inClear: this.#inClear, limits: this.#limits,
      onFrame: (frame) => { pipe.receive(frame); },
      onEnd: (cause) => { pipe.ended(cause); },
    }).then((connection) => {
      if (this.#over) connection.destroy();
      else pipe.start(connection, this.#openWay(hypervisor, token, connection, (detail) => { pipe.sayEnd(detail); }, (cause) => { pipe.broken(cause); }));
    }).catch((thrown: unknown) => { this.cut(toCareofError(thrown)); });
  }

  #openWay(hypervisor: Socket, token: Uint8Array, connection: RelayConnection, onEnd: (detail: string) => void, onBroken: (cause: CareofError) => void): WaySource {
    const { address, port, clock } = this.#options;
    const seal: PumpSeal = this.#inClear ? { kind: "none" } : { kind: "seal", key: connection.sealKey(token) };
    return new WaySource({ address, port, token, hypervisor, seal, clock, connectMs: this.#limits.connectMs, mark: (bytes) => { connection.send({ type: "mark", bytes }); }, onEnd, onBroken });
  }

  #closeAll(): void {
    this.#way?.close();
    this.#hypervisor?.destroy();
    for (const pipe of this.#pipes.keys()) pipe.destroy();
    for (const server of this.#servers.splice(0)) server.close();
    rmSync(this.socket, { force: true });
    rmSync(this.diskSocket, { force: true });
  }
}
