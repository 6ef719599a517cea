import type { Socket } from "node:net";
import type { Clock, Timer } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis, type Millis } from "../../model/ids.js";
import { Pump, type PumpSeal } from "../../net/pump.js";
import { descriptorOfSocket, sendBuffer } from "../../net/socket-descriptor.js";
import { close, open } from "../../net/syscall.js";

/** What may wait for our hypervisor in its socket: with what a unix socket has by itself (0.2 MB) it runs dry, and each wake-up of the four in the row takes its time. */
const HYPERVISOR_BYTES = 4 << 20;

/** Where it goes when our hypervisor takes nothing any more: what its source still has to say must come to its end. */
const NOWHERE = "/dev/null";
const WRITE_ONLY = 1;

/** After an orderly end, what is still on its way has so long to come. */
const LINGER_MS = millis(2000);

export interface WayTargetOptions {
  readonly clock: Clock;
  /** `seal` is the source's. */
  readonly seal: PumpSeal;
  /** While something waits for what comes by it, and our hypervisor waits for it too, nothing for so long is the way's end. */
  readonly silenceMs: Millis;
  /** Once: there is something for our hypervisor. */
  readonly onReadable?: () => void;
  /** Once: what was still to come will not. */
  readonly onBroken: (cause: CareofError) => void;
}

/**
 * The target's end of a channel's way (way-source.ts): what comes by it goes to our hypervisor. What the source says in the channel itself about the bytes before it waits until they
 * are there. A hypervisor that is gone is no fault of the way: what comes for it is dropped.
 */
export class WayTarget {
  readonly #options: WayTargetOptions;
  #pump: Pump | null = null;
  #hypervisor: Socket | null = null;
  #last: Promise<void> | null = null;
  #watch: Timer | null = null;
  /** Nothing more comes by it. */
  #ended = false;
  #over = false;

  constructor(options: WayTargetOptions) {
    this.#options = options;
  }

  /** The connection has come: takes `descriptor` over. */
  arrived(descriptor: number): void {
    if (this.#over) {
      close(descriptor);
      return;
    }
    this.#safely(() => {
      this.#pump = new Pump(descriptor, {
        onReadable: () => { this.#options.onReadable?.(); },
        onRefused: () => { this.#drop(); },
        onOver: (cause) => {
          this.#ended = true;
          if (this.#over) this.close();
          else if (cause !== null) this.#break(new CareofError("relay-failed", `the stream broke: ${cause.message}`, { cause }));
        },
      }, this.#options.seal);
      this.#flow();
    });
  }

  /** Where it goes, once it is connected. */
  to(hypervisor: Socket): void {
    this.#hypervisor = hypervisor;
    if (hypervisor.connecting) for (const event of ["connect", "close"] as const) hypervisor.once(event, () => { this.#flow(); });
    else this.#flow();
  }

  /** Runs `then` when `sent` bytes have been handed to our hypervisor, and what was asked before has run. At once, where that is so already. */
  behind(sent: number, then: () => void): void {
    if (this.#last === null && (this.#pump?.written ?? 0) >= sent) {
      then();
      return;
    }
    const before = this.#last ?? Promise.resolve();
    const last = before.then(() => this.#pump?.reached(sent)).then(() => {
      if (this.#last === last) {
        this.#last = null;
        this.#watch?.cancel();
        this.#watch = null;
      }
      if (this.#over) return;
      if ((this.#pump?.written ?? 0) >= sent) then();
      else this.#break(new CareofError("relay-failed", "the stream ended before all of it had come"));
    });
    this.#last = last;
    this.#watch ??= this.#look(this.#pump?.come ?? 0);
    last.catch((thrown: unknown) => { this.#break(toCareofError(thrown)); });
  }

  /** An orderly end: what is still on its way reaches our hypervisor. Without a word to anybody. */
  finish(): void {
    this.#over = true;
    this.#watch?.cancel();
    if (this.#ended) this.close();
    else if (this.#pump !== null) this.#watch = this.#options.clock.after("relay-way-linger", LINGER_MS, () => { this.close(); });
  }

  /** Idempotent; without a word to anybody. */
  close(): void {
    this.#over = true;
    this.#watch?.cancel();
    this.#pump?.close();
  }

  /** A connection over which nothing comes says so to nobody. */
  #look(before: number): Timer {
    return this.#options.clock.after("relay-way-silence", this.#options.silenceMs, () => {
      this.#watch = null;
      if (this.#last === null || this.#over) return;
      const { come, read, written } = this.#pump ?? { come: 0, read: 0, written: 0 };
      if (come === before && written === read) this.#break(new CareofError("relay-failed", `nothing of the stream came for ${String(this.#options.silenceMs)} ms`));
      else this.#watch = this.#look(come);
    });
  }

  #flow(): void {
    const [pump, hypervisor] = [this.#pump, this.#hypervisor];
    if (pump === null || hypervisor === null || hypervisor.connecting || this.#over) return;
    this.#hypervisor = null;
    if (hypervisor.destroyed) this.#drop();
    else this.#safely(() => { pump.to(roomy(hypervisor)); });
  }

  #drop(): void {
    this.#safely(() => { this.#pump?.to(open(NOWHERE, WRITE_ONLY)); });
  }

  #safely(run: () => void): void {
    try {
      run();
    } catch (thrown) {
      this.#break(toCareofError(thrown));
    }
  }

  #break(cause: CareofError): void {
    if (this.#over) return;
    this.close();
    this.#options.onBroken(cause);
  }
}

/** @throws CareofError `kernel-refused`, `unsupported` */
function roomy(hypervisor: Socket): number {
  const descriptor = descriptorOfSocket(hypervisor);
  try {
    sendBuffer(descriptor, HYPERVISOR_BYTES);
    return descriptor;
  } catch (thrown) {
    close(descriptor);
    throw thrown;
  }
}
