import { addressFromKey, addressKey, putAddressKey, type IpAddress, type Ipv4 } from "../model/address.js";
import { Attachments } from "./bpf/attachments.js";
import { keyText, readAll, writeAll } from "./bpf/batches.js";
import { cutsLong } from "./bpf/cuts-long.js";
import { decapFlags } from "./bpf/decap.js";
import { Ledger } from "./bpf/ledger.js";
import { PinnedMaps } from "./bpf/loader.js";
import type { BpfMap } from "./bpf/maps.js";
import { decodeHomeEntry, encodeConfig, encodeHomeEntry, putHomeEntry } from "./bpf/records.js";
import { removeIpipDevice } from "./ipip-device.js";
import { EndClaim, requireOneEnd } from "./end-claim.js";
import { checkHomeEntry, checkSet, requireV4 } from "./entry-checks.js";
import { PREFERENCES } from "./left-end.js";
import { MarkerSocket } from "./marker.js";
import { Netlink } from "./netlink/client.js";
import type { Link } from "./netlink/links.js";
import { deleteRoute, HOME_AGENT_PROTOCOL, homeRouteRequests, listRoutes, MAIN_TABLE, routeRequest, type Route } from "./netlink/routes.js";
import { settled } from "./settled.js";
import { routeFor } from "./sysctl.js";
import { deleteTunnelHop, putTunnelHop, TUNNEL_HOP } from "./tunnel-hop.js";
import type { Counters, HomeEntry, HomeTunnel, HomeTunnelOptions, Stamps } from "./tunnel.js";
import { HOME_MAPS, type HomeWay, type Workbench } from "./tunnel-way.js";
import { requireEthernet } from "./uplink.js";

/** A connected home network (proxy ARP) comes before "unreachable". */
const UNREACHABLE_METRIC = 60_000;

/** By tc-BPF on the uplink. The routes lead over a next hop that does not exist (tunnel-hop.ts), and are the same wherever the VM is. */
export const BPF_HOME_WAY: HomeWay = {
  driver: "bpf",
  uplink: requireEthernet,
  programs: ["home_ingress", "home_egress"],
  maps: HOME_MAPS,
  prepare: (_, uplink) => uplink.index,
  decapFlags,
  attach: ({ attachments, netlink }, uplink) => {
    putTunnelHop(netlink, uplink.index);
    attachments.ensure(uplink.index, "ingress", "home_ingress");
    attachments.ensure(uplink.index, "egress", "home_egress");
  },
  retireOther: ({ netlink }) => { removeIpipDevice(netlink, "home"); },
  clear: ({ attachments, netlink }, uplink) => {
    attachments.remove(uplink.index, "ingress");
    attachments.remove(uplink.index, "egress");
    deleteTunnelHop(netlink, uplink.index);
  },
  routeWord: ({ mtu }) => String(mtu),
  wordOf: ({ mtu, via }) => (via === TUNNEL_HOP.address ? String(mtu) : null),
  route: ({ home, mtu }, device) => overTheHop(home, device, mtu),
  routeRequests: (entries, device, address) => homeRouteRequests(overTheHop(address, device, 0), entries),
};

function overTheHop(home: Ipv4, device: number, mtu: number): Route {
  return { destination: { address: home, length: 32 }, table: MAIN_TABLE, protocol: HOME_AGENT_PROTOCOL, device, via: TUNNEL_HOP.address, mtu, metric: 0 };
}

/**
 * The home agent's end by tc-BPF; tunnel-ipip-home.ts has the other way. Per home address: one entry of the map `homes` and one /32 route with the MTU of the path.
 * New entries: map before route; dropped ones: route before map, so that no inner packet ever leaves the uplink as it is. A re-point by tc-BPF writes the map alone.
 */
