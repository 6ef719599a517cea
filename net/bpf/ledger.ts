import { addressKey, putAddressKey, type IpAddress } from "../../model/address.js";
import type { Counters, Stamps } from "../tunnel.js";
import { keyText, readAll, writeAll } from "./batches.js";
import type { BpfMap } from "./maps.js";
import { decodeCounters, decodeStamps, NO_COUNTERS, NO_STAMPS } from "./records.js";

const NOBODY = new Uint8Array(16);

/**
 * Counters and stamps of the home addresses. Stamps are written only where an entry has been opened. Counters are made by the first packet that is to be counted:
 * one value per processor costs the kernel more time than all else that a binding needs, and a start with many bindings has none of it to spare.
 */
export class Ledger {
  readonly #counters: BpfMap;
  readonly #stamps: BpfMap;

  constructor(counters: BpfMap, stamps: BpfMap) {
    this.#counters = counters;
    this.#stamps = stamps;
    counters.ensure(NOBODY);
  }

  /** Idempotent: what is counted stays. A packet that was under way when the address was forgotten last may have left a count behind. */
  open(key: Uint8Array): void {
    if (this.#stamps.ensure(key)) this.#counters.delete(key);
  }

  /** As `open` for each of them, of which most are new. */
  openAll(homes: readonly IpAddress[]): void {
    const open = readAll(this.#stamps);
    const missing = open.size === 0 ? homes : homes.filter((home) => !open.has(keyText(home)));
    writeAll(this.#stamps, missing, (home, keys, at) => { putAddressKey(home, keys, at); });
  }

  forget(key: Uint8Array): void {
    this.#stamps.delete(key);
    this.#counters.delete(key);
  }

  /** `::` has what was dropped and belongs to no entry. */
  counters(home: IpAddress): Counters {
    const found = this.#counters.lookup(addressKey(home));
    return found === null ? NO_COUNTERS : decodeCounters(found);
  }

  stamps(home: IpAddress): Stamps {
    const found = this.#stamps.lookup(addressKey(home));
    return found === null ? NO_STAMPS : decodeStamps(found);
  }

  /** Nothing where there is no entry. */
  clearStamps(home: IpAddress): void {
    const key = addressKey(home);
    if (this.#stamps.lookup(key) !== null) this.#stamps.update(key, new Uint8Array(0));
  }
}
