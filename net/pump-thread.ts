import { receiveMessageOnPort, workerData, type MessagePort } from "node:worker_threads";
import { EPIPE } from "./errno.js";
import { isForNow, Splicing, type Carrier } from "./pump-carrier.js";
import { Opening, Sealing } from "./pump-seal.js";
import { COME, READ, WRITTEN, type PumpAsk, type PumpStart, type PumpCarriage, type PumpWord } from "./pump-words.js";
import { close, pollHere, tryRead } from "./syscall.js";

const [POLLIN, POLLOUT, POLLERR, POLLHUP, POLLFD] = [1, 4, 8, 16, 8] as const;
/** So often one pump may come before the others are looked at again. */
const TURNS = 16;

/**
 * The thread behind pump.ts: moves bytes from one socket to another (pump-carrier.ts), for all pumps of the process. One pump:
 *
 * ```
 *   waiting ── `to` ──▶ moving ── nothing more to read, all written ──▶ over (`ended`)
 *      ▲                 │  └──── it cannot be read, all written ─────▶ over (`broken`)
 *      └──── `refused` ──┘
 * ```
 */
class Pump {
  readonly #counts: BigInt64Array;
  #to: number | null = null;
  stalled = false;
  over = false;
  #announced = false;
  #ended = false;
  /** What reading was refused with. */
  #errno = 0;
  #wanted: number[] = [];

  readonly id: number;
  readonly from: number;
  readonly #carrier: Carrier;
  readonly #say: (word: PumpWord) => void;

  constructor({ id, from, by, counts }: Extract<PumpAsk, { readonly kind: "add" }>, say: (word: PumpWord) => void) {
    this.id = id;
    this.from = from;
    this.#carrier = carrierOf(by);
    this.#counts = new BigInt64Array(counts);
    this.#say = say;
  }

