import { addressKey, type IpAddress } from "../../model/address.js";
import type { Counters, Stamps } from "../tunnel.js";
import type { BpfMap } from "./maps.js";
import { decodeCounters, decodeStamps, NO_COUNTERS, NO_STAMPS } from "./records.js";

const NOBODY = new Uint8Array(16);

/** Counters and stamps of the home addresses: the programs only write where an entry has been opened. */
export class Ledger {
  readonly #counters: BpfMap;
  readonly #stamps: BpfMap;

  constructor(counters: BpfMap, stamps: BpfMap) {
    this.#counters = counters;
    this.#stamps = stamps;
    counters.ensure(NOBODY);
  }

  /** Idempotent: what is counted stays. */
  open(key: Uint8Array): void {
    this.#counters.ensure(key);
    this.#stamps.ensure(key);
  }

  forget(key: Uint8Array): void {
    this.#counters.delete(key);
    this.#stamps.delete(key);
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