export class BpfHomeTunnel implements HomeTunnel {
  readonly driver: string;
  readonly #way: HomeWay;
  readonly #options: HomeTunnelOptions;
  readonly #netlink: Netlink;
  readonly #maps: PinnedMaps;
  readonly #homes: BpfMap;
  readonly #ledger: Ledger;
  readonly #attachments: Attachments;
  readonly #markers: MarkerSocket;
  readonly #claim: EndClaim;
  readonly #decapFlags: bigint;
  /** `routeWord` of every home address that has a route, as far as we made it. */
  #routed = new Map<string, string>();
  #uplink: Link;
  /** Interface by which tunnelled packets leave. */
  #device: number;
  #attached = false;
  #closed = false;

  /**
   * Opens what an earlier process left in `runDir`; traffic is touched only from the first `set` or `put` on.
   * @throws CareofError `both-ends`, `no-link`, `unsupported` (the uplink is not Ethernet), `kernel-refused`
   */
  constructor(options: HomeTunnelOptions, way: HomeWay = BPF_HOME_WAY) {
    requireOneEnd("home");
    this.driver = way.driver;
    this.#way = way;
    this.#options = options;
    this.#netlink = new Netlink();
    this.#uplink = way.uplink(this.#netlink, options.uplink);
    this.#device = way.prepare(this.#netlink, this.#uplink);
    this.#maps = new PinnedMaps(options.runDir, way.maps, options.maxEntries);
    this.#homes = this.#maps.get("homes");
    this.#ledger = new Ledger(this.#maps.get("counters"), this.#maps.get("stamps"));
    this.#attachments = new Attachments(this.#netlink, this.#maps, PREFERENCES.home);
    for (const program of way.programs) this.#attachments.load(program);
    this.#decapFlags = way.decapFlags(this.#maps);
    this.#markers = new MarkerSocket();
    this.#claim = new EndClaim("home");
  }

