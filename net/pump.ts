import { MessageChannel, receiveMessageOnPort, Worker, type MessagePort } from "node:worker_threads";
import { CareofError } from "../model/errors.js";
import { EBADMSG, KernelError } from "./errno.js";
import { SEAL_KEY_BYTES } from "./pump-seal.js";
import { COME, COUNTS, PIPE_BYTES, READ, WRITTEN, type PumpAsk, type PumpStart, type PumpCarriage, type PumpWord } from "./pump-words.js";
import { close, eventDescriptor, pipe, ring } from "./syscall.js";

/** What is done with the stream on its way: nothing, or it is sealed, or opened (pump-seal.ts). The key is of SEAL_KEY_BYTES, and for one pump of each kind alone. */
export type PumpSeal = { readonly kind: "none" } | { readonly kind: "seal" | "open"; readonly key: Uint8Array };

export interface PumpEvents {
  /** There is something to read, and it is not said yet where it goes. Once at most. */
  readonly onReadable?: () => void;
  /** Where it goes nothing more is taken. What was read waits for another `to`, and nothing is read until then. */
  readonly onRefused: (cause: CareofError) => void;
  /** Once at most, and nothing behind it: all that there was to read is written (`null`), or nothing can be read any more. Not after `close`. */
  readonly onOver: (broken: CareofError | null) => void;
}

/**
 * Carries what comes from one socket to another, on one thread for all pumps: without bringing it into this process (splice(2)), or sealing or opening it on the way. One direction. Bytes are carried in order, a slow
 * reader holds back its writer and nobody else (the thread never waits for one of them), at most 1 MiB of a pump is on the way. Counts are of the stream itself, but for `come`. What was not sealed as it must be breaks the pump
 * (`malformed-relay`), and nothing of it comes out.
 */
export class Pump {
  readonly #counts = new SharedArrayBuffer(8 * COUNTS);
  readonly #numbers = new BigInt64Array(this.#counts);
  readonly #thread: Thread;
  readonly #id: number;
  readonly #events: PumpEvents;
  #waiting: { readonly bytes: number; readonly resolve: () => void }[] = [];
  /** The thread's to close, as long as there is one. */
  readonly #descriptors: number[] = [];
  #to: number | null = null;
  #abandoned = false;
  #over = false;
  #closed = false;

  /** Takes `from` over, a socket's descriptor that nobody else reads. @throws CareofError `kernel-refused` (`from` is closed then too) */
  constructor(from: number, events: PumpEvents, seal: PumpSeal = { kind: "none" }) {
    this.#events = events;
    this.#descriptors.push(from);
    try {
      const by = this.#carriage(seal);
      this.#thread = thread ??= new Thread();
      this.#id = this.#thread.join((word) => { this.#heard(word); });
      this.#thread.ask({ kind: "add", id: this.#id, from, by, counts: this.#counts });
    } catch (thrown) {
      this.#abandon();
      throw thrown;
    }
  }

