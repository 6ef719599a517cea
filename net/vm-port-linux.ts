import { ipv4, isV4, mac, type Ipv4 } from "../model/address.js";
import { CareofError } from "../model/errors.js";
import { Attempts } from "./attempts.js";
import { checkPorts } from "./entry-checks.js";
import { deleteAddress, listAddresses, putAddress } from "./netlink/addresses.js";
import { Netlink } from "./netlink/client.js";
import { changeLink, deleteLink, deleteLinkInBackground, findLink, listLinks, requireLink, type Link } from "./netlink/links.js";
import { deleteNeighbour, listNeighbours, putNeighbour } from "./netlink/neighbours.js";
import { deleteRoute, HOST_PROTOCOL, listRoutes, MAIN_TABLE, putRoute, type Route } from "./netlink/routes.js";
import { deleteRule, listRules, putRule } from "./netlink/rules.js";
import { PacketSocket } from "./packet-socket.js";
import { routeFor, writeSysctl, writeSysctlIfThere } from "./sysctl.js";
import { requireInterface } from "./syscall.js";
import { createTap, requireInterfaceName } from "./tap.js";
import { tapQueue, type PortQueue } from "./tap-queue.js";
import { OUTER_HEADER, putTunnelHop, TUNNEL_HOP } from "./tunnel-hop.js";
import type { VmPort, VmPorts, VmPortsOptions } from "./vm-port.js";

/** Rules from here on come after the main table's. */
const MAIN_RULE_PRIORITY = 32766;
const ANYWHERE = { address: ipv4("0.0.0.0"), length: 0 } as const;

/**
 * VM ports by netlink, ioctl and /proc/sys. What is ours is told apart after a crash by: the TAPs' alias `careof:TABLE`, the routes' protocol number together with
 * the table, the rules' table.
 *
 * The policy table holds the VMs' /32 routes beside its default: without them the guest's own address would seem to lie behind the tunnel, and proxy ARP would
 * answer its address probes.
 */
export class LinuxVmPorts implements VmPorts {
  readonly #options: VmPortsOptions;
  readonly #netlink: Netlink;
  /** For what takes the kernel its time. */
  readonly #slow: Netlink;
  readonly #frames: PacketSocket;
  readonly #ports = new Map<string, { readonly port: VmPort; readonly index: number }>();
  #pathMtu: number;
  #defaultRoute = false;
  #closed = false;
  /** A port that is going at this moment. Never rejects. */
  #going: Promise<void> | null = null;

  /** Changes nothing yet. @throws CareofError `malformed-table` unless it comes before the main table's rule, `kernel-refused` */
  constructor(options: VmPortsOptions) {
    if (!Number.isInteger(options.table) || options.table < 1 || options.table >= MAIN_RULE_PRIORITY || [MAIN_TABLE - 1, MAIN_TABLE, MAIN_TABLE + 1].includes(options.table)) {
      throw new CareofError("malformed-table", `${String(options.table)} is not a policy table: 1 to ${String(MAIN_RULE_PRIORITY - 1)}, not 253 to 255`);
    }
    this.#options = options;
    this.#pathMtu = options.pathMtu;
    this.#netlink = new Netlink();
    this.#slow = new Netlink();
    this.#frames = new PacketSocket();
  }