  set(entries: readonly HomeEntry[]): Promise<void> {
    return settled(() => { this.#set(entries); });
  }

  put(entry: HomeEntry): void {
    checkHomeEntry(entry);
    if (!this.#attached) this.#attach();
    const key = addressKey(entry.home);
    this.#homes.update(key, encodeHomeEntry(entry));
    const word = this.#way.routeWord(entry);
    const before = this.#routed.get(entry.home);
    if (before === word) return;
    if (before === undefined) this.#ledger.open(key);
    this.#netlink.request(routeRequest(this.#route(entry)));
    this.#routed.set(entry.home, word);
  }

  drop(home: IpAddress): void {
    requireV4(home);
    deleteRoute(this.#netlink, this.#route({ home, active: null, mtu: 0 }));
    this.#routed.delete(home);
    this.#homes.delete(addressKey(home));
    this.#ledger.forget(addressKey(home));
  }

  entries(): readonly HomeEntry[] {
    return this.#homes.keys().flatMap((key) => {
      const value = this.#homes.lookup(key);
      return value === null ? [] : [decodeHomeEntry(addressFromKey(key), value)];
    });
  }

  sendMarker(home: IpAddress, careOf: IpAddress, token: number): void {
    const source = this.#options.address;
    this.#markers.send({ outer: { source, destination: requireV4(careOf) }, inner: { source, destination: requireV4(home) }, token });
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
    return settled(() => {
      if (this.#closed) return;
      this.#closed = true;
      if (!keep) this.#clear();
      this.#attachments.close();
      this.#maps.close({ keep });
      this.#markers.close();
      this.#claim.close();
      this.#netlink.close();
    });
  }

  /** No `await` inside: a `put` of a handover can never fall between and be overwritten by what is older. */
  #set(entries: readonly HomeEntry[]): void {
    entries.forEach(checkHomeEntry);
    checkSet(entries, this.#options.maxEntries);
    this.#uplink = this.#way.uplink(this.#netlink, this.#options.uplink);
    this.#device = this.#way.prepare(this.#netlink, this.#uplink);

    const stale = readAll(this.#homes);
    const value = Buffer.alloc(this.#homes.valueBytes);
    const changed = stale.size === 0 ? entries : entries.filter((entry) => {
      const key = keyText(entry.home);
      const found = stale.get(key);
      stale.delete(key);
      return found?.equals(putHomeEntry(entry, value.fill(0), 0)) !== true;
    });
    this.#ledger.openAll(entries.map(({ home }) => home));
    writeAll(this.#homes, changed, (entry, keys, keyAt, values, valueAt) => {
      putAddressKey(entry.home, keys, keyAt);
      putHomeEntry(entry, values, valueAt);
    });
    this.#attach();
    this.#setRoutes(entries);
    for (const text of stale.keys()) {
      const key = Buffer.from(text, "latin1");
      this.#homes.delete(key);
      this.#ledger.forget(key);
    }
    this.#way.retireOther(this.#bench(), this.#uplink);
  }

  #setRoutes(entries: readonly HomeEntry[]): void {
    const unreachable = new Map(this.#options.homePrefixes.map((prefix): [string, Route] => {
      const route: Route = { destination: prefix, table: MAIN_TABLE, protocol: HOME_AGENT_PROTOCOL, device: null, via: null, mtu: 0, metric: UNREACHABLE_METRIC };
      return [routeKey(route), route];
    }));
    const wanted = new Map<string, string>(entries.map((entry) => [entry.home, this.#way.routeWord(entry)]));
    const missing = new Map<string, HomeEntry>(entries.map((entry) => [entry.home, entry]));
    const obsolete: Route[] = [];
    for (const found of listRoutes(this.#netlink, HOME_AGENT_PROTOCOL)) {
      const word = isHomeRoute(found) ? wanted.get(found.destination.address) : undefined;
      if (word !== undefined) {
        if (found.device === this.#device && this.#way.wordOf(found, this.#options.address) === word) missing.delete(found.destination.address);
        continue;
      }
      const prefix = unreachable.get(routeKey(found));
      if (prefix === undefined) obsolete.push(found);
      else if (sameRoute(prefix, found)) unreachable.delete(routeKey(found));
    }
    this.#netlink.requestAll([...[...unreachable.values()].map(routeRequest), ...this.#way.routeRequests([...missing.values()], this.#device, this.#options.address)]);
    for (const route of obsolete) deleteRoute(this.#netlink, route);
    this.#routed = wanted;
  }

  #attach(): void {
    const { address, uplink } = this.#options;
    routeFor([uplink]);
    this.#maps.get("config").update(new Uint8Array(4), encodeConfig({
      self: address, homeAgents: [], uplink: this.#device, innerMtu: 0, gateway: address, decapFlags: this.#decapFlags, hopMac: TUNNEL_HOP.mac, cutsLong: cutsLong(),
    }));
    this.#way.attach(this.#bench(), this.#uplink, this.#device);
    this.#attached = true;
  }

  #clear(): void {
    for (const route of listRoutes(this.#netlink, HOME_AGENT_PROTOCOL)) deleteRoute(this.#netlink, route);
    this.#way.clear(this.#bench(), this.#uplink);
  }

  #route(entry: Pick<HomeEntry, "home" | "active" | "mtu">): Route {
    return this.#way.route({ ...entry, home: requireV4(entry.home) }, this.#device, this.#options.address);
  }

  #bench(): Workbench {
    return { netlink: this.#netlink, maps: this.#maps, attachments: this.#attachments };
  }
}

/** By destination, table and metric the one that an entry has. */
function isHomeRoute({ destination, metric, table }: Route): boolean {
  return destination.length === 32 && table === MAIN_TABLE && metric === 0;
}

function routeKey({ destination, metric, table }: Route): string {
  return `${destination.address}/${String(destination.length)} ${String(table)} ${String(metric)}`;
}

function sameRoute(a: Route, b: Route): boolean {
  return (a.device === b.device || (a.device === null && a.via === null && b.via === null)) && a.via === b.via && a.mtu === b.mtu &&
    a.encap?.destination === b.encap?.destination && a.encap?.source === b.encap?.source;
}