  /** What to wait for of `from`, and of `to`; `null`: not at all. */
  get waitsFor(): readonly [number | null, number | null] {
    if (this.over) return [null, null];
    if (this.#to === null) return [this.#announced ? null : POLLIN, null];
    const { empty } = this.#carrier;
    const reads = empty && !this.stalled && !this.#ended;
    return [reads ? POLLIN : null, empty ? 0 : POLLOUT];
  }

  /** @param from what is ready there, @param to likewise */
  ready(from: number, to: number): void {
    if (this.over) return;
    if (this.#to === null) {
      if (from !== 0 && !this.#announced) {
        this.#announced = true;
        this.#say({ kind: "readable", id: this.id });
      }
      return;
    }
    if (this.#carrier.empty && (to & (POLLERR | POLLHUP)) !== 0) this.#refused(EPIPE);
    else for (let turn = 0; turn < TURNS && this.#move(); turn++);
  }

  tell(bytes: number): void {
    this.#wanted.push(bytes);
    this.#tellReached();
  }

  close(): void {
    this.over = true;
    for (const descriptor of [this.from, this.#to]) if (descriptor !== null) close(descriptor);
    this.#carrier.close();
  }

  get to(): number | null {
    return this.#to;
  }

  /** Owns it from here on. */
  goTo(to: number): void {
    if (this.#to !== null) close(this.#to);
    this.#to = to;
  }

  /** Whether it is worth another turn. */
  #move(): boolean {
    const to = this.#to;
    if (to === null) return false;
    const carrier = this.#carrier;
    const read = this.stalled || this.#ended || carrier.full ? 0 : this.#read();
    const written = carrier.empty || this.over ? 0 : this.#write(to);
    if (this.#ended && carrier.empty && !this.over) {
      this.over = true;
      this.#say(this.#errno === 0 ? { kind: "ended", id: this.id } : { kind: "broken", id: this.id, errno: this.#errno });
    }
    return !this.over && (read > 0 || written > 0);
  }

  #read(): number {
    const bytes = this.#carrier.take(this.from);
    if (bytes === 0) this.#ended = true;
    else if (bytes < 0 && !isForNow(bytes)) [this.#ended, this.#errno] = [true, -bytes];
    if (bytes > 0) Atomics.add(this.#counts, COME, BigInt(bytes));
    Atomics.store(this.#counts, READ, BigInt(this.#carrier.read));
    return bytes;
  }

  #write(to: number): number {
    const bytes = this.#carrier.give(to);
    if (bytes < 0 && !isForNow(bytes)) this.#refused(-bytes);
    if (bytes <= 0) return 0;
    Atomics.store(this.#counts, WRITTEN, BigInt(this.#carrier.written));
    this.#tellReached();
    return bytes;
  }

  #tellReached(): void {
    const written = Number(Atomics.load(this.#counts, WRITTEN));
    const missing = this.#wanted.filter((bytes) => bytes > written);
    if (missing.length === this.#wanted.length) return;
    this.#wanted = missing;
    this.#say({ kind: "reached", id: this.id });
  }

  #refused(errno: number): void {
    if (this.#to !== null) close(this.#to);
    this.#to = null;
    this.#announced = true;
    this.#say({ kind: "refused", id: this.id, errno });
  }
}

function carrierOf(by: PumpCarriage): Carrier {
  switch (by.kind) {
    case "pipe": return new Splicing(by.pipe);
    case "seal": return new Sealing(by.key);
    case "open": return new Opening(by.key);
  }
}

/** Until the process ends. */
function work(port: MessagePort, wake: number): void {
  const pumps = new Map<number, Pump>();
  const say = (word: PumpWord): void => { port.postMessage(word); };
  for (;;) {
    for (let told = receiveMessageOnPort(port); told !== undefined; told = receiveMessageOnPort(port)) {
      const ask = told.message as PumpAsk;
      if (ask.kind === "quit") return;
      heed(pumps, ask, say);
    }
    const waiting = [...pumps.values()].map((pump) => ({ pump, of: pump.waitsFor }));
    const descriptors = waiting.flatMap(({ pump, of: [from, to] }) => [
      ...(from === null ? [] : [{ pump, side: "from" as const, descriptor: pump.from, events: from }]),
      ...(to === null || pump.to === null ? [] : [{ pump, side: "to" as const, descriptor: pump.to, events: to }]),
    ]);
    const polled = Buffer.alloc(POLLFD * (1 + descriptors.length));
    polled.writeInt32LE(wake, 0);
    polled.writeInt16LE(POLLIN, 4);
    descriptors.forEach(({ descriptor, events }, at) => {
      polled.writeInt32LE(descriptor, POLLFD * (at + 1));
      polled.writeInt16LE(events, POLLFD * (at + 1) + 4);
    });
    pollHere(polled);
    if (polled.readInt16LE(6) !== 0) tryRead(wake, Buffer.alloc(8));
    const ready = new Map<Pump, { from: number; to: number }>();
    descriptors.forEach(({ pump, side }, at) => {
      const of = polled.readInt16LE(POLLFD * (at + 1) + 6);
      if (of !== 0) ready.set(pump, { ...(ready.get(pump) ?? { from: 0, to: 0 }), [side]: of });
    });
    for (const [pump, { from, to }] of ready) pump.ready(from, to);
  }
}

function heed(pumps: Map<number, Pump>, ask: Exclude<PumpAsk, { readonly kind: "quit" }>, say: (word: PumpWord) => void): void {
  if (ask.kind === "add") {
    pumps.set(ask.id, new Pump(ask, say));
    return;
  }
  const pump = pumps.get(ask.id);
  if (pump === undefined) {
    if (ask.kind === "to") close(ask.to);
    return;
  }
  switch (ask.kind) {
    case "to": pump.goTo(ask.to); return;
    case "stall": pump.stalled = ask.stalled; return;
    case "tell": pump.tell(ask.bytes); return;
    case "remove": {
      pumps.delete(ask.id);
      pump.close();
      say({ kind: "removed", id: ask.id });
    }
  }
}

const { port, wake } = workerData as PumpStart;
work(port, wake);