  set(ports: readonly VmPort[]): Promise<void> {
    return this.#now(() => {
      this.#check(ports);
      this.#prepareHost();
      const wanted = new Set(ports.map(({ name }) => name));
      for (const name of this.#leftOver()) if (!wanted.has(name)) this.#dropNow(name);
      for (const port of ports) this.#put(port);
    });
  }

  renew(ports: readonly VmPort[]): Promise<void> {
    return this.#now(() => {
      checkPorts(ports);
      this.#prepareHost();
      const attempts = new Attempts();
      for (const port of ports) {
        attempts.make(() => {
          this.#requireUsable(port);
          this.#put(port);
        });
      }
      attempts.end();
    });
  }

  put(port: VmPort): Promise<void> {
    return this.#now(() => {
      this.#check([port]);
      if (!this.#defaultRoute) this.#prepareHost();
      this.#put(port);
    });
  }

  giveAway(name: string): Promise<void> {
    return this.#now(() => {
      const link = findLink(this.#netlink, requireInterfaceName(name));
      if (link?.alias === this.#alias()) changeLink(this.#netlink, link, { alias: "" });
      this.#dropNow(name);
    });
  }

  drop(name: string): Promise<void> {
    return this.#inTurn(() => {
      const link = this.#forget(requireInterfaceName(name));
      return link === null ? undefined : deleteLinkInBackground(this.#slow, link);
    });
  }

  sendFrame(name: string, frame: Uint8Array): void {
    this.#frames.send(requireInterface(name), frame);
  }

  overflowed(name: string): number {
    return findLink(this.#netlink, requireInterfaceName(name))?.dropped ?? 0;
  }

  queue(name: string, reader: number): PortQueue {
    return tapQueue(reader, name);
  }

  usePathMtu(bytes: number): void {
    this.#pathMtu = bytes;
    if (this.#defaultRoute) this.#prepareHost();
  }

  list(): readonly VmPort[] {
    return [...this.#ports.values()].map(({ port }) => port).sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  close({ keep }: { readonly keep: boolean }): Promise<void> {
    return this.#now(() => {
      if (this.#closed) return;
      this.#closed = true;
      if (!keep) {
        for (const name of this.#leftOver()) this.#dropNow(name);
        for (const route of this.#ownRoutes()) deleteRoute(this.#netlink, route);
      }
      this.#frames.close();
      this.#slow.close();
      this.#netlink.close();
    });
  }

  /**
   * At once, in the caller's turn of the event loop, unless a port is going: the kernel would have the whole process wait for that. What `work` returns is one that begins to go; what it throws becomes the promise's.
   */
  #inTurn(work: () => Promise<void> | undefined): Promise<void> {
    if (this.#going !== null) return this.#going.then(() => this.#inTurn(work));
    return new Promise((resolve, reject) => {
      const going = work();
      if (going === undefined) {
        resolve();
        return;
      }
      // Whoever asked for it hears of it before the next one's turn.
      going.then(resolve, reject);
      const over = (): void => { this.#going = null; };
      this.#going = going.then(over, over);
    });
  }

  #now(work: () => void): Promise<void> {
    return this.#inTurn(() => {
      work();
      return undefined;
    });
  }

  /** Everything that can be wrong with the wish is found before anything changes. */
  #check(ports: readonly VmPort[]): void {
    checkPorts(ports);
    for (const port of ports) this.#requireUsable(port);
  }

  #requireUsable({ kind, name }: VmPort): void {
    const link = findLink(this.#netlink, name);
    if (kind === "external" && link === null) throw new CareofError("no-link", `there is no interface "${name}"`, { retryable: true });
    if (kind === "tap" && link !== null && link.alias !== this.#alias()) {
      throw new CareofError("not-ours", `interface ${name} exists and was not made by this host agent`);
    }
  }

  #alias(): string {
    return `careof:${String(this.#options.table)}`;
  }

  /** Forwarding, and the table's default into the tunnel, by which the stack's slow path goes. */
  #prepareHost(): void {
    const { table, uplink } = this.#options;
    const pathMtu = this.#pathMtu;
    const link = requireLink(this.#netlink, uplink);
    routeFor([uplink]);
    putTunnelHop(this.#netlink, link.index);
    const mtu = (pathMtu === 0 ? link.mtu : pathMtu) - OUTER_HEADER;
    putRoute(this.#netlink, { destination: ANYWHERE, table, protocol: HOST_PROTOCOL, device: link.index, via: TUNNEL_HOP.address, mtu, metric: 0 });
    this.#defaultRoute = true;
  }

  #put(port: VmPort): void {
    const known = this.#ports.get(port.name);
    const present = findLink(this.#netlink, port.name);
    if (known !== undefined && known.index === present?.index && samePort(known.port, port)) return;

    if (present === null) createTap(port.name);
    const link = present ?? requireLink(this.#netlink, port.name);
    this.#ports.set(port.name, { port, index: link.index });
    const ours = port.kind === "tap" ? { mtu: port.mtu, queueLength: port.queueLength, alias: this.#alias() } : {};
    if (port.kind === "tap") changeLink(this.#netlink, link, ours);
    this.#setSysctls(port.name);
    changeLink(this.#netlink, requireLink(this.#netlink, port.name), { mac: this.#options.gateway.mac, up: true });
    this.#setAddressing(link, port);
    putRule(this.#netlink, { device: port.name, table: this.#options.table, priority: this.#options.table, protocol: HOST_PROTOCOL });
  }

  #setSysctls(name: string): void {
    // Before the link comes up: otherwise it gets an IPv6 address of its own and multicasts.
    writeSysctlIfThere(["net", "ipv6", "conf", name, "disable_ipv6"], "1");
    routeFor([name]);
    writeSysctl(["net", "ipv4", "conf", name, "proxy_arp"], "1");
    writeSysctl(["net", "ipv4", "conf", name, "rp_filter"], "1");
    writeSysctl(["net", "ipv4", "neigh", name, "proxy_delay"], "0");
  }

  #setAddressing(link: Link, port: VmPort): void {
    const homes = port.homeAddresses.filter(isV4);
    const guest = mac(port.mac);
    putAddress(this.#netlink, link.index, { address: this.#options.gateway.address, length: 32 });

    for (const address of homes) putNeighbour(this.#netlink, { device: link.index, address, mac: guest });
    for (const { address } of listNeighbours(this.#netlink, link.index)) {
      if (!homes.includes(address)) deleteNeighbour(this.#netlink, { device: link.index, address });
    }

    const wanted = homes.flatMap((address) => this.#routesTo(address, link.index));
    for (const route of wanted) putRoute(this.#netlink, route);
    for (const route of listRoutes(this.#netlink, HOST_PROTOCOL)) {
      if (route.device === link.index && !homes.includes(route.destination.address)) deleteRoute(this.#netlink, route);
    }
  }

  #routesTo(address: Ipv4, device: number): Route[] {
    return [MAIN_TABLE, this.#options.table].map((table) =>
      ({ destination: { address, length: 32 }, table, protocol: HOST_PROTOCOL, device, via: null, mtu: 0, metric: 0 }));
  }

  #dropNow(name: string): void {
    const link = this.#forget(name);
    if (link !== null) deleteLink(this.#netlink, link);
  }

  /** All that is ours but the interface; returns that, if it is. */
  #forget(name: string): Link | null {
    const { gateway, table } = this.#options;
    this.#ports.delete(name);
    for (const rule of listRules(this.#netlink, table)) if (rule.device === name) deleteRule(this.#netlink, rule);
    const link = findLink(this.#netlink, name);
    if (link === null || link.alias === this.#alias()) return link;
    for (const route of listRoutes(this.#netlink, HOST_PROTOCOL)) {
      if (route.device !== link.index) continue;
      deleteNeighbour(this.#netlink, { device: link.index, address: route.destination.address });
      deleteRoute(this.#netlink, route);
    }
    if (listAddresses(this.#netlink, link.index).some(({ address, length }) => address === gateway.address && length === 32)) {
      deleteAddress(this.#netlink, link.index, { address: gateway.address, length: 32 });
    }
    return null;
  }

  /** Ports that this instance made or addressed, now or before a crash. */
  #leftOver(): ReadonlySet<string> {
    const taps = listLinks(this.#netlink).filter(({ alias }) => alias === this.#alias()).map(({ name }) => name);
    const ruled = listRules(this.#netlink, this.#options.table).map(({ device }) => device);
    return new Set([...taps, ...ruled, ...this.#ports.keys()]);
  }

  #ownRoutes(): Route[] {
    return listRoutes(this.#netlink, HOST_PROTOCOL).filter(({ table }) => table === this.#options.table);
  }
}

function samePort(a: VmPort, b: VmPort): boolean {
  return a.kind === b.kind && a.mac === b.mac && a.queueLength === b.queueLength && a.mtu === b.mtu && a.homeAddresses.join() === b.homeAddresses.join();
}