  #carriage(seal: PumpSeal): PumpCarriage {
    if (seal.kind !== "none" && seal.key.length !== SEAL_KEY_BYTES) throw new CareofError("internal", `a key of ${String(seal.key.length)} bytes`);
    if (seal.kind !== "none") return seal;
    const ends = pipe(PIPE_BYTES);
    this.#descriptors.push(ends.reading, ends.writing);
    return { kind: "pipe", pipe: ends };
  }

  /** Takes `to` over. Once, and again after it was refused there. */
  to(to: number): void {
    if (this.#closed || this.#abandoned) {
      close(to);
      return;
    }
    this.#to = to;
    this.#thread.ask({ kind: "to", id: this.#id, to });
  }

  /** Bytes read so far. */
  get read(): number {
    return Number(Atomics.load(this.#numbers, READ));
  }

  /** Bytes written so far. */
  get written(): number {
    return Number(Atomics.load(this.#numbers, WRITTEN));
  }

  /** Bytes that have come so far: all that sealed records consist of, also of one that has not been opened yet. */
  get come(): number {
    return Number(Atomics.load(this.#numbers, COME));
  }

  /** Reads nothing more, soon. */
  stall(): void {
    this.#ask({ kind: "stall", id: this.#id, stalled: true });
  }

  /** Reads on. */
  flow(): void {
    this.#ask({ kind: "stall", id: this.#id, stalled: false });
  }

  /** Resolves when so many bytes are written, or will never be: this pump is over or closed. */
  async reached(bytes: number): Promise<void> {
    if (this.written >= bytes || this.#over || this.#closed) return;
    await new Promise<void>((resolve) => {
      this.#waiting.push({ bytes, resolve });
      this.#ask({ kind: "tell", id: this.#id, bytes });
    });
  }

  /** Both descriptors are closed, within a moment. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#letGo();
    this.#thread.leave(this.#id);
  }

  #ask(ask: PumpAsk): void {
    if (!this.#closed) this.#thread.ask(ask);
  }

  #heard(word: PumpWord | CareofError): void {
    if (word instanceof CareofError) this.#abandon();
    if (!(word instanceof CareofError) && word.kind === "refused") this.#to = null;
    if (this.#closed || this.#over) return;
    if (word instanceof CareofError) this.#end(word);
    else if (word.kind === "readable") this.#events.onReadable?.();
    else if (word.kind === "reached") this.#letGo();
    else if (word.kind === "ended") this.#end(null);
    else if (word.kind === "broken") this.#end(word.errno === EBADMSG ? new CareofError("malformed-relay", "what came was not sealed as the next record") : refusal(word.errno));
    else if (word.kind === "refused") this.#events.onRefused(refusal(word.errno));
  }

  #end(broken: CareofError | null): void {
    this.#over = true;
    this.#letGo();
    this.#events.onOver(broken);
  }

  /** The thread is no more, or never had them. */
  #abandon(): void {
    this.#abandoned = true;
    for (const descriptor of [...this.#descriptors.splice(0), ...(this.#to === null ? [] : [this.#to])]) close(descriptor);
    this.#to = null;
  }

  #letGo(): void {
    const all = this.#over || this.#closed;
    const reached = this.#waiting.filter(({ bytes }) => all || this.written >= bytes);
    this.#waiting = this.#waiting.filter((each) => !reached.includes(each));
    for (const { resolve } of reached) resolve();
  }
}

function refusal(errno: number): CareofError {
  return new CareofError("kernel-refused", new KernelError(errno, "to carry a stream").message);
}

/** Of this process, once it was needed. */
let thread: Thread | null = null;

class Thread {
  readonly #wake = eventDescriptor();
  readonly #port: MessagePort;
  readonly #members = new Map<number, (word: PumpWord | CareofError) => void>();
  readonly #quit = (): void => { this.ask({ kind: "quit" }); };
  #count = 0;
  #over = false;

  constructor() {
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    port1.on("message", (word: PumpWord) => { this.#heard(word); });
    const worker = this.#worker(port2);
    worker.on("error", (cause) => { this.#lost(new CareofError("kernel-refused", `the thread that carries streams has ended: ${cause.message}`, { cause })); });
    worker.unref();
    port1.unref();
    // A process does not end while one of its threads is in a call of the kernel.
    process.once("exit", this.#quit);
  }

  #worker(port: MessagePort): Worker {
    try {
      return new Worker(new URL("./pump-thread.js", import.meta.url), { workerData: { port, wake: this.#wake } satisfies PumpStart, transferList: [port], execArgv: [] });
    } catch (thrown) {
      this.#port.close();
      close(this.#wake);
      throw thrown;
    }
  }

  #heard(word: PumpWord): void {
    const heard = this.#members.get(word.id);
    if (word.kind === "removed") this.#members.delete(word.id);
    heard?.(word);
  }

  join(heard: (word: PumpWord | CareofError) => void): number {
    this.#members.set(++this.#count, heard);
    return this.#count;
  }

  /** Its member hears on until its descriptors are closed. */
  leave(id: number): void {
    this.ask({ kind: "remove", id });
  }

  ask(ask: PumpAsk): void {
    if (this.#over) return;
    this.#port.postMessage(ask);
    ring(this.#wake);
  }

  /** The next pump begins with another thread. What this one has said of descriptors that it has closed is heard first. */
  #lost(cause: CareofError): void {
    for (let word = receiveMessageOnPort(this.#port); word !== undefined; word = receiveMessageOnPort(this.#port)) this.#heard(word.message as PumpWord);
    if (thread === this) thread = null;
    this.#over = true;
    process.off("exit", this.#quit);
    this.#port.close();
    close(this.#wake);
    for (const heard of [...this.#members.values()]) heard(cause);
  }
}
