import { randomBytes } from "node:crypto";
import { rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import type { Clock } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import type { MigrationId } from "../../model/ids.js";
import { CLEAR_TOKEN_BYTES, type RelayChannel, type RelayFrame } from "../../proto/relay-framing.js";
import { ClearSource } from "./clear-source.js";
import { RELAY_LIMITS, type Release, type RelayLimits, type SourceRelay } from "./relay.js";
import type { RelayConnection } from "./relay-connection.js";
import { dialRelay } from "./relay-dial.js";
import { RelayPipe } from "./relay-pipe.js";

export interface SourceRelayOptions {
  readonly migration: MigrationId;
  readonly address: string;
  readonly port: number;
  /** 32 bytes, of this move alone. */
  readonly secret: Uint8Array;
  /** Paths of the unix sockets to make for the hypervisor: for its stream, and for the disks. */
  readonly socket: string;
  readonly diskSocket: string;
  /** What the hypervisor says goes beside the authenticated channels, in clear (clear-source.ts). The same on both sides; as a rule not. */
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
  /** Of the main stream's connection in clear; empty: there is none. */
  readonly #token: Uint8Array;
  #clear: ClearSource | null = null;
  readonly #pipes = new Map<RelayPipe, Exclude<RelayChannel, "main">>();
  /** Read of the main stream, and of further channels that are over. */
  readonly #carried = { main: 0, stream: 0, disk: 0 };
  #held: Uint8Array[] | null = null;
  /** What came back before our hypervisor has connected. */
  readonly #early: Uint8Array[] = [];
  #heldBytes = 0;
  #endHeld = false;
  #stalled = false;
  /** Read of the hypervisor, not sent yet. */
  readonly #read: Buffer[] = [];
  #readBytes = 0;
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
    this.#token = this.#newToken();
    this.closed = new Promise((resolve) => { this.#settle = resolve; });
  }

  get #inClear(): boolean {
    return this.#options.clear ?? false;
  }

  get bytes(): number {
    return (this.#clear?.bytes ?? this.#carried.main) + this.#sum("stream");
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
      ...this.#options, channel: "main", clear: this.#token, limits: this.#limits,
      onFrame: (frame) => { this.#receive(frame); },
      onDrain: () => { if (!this.#stalled && !this.#inClear) this.#hypervisor?.resume(); },
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
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: this.#inClear }, accept);
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
    if (this.#inClear) this.#clear?.stall();
    else this.#hypervisor?.pause();
    for (const pipe of this.#streams()) pipe.stall();
  }

  flow(): void {
    this.#stalled = false;
    if (this.#inClear) this.#clear?.flow();
    else this.#hypervisor?.resume();
    for (const pipe of this.#streams()) pipe.flow();
  }

  async taken(): Promise<void> {
    this.#sendRead();
    await Promise.all([(this.#clear ?? this.#connection)?.taken(), ...this.#streams().map((pipe) => pipe.taken())]);
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
    this.#sendRead();
    this.#released = true;
    for (const pipe of this.#pipes.keys()) pipe.sayEnd("released");
    await this.#connection.sendLast({ type: "release", ...release, sent: this.#clear?.last() ?? 0 });
  }

  releaseEarly(release: Release): void {
    this.#sendRead();
    this.#connection?.send({ type: "release", ...release, sent: this.#clear?.bytes ?? 0 });
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
    if (this.#inClear) {
      hypervisor.on("error", (cause) => { this.#hypervisorEnded(`stream-broken: ${cause.message}`); });
      const connection = this.#connection;
      if (connection !== null) this.#clear = this.#openClear(hypervisor, this.#token, connection, (detail) => { this.#hypervisorEnded(detail); }, (cause) => { this.cut(cause); });
      if (this.#stalled) this.#clear?.stall();
      return;
    }
    hypervisor.on("data", (chunk: Buffer) => { this.#fromHypervisor(chunk); });
    hypervisor.on("end", () => { this.#hypervisorEnded("stream-ended"); });
    hypervisor.on("error", (cause) => { this.#hypervisorEnded(`stream-broken: ${cause.message}`); });
  }

  /**
   * Everything that the hypervisor has ready is read before any of it is encrypted: behind the gate, the guest is stopped only after the last page was taken
   * from the hypervisor, and is deaf meanwhile.
   */
  #fromHypervisor(chunk: Buffer): void {
    this.#carried.main += chunk.length;
    this.#readBytes += chunk.length;
    if (this.#read.push(chunk) === 1) setImmediate(() => { this.#sendRead(); });
    if (this.#readBytes >= this.#limits.highWaterBytes) this.#hypervisor?.pause();
  }

  #sendRead(): void {
    // Not by us: a socket that is read here as well loses what it is read of.
    if (this.#inClear) return;
    this.#readBytes = 0;
    let room = true;
    for (const data of this.#read.splice(0)) room = this.#connection?.send({ type: "data", data }) ?? true;
    if (!room) this.#hypervisor?.pause();
    else if (!this.#stalled) this.#hypervisor?.resume();
  }

  /** The target's hypervisor shall see that no more comes, as if it were connected directly. */
  #hypervisorEnded(reason: string): void {
    this.#sendRead();
    if (!this.#released && !this.#over) this.#connection?.send({ type: "close", reason: "relay-failed", detail: reason, sent: this.#clear?.last() ?? 0 });
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
      case "clear":
        this.#clear?.cleared();
        return;
      case "marked":
        this.#clear?.marked(frame.bytes);
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
    const pipe = new RelayPipe(hypervisor, {
      unread: this.#inClear,
      onOver: (cause) => {
        this.#pipes.delete(pipe);
        this.#carried[channel] += pipe.bytes;
        if (cause !== null) this.cut(cause);
      },
    });
    this.#pipes.set(pipe, channel);
    if (this.#stalled && channel === "stream") pipe.stall();
    const token = this.#newToken();
    dialRelay({
      ...this.#options, channel, clear: token, limits: this.#limits,
      onFrame: (frame) => { pipe.receive(frame); },
      onDrain: () => { pipe.drained(); },
      onEnd: (cause) => { pipe.ended(cause); },
    }).then(
      (connection) => {
        if (this.#over) connection.destroy();
        else if (!this.#inClear) pipe.start(connection);
        else pipe.start(connection, { source: this.#openClear(hypervisor, token, connection, (detail) => { pipe.sayEnd(detail); }, (cause) => { pipe.broken(cause); }) });
      },
      (thrown: unknown) => { this.cut(toCareofError(thrown)); },
    );
  }

  #newToken(): Uint8Array {
    return this.#inClear ? randomBytes(CLEAR_TOKEN_BYTES) : new Uint8Array(0);
  }

  #openClear(hypervisor: Socket, token: Uint8Array, connection: RelayConnection, onEnd: (detail: string) => void, onBroken: (cause: CareofError) => void): ClearSource {
    const { address, port, clock } = this.#options;
    return new ClearSource({ address, port, token, hypervisor, clock, connectMs: this.#limits.connectMs, mark: (bytes) => { connection.send({ type: "mark", bytes }); }, onEnd, onBroken });
  }

  #closeAll(): void {
    this.#clear?.close();
    this.#hypervisor?.destroy();
    for (const pipe of this.#pipes.keys()) pipe.destroy();
    for (const server of this.#servers.splice(0)) server.close();
    rmSync(this.socket, { force: true });
    rmSync(this.diskSocket, { force: true });
  }
}
