import type { Socket } from "node:net";
import { CareofError } from "../../model/errors.js";
import type { RelayFrame } from "../../proto/relay-framing.js";
import type { RelayConnection } from "./relay-connection.js";
import { WaySource } from "./way-source.js";
import type { WayTarget } from "./way-target.js";

/**
 * One further channel, at either end: a hypervisor's connection ⇄ a connection of the relay of its own, and beside that its way. Bytes in order both ways, a slow reader holds back its writer and
 * nobody else; the end of one side is passed on behind its last byte.
 *
 * ```
 *   open ── our hypervisor ends: `close` sent ──▶ half ── peer's `close` ──▶ over (null)
 *    │ └──── peer's `close`: our hypervisor hears the end ──▶ half ── ours ends ──┘
 *    └─ connection lost from any of these ──▶ over (cause)
 * ```
 */
export class RelayPipe {
  readonly #hypervisor: Socket;
  readonly #onOver: (cause: CareofError | null) => void;
  readonly #onEndHeard: () => void;
  /** At the source our hypervisor is not read here: what it says goes by the way. */
  readonly #side: "source" | "target";
  #connection: RelayConnection | null = null;
  /** Why our hypervisor's direction has ended; `null` while it has not. */
  #endDetail: string | null = null;
  #heardEnd = false;
  #stalled = false;
  #over = false;
  /** What our hypervisor says goes by it, when we are the source's. */
  #waySource: WaySource | null = null;
  /** What the source's hypervisor says comes by it, when we are the target's. */
  #wayTarget: WayTarget | null = null;

  /** Nothing of `hypervisor` is read before `start`. `onOver` is called once; `null`: an orderly end. `onEndHeard`: nothing more comes from the peer. */
  constructor(side: "source" | "target", hypervisor: Socket, { onOver, onEndHeard = () => undefined }: { readonly onOver: (cause: CareofError | null) => void; readonly onEndHeard?: () => void }) {
    this.#hypervisor = hypervisor;
    this.#onEndHeard = onEndHeard;
    this.#side = side;
    this.#onOver = onOver;
    hypervisor.pause();
    if (side === "target") {
      hypervisor.on("data", (chunk: Buffer) => {
        if (this.#endDetail === null && this.#connection?.send({ type: "data", data: chunk }) === false) hypervisor.pause();
      });
      hypervisor.on("end", () => { this.sayEnd("stream-ended"); });
    } else {
      hypervisor.on("drain", () => { this.#connection?.resume(); });
    }
    hypervisor.on("error", (cause) => { this.sayEnd(`stream-broken: ${cause.message}`); });
    // Whoever is gone reads nothing any more: what still comes for it must not hold up the end behind it.
    hypervisor.on("close", () => {
      this.sayEnd("stream-ended");
      this.#connection?.resume();
    });
  }

  /** Read of our hypervisor. */
  get bytes(): number {
    return this.#waySource?.bytes ?? 0;
  }

  /** Whether nothing more comes from the peer. */
  get heardEnd(): boolean {
    return this.#heardEnd || this.#over;
  }

  start(connection: RelayConnection, way: WaySource | WayTarget): void {
    this.#connection = connection;
    if (way instanceof WaySource) {
      this.#waySource = way;
      if (this.#stalled) way.stall();
    } else {
      this.#wayTarget = way;
      way.to(this.#hypervisor);
    }
    if (this.#endDetail !== null) this.#sendEnd(connection, this.#endDetail);
    else this.drained();
  }

  /** Resolves when the peer has taken all that was read so far, or the channel is over. */
  async taken(): Promise<void> {
    await this.#waySource?.taken();
  }

  /** Reads nothing more of our hypervisor. */
  stall(): void {
    this.#stalled = true;
    this.#waySource?.stall();
  }

  /** Reads on. */
  flow(): void {
    this.#stalled = false;
    this.#waySource?.flow();
  }

  /** The connection's, as RelayConnection wants them. */
  receive(frame: RelayFrame): void {
    const [source, target] = [this.#waySource, this.#wayTarget];
    if (frame.type === "data" && this.#side === "source") {
      if (!this.#hypervisor.destroyed && !this.#hypervisor.write(frame.data)) this.#connection?.pause();
    } else if (frame.type === "close") {
      if (target === null) this.#endHeard();
      else target.behind(frame.sent, () => { this.#endHeard(); });
    } else if (frame.type === "mark" && target !== null) {
      const { bytes } = frame;
      target.behind(bytes, () => { this.#connection?.send({ type: "marked", bytes }); });
    } else if (frame.type === "begin" && source !== null) {
      source.begun();
    } else if (frame.type === "marked" && source !== null) {
      source.marked(frame.bytes);
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

  /** More may be sent. */
  drained(): void {
    if (this.#side === "target") this.#hypervisor.resume();
  }

  /** Its way is lost. */
  broken(cause: CareofError): void {
    this.#finish(cause);
  }

  ended(cause: CareofError | null): void {
    // What the source has said before it ended in order may still wait for what comes by the way.
    if (this.#wayTarget === null || cause !== null) this.#connectionOver(cause);
    else this.#wayTarget.behind(0, () => { this.#connectionOver(cause); });
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
    this.#waySource?.close();
    this.#wayTarget?.close();
    this.#connection?.destroy();
    this.#hypervisor.destroy();
  }

  /** An orderly end: what has come for our hypervisor still reaches it. Without `onOver`. */
  close(): void {
    this.#over = true;
    this.#waySource?.close();
    this.#wayTarget?.finish();
    this.#connection?.destroy();
    this.#hypervisor.destroySoon();
  }

  #sendEnd(connection: RelayConnection, reason: string): void {
    connection.send({ type: "close", reason: "unspecified", detail: reason, sent: this.#waySource?.last() ?? 0 });
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
