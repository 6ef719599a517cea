import type { SentOn } from "../tunnel.js";
import type { BpfMap } from "./maps.js";
import { decodeWaiting, encodeHostRecord, encodeOpening, encodeWaiting, holdOf, opens, type HostRecord } from "./records.js";

/** Rounds after which a hold is opened whatever still waits: of somebody who sends faster than it is sent on there is no end. */
const ROUNDS = 16;

/**
 * Holds, and how they end. Between the last look at what waits and the switch the process may lose the processor, and what has come meanwhile would be overtaken by what comes after it. So the
 * program decides while a hold opens: a packet waits as long as one before it does (`waits` in careof.c), and goes its way from the moment when user space has said that the last one has been sent on.
 */
export class Holds {
  readonly #guests: Pick<BpfMap, "lookup" | "update">;
  readonly #waiting: Pick<BpfMap, "delete" | "keys" | "lookup" | "update">;

  constructor(guests: Pick<BpfMap, "lookup" | "update">, waiting: Pick<BpfMap, "delete" | "keys" | "lookup" | "update">) {
    this.#guests = guests;
    this.#waiting = waiting;
    for (const key of waiting.keys()) if (guests.lookup(key) === null) waiting.delete(key);
  }

  /**
   * Before the first packet goes into a hold of this address. Idempotent: the numbers go on as long as the hold is the same, also from one tunnel of a process to the next. Those of an earlier process have gone with its own.
   */
  ensure(key: Uint8Array, device: number): void {
    const last = this.#waiting.lookup(key);
    if (last === null || holdOf(last) !== device) this.#waiting.update(key, encodeWaiting(device));
  }

  forget(key: Uint8Array): void {
    this.#waiting.delete(key);
  }

  /** From `before`, which the map has, to what is as good as `after`, which is to be written then. What fails leaves the hold closed, as it was. */
  open(key: Uint8Array, before: HostRecord | null, after: HostRecord, sendOn: () => SentOn): void {
    const kinds = before === null ? [] : opens(before, after);
    let earlier: { readonly sent: SentOn; readonly numbers: SentOn } | null = null;
    try {
      for (let round = 0; round < ROUNDS; round++) {
        const sent = sendOn();
        if (before === null || kinds.length === 0) return;
        // What had its number before the last look and was not found by this one found no room: it is not waited for.
        const settled: SentOn = earlier?.sent.directly === sent.directly && earlier.sent.straggler === sent.straggler ? earlier.numbers : sent;
        this.#guests.update(key, encodeOpening(before, after, settled));
        const last = this.#waiting.lookup(key);
        if (last === null) return;
        const numbers = decodeWaiting(last);
        if (kinds.every((kind) => numbers[kind] === settled[kind])) return;
        earlier = { sent, numbers };
      }
    } catch (thrown) {
      // One that is half open would be taken for an open one the next time, and what waits in it overtaken.
      if (before !== null) this.#guests.update(key, encodeHostRecord(before));
      throw thrown;
    }
  }
}
