import type { IpAddress } from "../model/address.js";
import { CareofError } from "../model/errors.js";
import type { HostId, Millis, VmId } from "../model/ids.js";
import { ipInIp, type Locator } from "../model/locator.js";
import type { Body, Capabilities, Kind } from "../proto/messages.js";
import type { Now } from "./bindings/binding.js";
import type { HostLife } from "./host-life.js";
import type { HostConfig, VmConfig } from "./config.js";

/** A registered host agent's connection, as the rest of the home agent sees it. */
export interface HostSession {
  readonly host: HostId;
  readonly capabilities: Capabilities;
  /** Care-of addresses that it registered, all of them listed for it. */
  readonly locators: readonly Locator[];
  readonly since: Millis;
  /** As it said when it registered. */
  readonly life: HostLife;
  readonly software: string;
  /** @throws CareofError as `Channel.ask` */
  ask<K extends Kind>(body: Body, expect: K, timeout: Millis): Promise<Body<K>>;
  tell(body: Body): void;
}

/** As long as a leaving VM's host goes on by itself (agent/external). */
const PASSES_ON_MS = 5000;

/** Who is listed, and who of them is here. */
export class Hosts {
  #hosts = new Map<HostId, HostConfig>();
  #vms = new Map<VmId, VmConfig>();
  readonly #sessions = new Map<HostId, HostSession>();
  /** When a host that is not here went, or this process began. */
  readonly #gone = new Map<HostId, Millis>();
  /** Monotonic, of the last time; and how often. */
  readonly #losses = new Map<HostId, { readonly lostAt: Millis; readonly losses: number }>();
  readonly #locators = new Map<HostId, Locator>();
  readonly #draining = new Set<HostId>();
  /** Hosts that have a guest of the VM whose monitor does not answer. */
  readonly #unreachable = new Map<VmId, HostId>();
  readonly #learned: (address: IpAddress) => number | null;
  readonly #began: Millis | null;

  /** `learned`: what routers have said of the path to a care-of address, in bytes. `began`: when this process did, monotonic. */
  constructor(learned: (address: IpAddress) => number | null = () => null, began: Millis | null = null) {
    this.#learned = learned;
    this.#began = began;
  }

  configure(hosts: readonly HostConfig[], vms: readonly VmConfig[]): void {
    this.#hosts = new Map(hosts.map((host) => [host.name, host]));
    this.#vms = new Map(vms.map((vm) => [vm.name, vm]));
    for (const [host, locator] of this.#locators) {
      if (this.#hosts.get(host)?.careOf.includes(locator.address) !== true) this.#locators.delete(host);
    }
  }

  get hosts(): Iterable<HostConfig> {
    return this.#hosts.values();
  }

  get vms(): Iterable<VmConfig> {
    return this.#vms.values();
  }

  host(name: HostId): HostConfig | null {
    return this.#hosts.get(name) ?? null;
  }

  vm(name: VmId): VmConfig | null {
    return this.#vms.get(name) ?? null;
  }

  *vmsOf(host: HostId): Iterable<VmConfig> {
    for (const vm of this.#vms.values()) if (vm.hosts.includes(host)) yield vm;
  }

  session(host: HostId): HostSession | null {
    return this.#sessions.get(host) ?? null;
  }

  connected(host: HostId | null): boolean {
    return host !== null && this.#sessions.has(host);
  }

  /**
   * Whether what its data plane was told still stands, as far as can be known: that passes packets and markers on without its agent's connection, and an agent that is restarted or
   * cut off for a moment (or, after this process began, not back yet) leaves it so. `now` is monotonic.
   */
  mayPassOn(host: HostId | null, now: Millis): boolean {
    if (host === null || !this.#hosts.has(host)) return false;
    const goneAt = this.losses(host).lostAt ?? this.#began;
    return this.connected(host) || (goneAt !== null && now - goneAt < PASSES_ON_MS);
  }

  /** The guest lives there, and the host cannot ask it: it cannot be moved now. */
  unreachable(vm: VmId, host: HostId | null): boolean {
    return host !== null && this.#unreachable.get(vm) === host;
  }

  /** As the host says. True: it was not known. */
  setUnreachable(vm: VmId, host: HostId, unreachable: boolean): boolean {
    if (this.unreachable(vm, host) === unreachable) return false;
    if (unreachable) this.#unreachable.set(vm, host);
    else this.#unreachable.delete(vm);
    return true;
  }

  /** It takes no VMs. */
  draining(host: HostId): boolean {
    return this.#draining.has(host);
  }

  setDraining(host: HostId, draining: boolean): void {
    if (draining) this.#draining.add(host);
    else this.#draining.delete(host);
  }

  /** A host that is not connected: `host-gone`. */
  require(host: HostId): HostSession {
    const session = this.#sessions.get(host);
    if (session === undefined) throw new CareofError("host-gone", `${host} is not connected`, { retryable: true });
    return session;
  }

  arrived(session: HostSession): void {
    this.#sessions.set(session.host, session);
    const first = session.locators[0];
    if (first !== undefined) this.#locators.set(session.host, first);
  }

  /** False when another connection of that host has taken its place. */
  left(session: HostSession, now: Now): boolean {
    if (this.#sessions.get(session.host) !== session) return false;
    this.#sessions.delete(session.host);
    this.#gone.set(session.host, now.wall);
    this.#losses.set(session.host, { lostAt: now.mono, losses: this.losses(session.host).losses + 1 });
    return true;
  }

  /** When its connection was last lost, and how often; monotonic, `null` for never. */
  losses(host: HostId): { readonly lostAt: Millis | null; readonly losses: number } {
    return this.#losses.get(host) ?? { lostAt: null, losses: 0 };
  }

  goneSince(host: HostId): Millis | null {
    return this.#gone.get(host) ?? null;
  }

  /** The locator that it registered, or the first that is configured; `null` for a host that is not listed any more. */
  locator(host: HostId): Locator | null {
    const known = this.#locators.get(host);
    if (known !== undefined) return known;
    const first = this.#hosts.get(host)?.careOf[0];
    return first === undefined ? null : ipInIp(first);
  }

  /** Largest outer packet, in bytes, that its path is known to carry: what it registered or what routers say; 0 is "not known". */
  pathMtu(locator: Locator): number {
    const learned = this.#learned(locator.address);
    if (learned === null) return locator.pathMtu;
    return locator.pathMtu === 0 ? learned : Math.min(learned, locator.pathMtu);
  }

  /** Care-of addresses of the listed hosts and what is configured or registered for each; 0 where nothing is. */
  careOfs(): ReadonlyMap<IpAddress, number> {
    return new Map([...this.#hosts.keys()].map((name) => this.locator(name)).filter((locator) => locator !== null).map(({ address, pathMtu }) => [address, pathMtu]));
  }

  careOf(host: HostId | null): IpAddress | null {
    return host === null ? null : (this.locator(host)?.address ?? null);
  }
}
