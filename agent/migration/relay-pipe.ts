import type { Socket } from "node:net";
import { CareofError } from "../../model/errors.js";
import type { RelayFrame } from "../../proto/relay-framing.js";
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
  /** Read of our hypervisor. */
  bytes = 0;
  readonly #hypervisor: Socket;
  readonly #writer: RelayWriter;
  readonly #onOver: (cause: CareofError | null) => void;
  #connection: RelayConnection | null = null;
  /** Why our hypervisor's direction has ended; `null` while it has not. */
  #endDetail: string | null = null;
  #heardEnd = false;
  #stalled = false;
  #over = false;

  /** Nothing of `hypervisor` is read before `start`. `onOver` is called once; `null`: an orderly end. */
  constructor(hypervisor: Socket, onOver: (cause: CareofError | null) => void) {
    this.#hypervisor = hypervisor;
    this.#writer = new RelayWriter(hypervisor, RELAY_LIMITS.highWaterBytes);
    this.#onOver = onOver;
    hypervisor.pause();
    hypervisor.on("data", (chunk: Buffer) => {
      this.bytes += chunk.length;
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

  /** Whether nothing more comes from the peer. */
  get heardEnd(): boolean {
    return this.#heardEnd || this.#over;
  }

  start(connection: RelayConnection): void {
    this.#connection = connection;
    if (this.#endDetail !== null) this.#sendEnd(connection, this.#endDetail);
    else this.drained();
  }

  /** Resolves when the peer has taken all that was read so far, or the channel is over. */
  async taken(): Promise<void> {
    await this.#connection?.taken();
  }

  /** Reads nothing more of our hypervisor. */
  stall(): void {
    this.#stalled = true;
    this.#hypervisor.pause();
  }

  /** Reads on. */
  flow(): void {
    this.#stalled = false;
    if (this.#connection !== null) this.#hypervisor.resume();
  }

  /** The connection's, as RelayConnection wants them. */
  receive(frame: RelayFrame): void {
    if (frame.type === "data") {
      if (!this.#hypervisor.destroyed && !this.#writer.write(frame.data)) this.#connection?.pause();
    } else if (frame.type === "close") {
      this.#heardEnd = true;
      this.#hypervisor.end();
      this.#settle();
    } else {
      throw new CareofError("malformed-relay", `a further channel does not carry "${frame.type}"`);
    }
  }

  drained(): void {
    if (!this.#stalled) this.#hypervisor.resume();
  }

  ended(cause: CareofError | null): void {
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
    this.#connection?.destroy();
    this.#hypervisor.destroy();
  }

  /** An orderly end: what has come for our hypervisor still reaches it. Without `onOver`. */
  close(): void {
    this.#over = true;
    this.#connection?.destroy();
    this.#hypervisor.destroySoon();
  }

  #sendEnd(connection: RelayConnection, reason: string): void {
    connection.send({ type: "close", reason: "unspecified", detail: reason });
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
