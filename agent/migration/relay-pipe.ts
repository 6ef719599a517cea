import type { Socket } from "node:net";
import { CareofError } from "../../model/errors.js";
import type { RelayFrame } from "../../proto/relay-framing.js";
import type { ClearSource } from "./clear-source.js";
import type { ClearTarget } from "./clear-target.js";
import { RELAY_LIMITS } from "./relay.js";
import type { RelayConnection } from "./relay-connection.js";
import { RelayWriter } from "./relay-writer.js";

/**
 * One further channel, at either end: a hypervisor's connection ⇄ a connection of the relay of its own. Bytes in order both ways, a slow reader holds back its writer and
 * nobody else; the end of one side is passed on behind its last byte.
 *
 * ```
 *   open ── our hypervisor ends: `close` sent ──▶ half ── peer's `close` ──▶ over (null)
 *    │ └──── peer's `close`: our hypervisor hears the end ──▶ half ── ours ends ──┘
 *    └─ connection lost from any of these ──▶ over (cause)
 * ```
 */
export class RelayPipe {
  #bytes = 0;
  readonly #hypervisor: Socket;
  readonly #writer: RelayWriter;
  readonly #onOver: (cause: CareofError | null) => void;
  readonly #onEndHeard: () => void;
  /** Our hypervisor is not read here: what it says goes in clear. */
  readonly #unread: boolean;
  #connection: RelayConnection | null = null;
  /** Why our hypervisor's direction has ended; `null` while it has not. */
  #endDetail: string | null = null;
  #heardEnd = false;
  #stalled = false;
  #over = false;
  /** What our hypervisor says goes by it, when we are the source's. */
  #clearSource: ClearSource | null = null;
  /** What the source's hypervisor says comes by it, when we are the target's. */
  #clearTarget: ClearTarget | null = null;

  /** Nothing of `hypervisor` is read before `start`. `onOver` is called once; `null`: an orderly end. `onEndHeard`: nothing more comes from the peer. */
  constructor(hypervisor: Socket, { onOver, onEndHeard = () => undefined, unread = false }: { readonly onOver: (cause: CareofError | null) => void; readonly onEndHeard?: () => void; readonly unread?: boolean }) {
    this.#hypervisor = hypervisor;
    this.#onEndHeard = onEndHeard;
    this.#unread = unread;
    this.#writer = new RelayWriter(hypervisor, RELAY_LIMITS.highWaterBytes);
    this.#onOver = onOver;
    hypervisor.pause();
    if (!unread) hypervisor.on("data", (chunk: Buffer) => {
      this.#bytes += chunk.length;
      if (this.#endDetail === null && this.#connection?.send({ type: "data", data: chunk }) === false) hypervisor.pause();
    });
    hypervisor.on("drain", () => { this.#connection?.resume(); });
    hypervisor.on("end", () => { this.sayEnd("stream-ended"); });
    hypervisor.on("error", (cause) => { this.sayEnd(`stream-broken: ${cause.message}`); });
    // Whoever is gone reads nothing any more: what still comes for it must not hold up the end behind it.
    hypervisor.on("close", () => {
      this.sayEnd("stream-ended");
      this.#connection?.resume();
    });
  }

  /** Read of our hypervisor. */
  get bytes(): number {
    return this.#clearSource?.bytes ?? this.#bytes;
  }

  /** Whether nothing more comes from the peer. */
  get heardEnd(): boolean {
    return this.#heardEnd || this.#over;
  }

  start(connection: RelayConnection, clear: { readonly source?: ClearSource; readonly target?: ClearTarget } = {}): void {
    this.#connection = connection;
    this.#clearSource = clear.source ?? null;
    this.#clearTarget = clear.target ?? null;
    this.#clearTarget?.to(this.#hypervisor);
    if (this.#stalled) this.#clearSource?.stall();
    if (this.#endDetail !== null) this.#sendEnd(connection, this.#endDetail);
    else this.drained();
  }

  /** Resolves when the peer has taken all that was read so far, or the channel is over. */
  async taken(): Promise<void> {
    await (this.#clearSource ?? this.#connection)?.taken();
  }

  /** Reads nothing more of our hypervisor. */
  stall(): void {
    this.#stalled = true;
    this.#clearSource?.stall();
    this.#hypervisor.pause();
  }

  /** Reads on. */
  flow(): void {
    this.#stalled = false;
    this.#clearSource?.flow();
    if (this.#connection !== null) this.#resume();
  }

  /** The connection's, as RelayConnection wants them. */
  receive(frame: RelayFrame): void {
    if (frame.type === "data" && this.#clearTarget === null) {
      if (!this.#hypervisor.destroyed && !this.#writer.write(frame.data)) this.#connection?.pause();
    } else if (frame.type === "close") {
      if (this.#clearTarget === null) this.#endHeard();
      else this.#clearTarget.behind(frame.sent, () => { this.#endHeard(); });
    } else if (frame.type === "mark" && this.#clearTarget !== null) {
      const { bytes } = frame;
      this.#clearTarget.behind(bytes, () => { this.#connection?.send({ type: "marked", bytes }); });
    } else if (frame.type === "clear" && this.#clearSource !== null) {
      this.#clearSource.cleared();
    } else if (frame.type === "marked" && this.#clearSource !== null) {
      this.#clearSource.marked(frame.bytes);
    } else {
      throw new CareofError("malformed-relay", `a further channel does not carry "${frame.type}"`);
    }
  }

  #endHeard(): void {
    this.#heardEnd = true;
    this.#hypervisor.end();
    this.#settle();
    this.#onEndHeard();
  }

  drained(): void {
    if (!this.#stalled) this.#resume();
  }

  #resume(): void {
    if (!this.#unread) this.#hypervisor.resume();
  }

  /** The way in clear is lost. */
  broken(cause: CareofError): void {
    this.#finish(cause);
  }

  ended(cause: CareofError | null): void {
    // What the source has said before it ended in order may still wait for what comes in clear.
    if (this.#clearTarget === null || cause !== null) this.#connectionOver(cause);
    else this.#clearTarget.behind(0, () => { this.#connectionOver(cause); });
  }

  #connectionOver(cause: CareofError | null): void {
    this.#finish(this.#endDetail !== null && this.#heardEnd ? null : cause ?? new CareofError("relay-failed", "a channel of the relay was closed before its end"));
  }

  /** Everything of our hypervisor is behind us. Idempotent. */
  sayEnd(detail: string): void {
    if (this.#endDetail !== null || this.#over) return;
    this.#endDetail = detail;
    if (this.#connection !== null) this.#sendEnd(this.#connection, detail);
  }

  /** Both ends are cut at once, without `onOver`. */
  destroy(): void {
    this.#over = true;
    this.#clearSource?.close();
    this.#clearTarget?.close();
    this.#connection?.destroy();
    this.#hypervisor.destroy();
  }

  /** An orderly end: what has come for our hypervisor still reaches it. Without `onOver`. */
  close(): void {
    this.#over = true;
    this.#clearSource?.close();
    this.#clearTarget?.finish();
    this.#connection?.destroy();
    this.#hypervisor.destroySoon();
  }

  #sendEnd(connection: RelayConnection, reason: string): void {
    connection.send({ type: "close", reason: "unspecified", detail: reason, sent: this.#clearSource?.last() ?? 0 });
    this.#settle();
  }

  #settle(): void {
    if (this.#endDetail !== null && this.#heardEnd) this.#connection?.end();
  }

  #finish(cause: CareofError | null): void {
    if (this.#over) return;
    if (cause === null) this.close();
    else this.destroy();
    this.#onOver(cause);
  }
}
