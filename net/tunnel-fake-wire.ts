import { ipAddress, type IpAddress, type Ipv4 } from "../model/address.js";
import type { Clock } from "../model/clock.js";
import { CareofError } from "../model/errors.js";
import type { Millis } from "../model/ids.js";
import { NO_COUNTERS, NO_STAMPS } from "./bpf/records.js";
import type { Counters, Stamps } from "./tunnel.js";

/** What became of a packet: the address of the end that took it out of the tunnel, or why it was dropped. */
export type Fate = { readonly at: IpAddress } | { readonly dropped: string };

export interface Packet {
  readonly from: Ipv4;
  readonly source: IpAddress;
  readonly destination: IpAddress;
  readonly bytes: number;
  /** Token, 0 for a packet of the VM's. */
  readonly marker: number;
}

export interface End {
  receive(packet: Packet): Fate;
}

/** The routed network between fakes: carries outer packets at once and without loss, unless `cut`. */
export class FakeWire {
  readonly #ends = new Map<IpAddress, End>();
  readonly #cut = new Set<IpAddress>();

  join(address: IpAddress, end: End): void {
    this.#ends.set(address, end);
  }

  /** From now on nothing reaches `address`; `mend` undoes it. */
  cut(address: IpAddress): void {
    this.#cut.add(address);
  }

  mend(address: IpAddress): void {
    this.#cut.delete(address);
  }

  carry(to: IpAddress, packet: Packet): Fate {
    const end = this.#cut.has(to) ? undefined : this.#ends.get(to);
    return end?.receive(packet) ?? { dropped: "no-route" };
  }
}

/** Drops that belong to no entry. */
export const NOBODY = ipAddress("::");

/** Counters and stamps as the kernel's maps keep them. */
export class FakeLedger {
  readonly #clock: Clock;
  readonly #records = new Map<IpAddress, { counters: Counters; stamps: Stamps }>();

  constructor(clock: Clock) {
    this.#clock = clock;
    this.open(NOBODY);
  }

  open(home: IpAddress): void {
    if (!this.#records.has(home)) this.#records.set(home, { counters: NO_COUNTERS, stamps: NO_STAMPS });
  }

  keepOnly(homes: ReadonlySet<IpAddress>): void {
    for (const home of this.#records.keys()) if (!homes.has(home) && home !== NOBODY) this.#records.delete(home);
  }

  forget(home: IpAddress): void {
    this.#records.delete(home);
  }

  counters(home: IpAddress): Counters {
    return this.#records.get(home)?.counters ?? NO_COUNTERS;
  }

  stamps(home: IpAddress): Stamps {
    return this.#records.get(home)?.stamps ?? NO_STAMPS;
  }

  clearStamps(home: IpAddress): void {
    const record = this.#records.get(home);
    if (record !== undefined) record.stamps = NO_STAMPS;
  }

  count(home: IpAddress, change: (counters: Counters) => Partial<Counters>): void {
    const record = this.#records.get(home);
    if (record !== undefined) record.counters = { ...record.counters, ...change(record.counters) };
  }

  stamp(home: IpAddress, change: (stamps: Stamps, now: Millis) => Partial<Stamps>): void {
    const record = this.#records.get(home);
    if (record !== undefined) record.stamps = { ...record.stamps, ...change(record.stamps, this.#clock.monotonic()) };
  }

  passed(home: IpAddress): void {
    this.stamp(home, ({ behindMarker, firstPacket, marker }, now) => ({ firstPacket: firstPacket ?? now, behindMarker: marker === null ? null : behindMarker ?? now }));
  }

  marked(home: IpAddress, token: number): Fate {
    this.stamp(home, (_, now) => ({ marker: { token, at: now } }));
    return { dropped: "marker" };
  }

  markedBy(home: IpAddress, token: number): Fate {
    this.stamp(home, () => ({ passedMarker: token }));
    return { dropped: "marker" };
  }

  drop(home: IpAddress, reason: string): Fate {
    this.count(this.#records.has(home) ? home : NOBODY, ({ dropped }) => ({ dropped: { ...dropped, [reason]: (dropped[reason] ?? 0) + 1 } }));
    return { dropped: reason };
  }
}

/** @throws CareofError `malformed-marker` */
export function requireToken(token: number): number {
  if (!Number.isInteger(token) || token < 1 || token > 0xffff_ffff) throw new CareofError("malformed-marker", `${String(token)} is not a marker's token`);
  return token;
}
