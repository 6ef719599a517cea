import type { IpAddress, Ipv4 } from "../model/address.js";
import type { Clock } from "../model/clock.js";
import { CareofError } from "../model/errors.js";
import { Attempts } from "./attempts.js";
import { checkHomeEntry, checkHostEntry, checkHostSet, checkSet, requireV4 } from "./entry-checks.js";
import { FakeLedger, FakeWire, NOBODY, requireToken, type Fate, type Packet } from "./tunnel-fake-wire.js";
import type { Counters, HomeEntry, HomeTunnel, HostEntry, HostTunnel, SentOn, Stamps } from "./tunnel.js";

const ROUNDS = 16;

function sorted<T extends { readonly home: IpAddress }>(entries: Iterable<T>): T[] {
  const key = ({ home }: T): number => home.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
  return [...entries].sort((a, b) => key(a) - key(b));
}

/** The home agent's end in memory, for tests and simulations: same contract, packets by `fromCorrespondent`. */
export class FakeHomeTunnel implements HomeTunnel {
  readonly driver = "fake";
  readonly #address: Ipv4;
  readonly #maxEntries: number;
  readonly #wire: FakeWire;
  readonly #ledger: FakeLedger;
  #entries = new Map<IpAddress, HomeEntry>();

  constructor({ address, clock, maxEntries = 1000, wire = new FakeWire() }: { readonly address: Ipv4; readonly clock: Clock; readonly maxEntries?: number; readonly wire?: FakeWire }) {
    this.#address = address;
    this.#maxEntries = maxEntries;
    this.#wire = wire;
    this.#ledger = new FakeLedger(clock);
    wire.join(address, { receive: (packet) => this.#receive(packet) });
  }

  set(entries: readonly HomeEntry[]): Promise<void> {
    return new Promise((resolve) => {
      entries.forEach(checkHomeEntry);
      checkSet(entries, this.#maxEntries);
      this.#entries = new Map(entries.map((entry) => [entry.home, entry]));
      this.#ledger.keepOnly(new Set(this.#entries.keys()));
      for (const { home } of entries) this.#ledger.open(home);
      resolve();
    });
  }

  put(entry: HomeEntry): void {
    checkHomeEntry(entry);
    this.#entries.set(entry.home, entry);
    this.#ledger.open(entry.home);
  }

  drop(home: IpAddress): void {
    requireV4(home);
    this.#entries.delete(home);
    this.#ledger.forget(home);
  }

  entries(): readonly HomeEntry[] {
    return sorted(this.#entries.values());
  }

  sendMarker(home: IpAddress, careOf: IpAddress, token: number): void {
    this.#wire.carry(requireV4(careOf), { from: this.#address, source: this.#address, destination: requireV4(home), bytes: 0, marker: requireToken(token) });
  }

  counters(home: IpAddress): Counters {
    return this.#ledger.counters(home);
  }

  stamps(home: IpAddress): Stamps {
    return this.#ledger.stamps(home);
  }

  clearStamps(home: IpAddress): void {
    this.#ledger.clearStamps(home);
  }

  close({ keep }: { readonly keep: boolean }): Promise<void> {
    if (!keep) this.#entries.clear();
    return Promise.resolve();
  }

  /** A packet of `bytes` from anybody for `destination` arrives here. */
  fromCorrespondent(source: IpAddress, destination: IpAddress, bytes = 100): Fate {
    const entry = this.#entries.get(destination);
    if (entry === undefined) return { dropped: "unreachable" };
    if (entry.active === null) return this.#ledger.drop(destination, "no-binding");
    this.#ledger.count(destination, ({ downBytes, downPackets }) => ({ downPackets: downPackets + 1, downBytes: downBytes + bytes }));
    return this.#wire.carry(entry.active, { from: this.#address, source, destination, bytes, marker: 0 });
  }

  #receive({ bytes, destination, from, marker, source }: Packet): Fate {
    const entry = this.#entries.get(source);
    if (entry === undefined) return this.#ledger.drop(NOBODY, "no-binding");
    if (!entry.accept.includes(from)) return this.#ledger.drop(source, "not-listed");
    if (marker !== 0) return this.#ledger.marked(source, marker);
    this.#ledger.passed(source);
    this.#ledger.count(source, ({ upBytes, upPackets }) => ({ upPackets: upPackets + 1, upBytes: upBytes + bytes }));
    return this.#entries.has(destination) ? this.fromCorrespondent(source, destination, bytes) : { at: this.#address };
  }
}

/** A host's end in memory: same contract, packets by `fromGuest`. */
export class FakeHostTunnel implements HostTunnel {
  readonly driver = "fake";
  /** As it was last set. */
  pathMtu: number | null = null;
  readonly #careOf: Ipv4;
  readonly #homeAgents: readonly Ipv4[];
  readonly #maxEntries: number;
  readonly #hasPort: (name: string) => boolean;
  readonly #wire: FakeWire;
  readonly #ledger: FakeLedger;
  #entries = new Map<IpAddress, HostEntry>();

  /** `hasPort`: which interfaces exist; by default all. */
  constructor({ careOf, clock, hasPort = () => true, homeAgents, maxEntries = 1000, wire = new FakeWire() }: {
    readonly careOf: Ipv4; readonly homeAgents: readonly Ipv4[]; readonly clock: Clock;
    readonly maxEntries?: number; readonly wire?: FakeWire; readonly hasPort?: (name: string) => boolean;
  }) {
    this.#careOf = careOf;
    this.#homeAgents = homeAgents;
    this.#maxEntries = maxEntries;
    this.#hasPort = hasPort;
    this.#wire = wire;
    this.#ledger = new FakeLedger(clock);
    wire.join(careOf, { receive: (packet) => this.#receive(packet) });
  }

  set(entries: readonly HostEntry[]): Promise<void> {
    return new Promise((resolve) => {
      for (const entry of entries) this.#check(entry);
      checkSet(entries, this.#maxEntries);
      this.#entries = new Map(entries.map((entry) => [entry.home, entry]));
      this.#ledger.keepOnly(new Set(this.#entries.keys()));
      for (const { home } of entries) this.#ledger.open(home);
      resolve();
    });
  }

  renew(entries: readonly HostEntry[]): Promise<void> {
    return new Promise((resolve) => {
      checkHostSet(entries, this.#maxEntries);
      const attempts = new Attempts();
      for (const entry of entries) attempts.make(() => { this.put(entry); });
      attempts.end();
      resolve();
    });
  }

  put(entry: HostEntry, sendOn?: () => SentOn): void {
    this.#check(entry);
    for (let before: SentOn | undefined, round = 0; sendOn !== undefined && round < ROUNDS; round++) {
      const sent = sendOn();
      if (before?.directly === sent.directly && before.straggler === sent.straggler) break;
      before = sent;
    }
    this.#entries.set(entry.home, entry);
    this.#ledger.open(entry.home);
  }

  drop(home: IpAddress): void {
    requireV4(home);
    this.#entries.delete(home);
    this.#ledger.forget(home);
  }

  entries(): readonly HostEntry[] {
    return sorted(this.#entries.values());
  }

  usePathMtu(bytes: number): void {
    this.pathMtu = bytes;
  }

  sendMarker(home: IpAddress, token: number): void {
    const to = this.#homeAgent();
    this.#wire.carry(to, { from: this.#careOf, source: requireV4(home), destination: to, bytes: 0, marker: requireToken(token) });
  }

  counters(home: IpAddress): Counters {
    return this.#ledger.counters(home);
  }

  stamps(home: IpAddress): Stamps {
    return this.#ledger.stamps(home);
  }

  clearStamps(home: IpAddress): void {
    this.#ledger.clearStamps(home);
  }

  close({ keep }: { readonly keep: boolean }): Promise<void> {
    if (!keep) this.#entries.clear();
    return Promise.resolve();
  }

  /** The guest on `port` sends a packet with these addresses. */
  fromGuest(port: string, source: IpAddress, destination: IpAddress, bytes = 100): Fate {
    const entry = this.#entries.get(source);
    if (entry?.role !== "deliver" || entry.port !== port) return this.#ledger.drop(this.#behind(port) ?? NOBODY, "spoofed");
    this.#ledger.count(source, ({ upBytes, upPackets }) => ({ upPackets: upPackets + 1, upBytes: upBytes + bytes }));
    const peer = this.#entries.get(destination);
    if (peer?.role === "deliver") return this.#deliver(destination, bytes);
    return this.#wire.carry(this.#homeAgent(), { from: this.#careOf, source, destination, bytes, marker: 0 });
  }

  #check(entry: HostEntry): void {
    checkHostEntry(entry);
    if (entry.role === "deliver" && !this.#hasPort(entry.port)) throw new CareofError("no-link", `there is no interface "${entry.port}"`, { retryable: true });
  }

  #homeAgent(): Ipv4 {
    const [first] = this.#homeAgents;
    if (first === undefined) throw new CareofError("no-home-agent", "a host's tunnel needs the address of a home agent");
    return first;
  }

  #behind(port: string): IpAddress | undefined {
    return this.entries().find((entry) => entry.role === "deliver" && entry.port === port)?.home;
  }

  #deliver(home: IpAddress, bytes: number): Fate {
    this.#ledger.count(home, ({ downBytes, downPackets }) => ({ downPackets: downPackets + 1, downBytes: downBytes + bytes }));
    this.#ledger.passed(home);
    return { at: this.#careOf };
  }

  #receive(packet: Packet): Fate {
    const { bytes, destination, from, marker } = packet;
    const entry = this.#entries.get(destination);
    if (entry === undefined) return this.#ledger.drop(NOBODY, "no-binding");
    const fromHomeAgent = this.#homeAgents.includes(from);
    const stragglersFrom = entry.role === "deliver" ? entry.stragglersFrom : entry.hold?.stragglersFrom ?? [];
    if (marker !== 0 && stragglersFrom.includes(from)) return this.#ledger.markedBy(destination, marker);
    if (marker !== 0 && fromHomeAgent) {
      const fate = this.#ledger.marked(destination, marker);
      return entry.role === "forward" ? this.#wire.carry(entry.to, { ...packet, from: this.#careOf }) : fate;
    }
    if (entry.role === "forward") {
      if (!fromHomeAgent) return this.#ledger.drop(destination, "loop");
      this.#ledger.count(destination, ({ forwardedPackets }) => ({ forwardedPackets: forwardedPackets + 1 }));
      this.#ledger.stamp(destination, ({ firstForwarded }, now) => ({ firstForwarded: firstForwarded ?? now }));
      return this.#wire.carry(entry.to, { ...packet, from: this.#careOf });
    }
    if (!fromHomeAgent && !entry.stragglersFrom.includes(from)) return this.#ledger.drop(destination, "not-listed");
    return this.#deliver(destination, bytes);
  }
}
