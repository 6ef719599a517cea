import { connect, type Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import type { Clock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import type { MigrationId } from "../../model/ids.js";
import type { PumpSeal } from "../../net/pump.js";
import { WAY_TOKEN_BYTES, type RelayFrame, type RelayHello } from "../../proto/relay-framing.js";
import { RELAY_LIMITS, RELAY_SILENCE, otherVersion, RELAY_VERSION, type Release, type TargetRelay } from "./relay.js";
import type { RelayClockReading } from "./relay-clock.js";
import { RelayConnection } from "./relay-connection.js";
import { HANDSHAKE_MS, type Place, type RelayListener } from "./relay-listener.js";
import { RelayPipe } from "./relay-pipe.js";
import { WayTarget, type WayTargetOptions } from "./way-target.js";

export interface TargetRelayOptions {
  readonly migration: MigrationId;
  readonly secret: Uint8Array;
  readonly listener: RelayListener;
  /** Further channels that the source will open beside the main stream, both kinds together. */
  readonly channels: number;
  /** Unix socket on which the hypervisor already listens for its stream. */
  readonly socket: string;
  /** Unix socket on which its NBD server already listens, where disks are to be copied. */
  readonly diskSocket?: string;
  /** The source's stream is not sealed on its way (way-target.ts). The same on both sides; as a rule it is. */
  readonly clear?: boolean;
  readonly clock: Clock;
  /** Somebody knew the secret and did not speak as the move's source does. For the log. */
  readonly onIntruder?: (detail: string) => void;
}

/** @throws CareofError `relay-failed` when the address cannot be listened on */
export async function openTargetRelay(options: TargetRelayOptions): Promise<TargetRelay> {
  const relay = new Relay(options);
  await relay.listen();
  return relay;
}

/** What the frames of a connection are for, once it has said which channel it is. */
interface ChannelEnd {
  receive(frame: RelayFrame): void;
  drained(): void;
  ended(cause: CareofError | null): void;
}

class Relay implements TargetRelay {
  readonly closed: Promise<CareofError | null>;
  readonly connected: Promise<void>;
  readonly released: Promise<Release>;
  readonly disksDone: Promise<number>;
  address = "";
  port = 0;
  readonly #options: TargetRelayOptions;
  #place: Place | null = null;
  #settle: (cause: CareofError | null) => void = () => undefined;
  #greeted: () => void = () => undefined;
  #disks: (disks: number) => void = () => undefined;
  #give: (release: Release) => void = () => undefined;
  #connection: RelayConnection | null = null;
  #hypervisor: Socket | null = null;
  #way: WayTarget | null = null;
  readonly #pipes = new Set<RelayPipe>();
  /** Authenticated, and has not said hello. */
  readonly #newcomers = new Set<RelayConnection>();
  #release: Release | null = null;
  /** The source's, of its `close`. */
  #lastWords = "";
  #mainEnded = false;
  #over = false;

  constructor(options: TargetRelayOptions) {
    this.#options = options;
    this.closed = new Promise((resolve) => { this.#settle = resolve; });
    this.connected = new Promise((resolve) => { this.#greeted = resolve; });
    this.released = new Promise((resolve) => { this.#give = resolve; });
    this.disksDone = new Promise((resolve) => { this.#disks = resolve; });
  }

  get #inClear(): boolean {
    return this.#options.clear ?? false;
  }

  async listen(): Promise<void> {
    const { listener, migration, secret, channels } = this.#options;
    this.#place = await listener.expect(migration, secret, 2 * (1 + channels), (socket) => { this.#accept(socket); });
    this.address = this.#place.address;
    this.port = this.#place.port;
  }

  clock(): RelayClockReading | null {
    return this.#connection?.peerClock.reading(this.#options.clock.monotonic()) ?? null;
  }

  disksEnded(disks: number): void {
    this.#connection?.send({ type: "disksEnded", disks });
  }

  cut(cause: CareofError): void {
    if (!this.#over) this.#finish(cause);
  }

  /** After an orderly end, whatever has come still reaches the hypervisor. */
  #finish(cause: CareofError | null): void {
    this.#over = true;
    this.#place?.leave();
    if (cause === null) this.#way?.finish();
    else this.#way?.close();
    if (cause === null) this.#connection?.destroy();
    else this.#connection?.giveUp(cause);
    for (const newcomer of this.#newcomers) newcomer.destroy();
    if (cause === null) {
      this.#hypervisor?.destroySoon();
      for (const pipe of this.#pipes) pipe.close();
    } else {
      this.#hypervisor?.destroy();
      for (const pipe of this.#pipes) pipe.destroy();
    }
    this.#settle(cause);
  }

  /** Who has authenticated says first which channel it is, and within a limit. */
  #accept(socket: TLSSocket): void {
    if (this.#over) {
      socket.destroy();
      return;
    }
    const { clock } = this.#options;
    let end: ChannelEnd | null = null;
    const leave = (): void => {
      limit.cancel();
      this.#newcomers.delete(connection);
    };
    const connection: RelayConnection = new RelayConnection({
      socket, clock, silenceMs: RELAY_SILENCE, highWaterBytes: RELAY_LIMITS.highWaterBytes,
      onFrame: (frame) => {
        if (end !== null) {
          end.receive(frame);
          return;
        }
        if (frame.type !== "hello") throw new CareofError("malformed-relay", `"${frame.type}" before hello`);
        try {
          end = this.#greet(connection, socket.remoteAddress ?? "", frame);
        } finally {
          leave();
        }
      },
      onDrain: () => { end?.drained(); },
      onEnd: (cause) => {
        leave();
        if (end !== null) {
          end.ended(cause);
          return;
        }
        connection.destroy();
        this.#options.onIntruder?.(cause?.message ?? "ended before its hello");
      },
    });
    const limit = clock.after("relay-hello", HANDSHAKE_MS, () => {
      leave();
      connection.destroy();
    });
    this.#newcomers.add(connection);
  }

  /** @throws CareofError which ends this connection and no other */
  #greet(connection: RelayConnection, address: string, hello: RelayHello): ChannelEnd {
    const { migration, socket, diskSocket } = this.#options;
    if (hello.migration !== migration) throw new CareofError("relay-failed", `a relay for ${hello.migration} came`);
    if (hello.version !== RELAY_VERSION) throw this.#otherVersion(connection, hello.version);
    connection.requireStrength();
    if (hello.way.length !== WAY_TOKEN_BYTES) throw new CareofError("malformed-relay", "a hello that announces no way");
    if (hello.inClear !== this.#inClear) throw new CareofError("relay-failed", `the source's stream is ${this.#inClear ? "encrypted" : "in clear"}, and this move's is not`);
    const welcome = (): void => { connection.send({ type: "hello", version: RELAY_VERSION, migration, channel: hello.channel, way: new Uint8Array(0), inClear: this.#inClear }); };
    if (hello.channel === "main") {
      if (this.#connection !== null) throw new CareofError("relay-failed", "a second main stream came");
      this.#connection = connection;
      this.#way = this.#expectWay(hello.way, address, connection, { onReadable: () => { this.#connectHypervisor(); }, onBroken: (cause) => { this.cut(cause); } });
      this.#greeted();
      welcome();
      return {
        receive: (frame) => { this.#receive(frame); },
        drained: () => this.#hypervisor?.resume(),
        ended: (cause) => { this.#ended(cause); },
      };
    }
    const path = hello.channel === "disk" ? diskSocket : socket;
    if (this.#connection === null || this.#release !== null) throw new CareofError("relay-failed", `a channel "${hello.channel}" came without the main stream`);
    if (path === undefined) throw new CareofError("relay-failed", `a channel "${hello.channel}" came that this move has not`);
    if (this.#pipes.size >= RELAY_LIMITS.maxChannels) throw new CareofError("relay-failed", `more than ${String(RELAY_LIMITS.maxChannels)} channels`);
    const pipe = new RelayPipe("target", connect({ path, allowHalfOpen: true }), { onOver: (cause) => { this.#channelOver(pipe, cause); }, onEndHeard: () => { this.#settleRelease(); } });
    this.#pipes.add(pipe);
    const way = this.#expectWay(hello.way, address, connection, { onBroken: (cause) => { this.cut(cause); } });
    welcome();
    pipe.start(connection, way);
    return pipe;
  }

  /** Before the source hears of it: it comes at once then. */
  #expectWay(token: Uint8Array, address: string, connection: RelayConnection, on: Pick<WayTargetOptions, "onReadable" | "onBroken">): WayTarget {
    const seal: PumpSeal = this.#inClear ? { kind: "none" } : { kind: "open", key: connection.sealKey(token) };
    const way = new WayTarget({ ...on, seal, clock: this.#options.clock, silenceMs: RELAY_SILENCE });
    this.#place?.expectWay(token, address, (descriptor) => {
      way.arrived(descriptor);
      connection.send({ type: "begin" });
    });
    return way;
  }

  /** It knows the secret, so it is the source, and nothing will come of this move: both sides hear why at once. */
  #otherVersion(connection: RelayConnection, version: number): CareofError {
    const cause = new CareofError("relay-failed", otherVersion("source", version));
    this.#newcomers.delete(connection);
    connection.giveUp(cause);
    this.cut(cause);
    return cause;
  }

  #channelOver(pipe: RelayPipe, cause: CareofError | null): void {
    this.#pipes.delete(pipe);
    if (this.#release !== null) this.#settleRelease();
    else if (cause !== null) this.cut(cause);
  }

  /** RELEASE stands behind everything of every channel, whichever connection was faster. A channel that is lost after it has nothing to say any more. */
  #settleRelease(): void {
    if (this.#release === null || this.#over || [...this.#pipes].some((pipe) => !pipe.heardEnd)) return;
    this.#give(this.#release);
    if (this.#mainEnded) this.#finish(null);
  }

  #receive(frame: RelayFrame): void {
    switch (frame.type) {
      case "hello":
        throw new CareofError("malformed-relay", "a second hello");
      case "close":
        this.#lastWords = frame.detail;
        this.#behind(frame.sent, () => { this.#hypervisor?.end(); });
        return;
      case "release":
        if (frame.migration !== this.#options.migration) throw new CareofError("malformed-relay", `a release for ${frame.migration}`);
        this.#behind(frame.sent, () => {
          this.#release = { migration: frame.migration, epoch: frame.epoch, stopAt: frame.stopAt };
          this.#settleRelease();
        });
        return;
      case "mark":
        this.#behind(frame.bytes, () => { this.#connection?.send({ type: "marked", bytes: frame.bytes }); });
        return;
      case "data":
      case "begin":
      case "marked":
        throw new CareofError("malformed-relay", `a source's relay does not send "${frame.type}"`);
      case "endDisks":
        this.#disks(frame.disks);
        return;
      case "disksEnded":
        throw new CareofError("malformed-relay", "a source's relay does not send \"disksEnded\"");
      case "ping":
      case "pong":
        throw new CareofError("malformed-relay", `"${frame.type}" is the connection's own`);
    }
  }

  /** Not before there is something to read: with multifd QEMU waits for a connection's first bytes and does nothing else meanwhile, so that it could not serve the disks that come first. */
  #connectHypervisor(): void {
    const hypervisor = connect({ path: this.#options.socket, allowHalfOpen: true });
    this.#hypervisor = hypervisor;
    this.#way?.to(hypervisor);
    hypervisor.on("data", (chunk: Buffer) => {
      if (this.#connection?.send({ type: "data", data: chunk }) === false) hypervisor.pause();
    });
    hypervisor.on("end", () => { this.#connection?.send({ type: "close", reason: "relay-failed", detail: "stream ended", sent: 0 }); });
    hypervisor.on("error", (cause) => { this.#connection?.send({ type: "close", reason: "relay-failed", detail: cause.message, sent: 0 }); });
  }

  /** What the source says stands behind bytes that come by its way. */
  #behind(sent: number, then: () => void): void {
    if (this.#way === null) then();
    else this.#way.behind(sent, then);
  }

  #ended(cause: CareofError | null): void {
    if (cause !== null) this.#connectionOver(cause);
    else this.#behind(0, () => { this.#connectionOver(cause); });
  }

  #connectionOver(cause: CareofError | null): void {
    if (this.#over) return;
    this.#mainEnded = true;
    if (this.#release === null) this.#finish(cause ?? new CareofError("relay-failed", `the source's relay hung up before its release${this.#lastWords === "" ? "" : `: ${this.#lastWords}`}`));
    else this.#settleRelease();
  }
}
