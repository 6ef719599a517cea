import { connect, type Socket } from "node:net";
import type { Clock, Timer } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis, type Millis } from "../../model/ids.js";
import { Pump, type PumpSeal } from "../../net/pump.js";
import { descriptorOfSocket } from "../../net/socket-descriptor.js";
import { close } from "../../net/syscall.js";
import { WAY_FIRST_BYTE } from "./relay-listener.js";

/** So often the target is asked whether what was sent has come: a way that falls silent would say so to nobody. */
const ASK_MS = millis(2000);

export interface WaySourceOptions {
  /** The target's relay. */
  readonly address: string;
  readonly port: number;
  /** As said in the channel's hello. */
  readonly token: Uint8Array;
  /** Not read by anybody yet. */
  readonly hypervisor: Socket;
  /** `open` is the target's. */
  readonly seal: PumpSeal;
  readonly clock: Clock;
  /** Until the target has the connection. */
  readonly connectMs: Millis;
  /** Asks the target to say when it has handed on so many bytes. */
  readonly mark: (bytes: number) => void;
  /** Once: our hypervisor's direction is over, all of it is on its way. */
  readonly onEnd: (detail: string) => void;
  /** Once: the way is lost. */
  readonly onBroken: (cause: CareofError) => void;
}

/**
 * The source's end of a channel's way: what our hypervisor says goes to the target by a TCP connection of its own, on the pumps' thread (net/pump.ts), beside the authenticated one, which has announced it.
 * It is sealed under a key of that one, unless the move is to be in clear: then nothing but the token proves where it comes from, and nobody who sees the network is kept from reading it.
 *
 * ```
 *   dialing ── token sent, and the target's `begin` ──▶ carrying ── our hypervisor's end ──▶ ended (`onEnd`)
 *      └────────── no connection, or lost ─────────────────┴──────▶ broken (`onBroken`)
 * ```
 */
export class WaySource {
  readonly #options: WaySourceOptions;
  readonly #dialed: Socket;
  readonly #limit: Timer;
  #descriptor: number | null = null;
  #begun = false;
  #pump: Pump | null = null;
  #stalled = false;
  #told = false;
  #asks: Timer | null = null;
  #over = false;
  #awaited: { readonly bytes: number; readonly resolve: () => void }[] = [];

  constructor(options: WaySourceOptions) {
    this.#options = options;
    const { address, port, token } = options;
    const where = `the target's relay at ${address}:${String(port)}`;
    this.#limit = options.clock.after("relay-way", options.connectMs, () => { this.#break(new CareofError("relay-failed", `${where} does not take the stream`)); });
    const dialed = connect({ host: address, port });
    this.#dialed = dialed;
    dialed.setNoDelay(true);
    dialed.on("error", (cause) => { this.#break(new CareofError("relay-failed", `no connection for the stream to ${where}: ${cause.message}`, { cause })); });
    dialed.once("connect", () => {
      dialed.write(Buffer.concat([Uint8Array.of(WAY_FIRST_BYTE), token]), (cause) => { if (cause === null || cause === undefined) this.#sent(); });
    });
  }

  /** Bytes of our hypervisor that are on their way or there. */
  get bytes(): number {
    return this.#pump?.read ?? 0;
  }

  /** How many bytes stand before the last word about them. It reads no more, within a moment, and what becomes of the way is the target's to say from here on. */
  last(): number {
    const { bytes } = this;
    this.#told = true;
    this.stall();
    return bytes;
  }

  /** The target's `begin`. */
  begun(): void {
    this.#begun = true;
    this.#begin();
  }

  /** The target's `marked`. */
  marked(bytes: number): void {
    this.#letGo((each) => each.bytes <= bytes);
  }

  /** Reads nothing more of our hypervisor, within a moment; also when it has not begun yet. */
  stall(): void {
    this.#stalled = true;
    this.#pump?.stall();
  }

  flow(): void {
    this.#stalled = false;
    this.#pump?.flow();
  }

  /** Resolves when the target's hypervisor has been handed what was read so far, or this is over. */
  async taken(): Promise<void> {
    const { bytes } = this;
    if (bytes === 0 || this.#over) return;
    await new Promise<void>((resolve) => {
      this.#awaited.push({ bytes, resolve });
      this.#options.mark(bytes);
    });
  }

  /** Idempotent; without a word to anybody. */
  close(): void {
    this.#over = true;
    this.#limit.cancel();
    this.#asks?.cancel();
    this.#letGo(() => true);
    this.#dialed.destroy();
    this.#pump?.close();
    if (this.#pump === null && this.#descriptor !== null) close(this.#descriptor);
    this.#descriptor = null;
  }

  /** The connection is the kernel's from here on. */
  #sent(): void {
    if (this.#over) return;
    this.#safely(() => { this.#descriptor = descriptorOfSocket(this.#dialed); });
    this.#dialed.destroy();
    this.#begin();
  }

  #begin(): void {
    const to = this.#descriptor;
    if (to === null || !this.#begun || this.#over || this.#pump !== null) return;
    this.#limit.cancel();
    this.#safely(() => {
      this.#pump = new Pump(descriptorOfSocket(this.#options.hypervisor), {
        onOver: (broken) => { this.#options.onEnd(broken === null ? "stream-ended" : `stream-broken: ${broken.message}`); },
        onRefused: (cause) => { this.#break(new CareofError("relay-failed", `the stream broke: ${cause.message}`, { cause })); },
      }, this.#options.seal);
      if (this.#stalled) this.#pump.stall();
      this.#pump.to(to);
      this.#keepAsking(0);
    });
  }

  #keepAsking(before: number): void {
    this.#asks = this.#options.clock.after("relay-way-mark", ASK_MS, () => {
      if (this.#over || this.#told) return;
      const { bytes } = this;
      const asks = bytes > before && this.#awaited.length === 0;
      if (asks) {
        this.#awaited.push({ bytes, resolve: () => undefined });
        this.#options.mark(bytes);
      }
      // What was not asked about is asked about next time, though no more should have come by then.
      this.#keepAsking(asks ? bytes : before);
    });
  }

  #safely(run: () => void): void {
    try {
      run();
    } catch (thrown) {
      this.#break(toCareofError(thrown));
    }
  }

  #break(cause: CareofError): void {
    if (this.#over || this.#told) return;
    this.close();
    this.#options.onBroken(cause);
  }

  #letGo(which: (each: { readonly bytes: number }) => boolean): void {
    const over = this.#awaited.filter(which);
    this.#awaited = this.#awaited.filter((each) => !which(each));
    for (const { resolve } of over) resolve();
  }
}
