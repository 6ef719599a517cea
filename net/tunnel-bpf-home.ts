import { addressFromKey, addressKey, putAddressKey, type IpAddress, type Ipv4 } from "../model/address.js";
import { Attachments } from "./bpf/attachments.js";
import { keyText, readAll, writeAll } from "./bpf/batches.js";
import { decapFlags } from "./bpf/decap.js";
import { Ledger } from "./bpf/ledger.js";
import { PinnedMaps } from "./bpf/loader.js";
import type { BpfMap } from "./bpf/maps.js";
import { decodeHomeEntry, encodeConfig, encodeHomeEntry, putHomeEntry } from "./bpf/records.js";
import { checkHomeEntry, checkSet, requireV4 } from "./entry-checks.js";
import { MarkerSocket } from "./marker.js";
import { Netlink } from "./netlink/client.js";
import type { Link } from "./netlink/links.js";
import { deleteRoute, HOME_AGENT_PROTOCOL, homeRouteRequests, listRoutes, MAIN_TABLE, routeRequest, type Route } from "./netlink/routes.js";
import { settled } from "./settled.js";
import { routeFor } from "./sysctl.js";
import { deleteTunnelHop, putTunnelHop, TUNNEL_HOP } from "./tunnel-hop.js";
import type { Counters, HomeEntry, HomeTunnel, HomeTunnelOptions, Stamps } from "./tunnel.js";
import { requireEthernet } from "./uplink.js";

/** Our place among the uplink's filters; a host's end on the same machine has another. */
const PREFERENCE = 202;
/** A connected home network (proxy ARP) comes before "unreachable". */
const UNREACHABLE_METRIC = 60_000;

/**
 * The home agent's end by tc-BPF. Per home address: one entry of the map `homes`, which is all that a re-point writes, and one /32 route with the MTU of the path
 * over a next hop that does not exist (tunnel-hop.ts). New entries: map before route; dropped ones: route before map, so that no inner packet
 * ever leaves the uplink as it is.
 */
export class BpfHomeTunnel implements HomeTunnel {
  readonly driver = "bpf";
  readonly #options: HomeTunnelOptions;
  readonly #netlink: Netlink;
  readonly #maps: PinnedMaps;
  readonly #homes: BpfMap;
  readonly #ledger: Ledger;
  readonly #attachments: Attachments;
  readonly #markers: MarkerSocket;
  readonly #decapFlags: bigint;
  /** MTU of the route of every home address that has one, as far as we made it. */
  #routed = new Map<string, number>();
  #uplink: Link;
  #attached = false;
  #closed = false;

  /**
   * Opens what an earlier process left in `runDir`; traffic is touched only from the first `set` or `put` on.
   * @throws CareofError `no-link`, `unsupported` (the uplink is not Ethernet), `kernel-refused`
   */
  constructor(options: HomeTunnelOptions) {
    this.#options = options;
    this.#netlink = new Netlink();
    this.#uplink = requireEthernet(this.#netlink, options.uplink);
    this.#maps = new PinnedMaps(options.runDir, ["config", "counters", "stamps", "homes"], options.maxEntries);
    this.#homes = this.#maps.get("homes");
    this.#ledger = new Ledger(this.#maps.get("counters"), this.#maps.get("stamps"));
    this.#attachments = new Attachments(this.#netlink, this.#maps, PREFERENCE);
    this.#decapFlags = decapFlags(this.#maps);
    this.#markers = new MarkerSocket();
  }

  set(entries: readonly HomeEntry[]): Promise<void> {
    return settled(() => { this.#set(entries); });
  }

  put(entry: HomeEntry): void {
    checkHomeEntry(entry);
    if (!this.#attached) this.#attach();
    const key = addressKey(entry.home);
    this.#homes.update(key, encodeHomeEntry(entry));
    if (this.#routed.get(entry.home) === entry.mtu) return;
    this.#ledger.open(key);
    this.#netlink.request(routeRequest(this.#route(requireV4(entry.home), entry.mtu)));
    this.#routed.set(entry.home, entry.mtu);
  }

  drop(home: IpAddress): void {
    deleteRoute(this.#netlink, this.#route(requireV4(home), 0));
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
      this.#netlink.close();
    });
  }

  /** No `await` inside: a `put` of a handover can never fall between and be overwritten by what is older. */
  #set(entries: readonly HomeEntry[]): void {
    entries.forEach(checkHomeEntry);
    checkSet(entries, this.#options.maxEntries);
    this.#uplink = requireEthernet(this.#netlink, this.#options.uplink);

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
  }

  #setRoutes(entries: readonly HomeEntry[]): void {
    const unreachable = new Map(this.#options.homePrefixes.map((prefix): [string, Route] => {
      const route: Route = { destination: prefix, table: MAIN_TABLE, protocol: HOME_AGENT_PROTOCOL, device: null, via: null, mtu: 0, metric: UNREACHABLE_METRIC };
      return [routeKey(route), route];
    }));
    const wanted = new Map<string, number>(entries.map(({ home, mtu }) => [home, mtu]));
    const right = new Set<string>();
    const obsolete: Route[] = [];
    for (const found of listRoutes(this.#netlink, HOME_AGENT_PROTOCOL)) {
      const mtu = isHomeRoute(found) ? wanted.get(found.destination.address) : undefined;
      if (mtu !== undefined) {
        if (found.device === this.#uplink.index && found.via === TUNNEL_HOP.address && found.mtu === mtu) right.add(found.destination.address);
        continue;
      }
      const prefix = unreachable.get(routeKey(found));
      if (prefix === undefined) obsolete.push(found);
      else if (sameRoute(prefix, found)) unreachable.delete(routeKey(found));
    }
    const missing = right.size === 0 ? entries : entries.filter(({ home }) => !right.has(home));
    this.#netlink.requestAll([...[...unreachable.values()].map(routeRequest), ...homeRouteRequests(this.#route(TUNNEL_HOP.address, 0), missing)]);
    for (const route of obsolete) deleteRoute(this.#netlink, route);
    this.#routed = wanted;
  }

  #attach(): void {
    const { address, uplink } = this.#options;
    routeFor([uplink]);
    this.#maps.get("config").update(new Uint8Array(4), encodeConfig({
      self: address, homeAgents: [], uplink: this.#uplink.index, innerMtu: 0, gateway: address, decapFlags: this.#decapFlags, hopMac: TUNNEL_HOP.mac,
    }));
    putTunnelHop(this.#netlink, this.#uplink.index);
    this.#attachments.ensure(this.#uplink.index, "ingress", "home_ingress");
    this.#attachments.ensure(this.#uplink.index, "egress", "home_egress");
    this.#attached = true;
  }

  #clear(): void {
    for (const route of listRoutes(this.#netlink, HOME_AGENT_PROTOCOL)) deleteRoute(this.#netlink, route);
    this.#attachments.remove(this.#uplink.index, "ingress");
    this.#attachments.remove(this.#uplink.index, "egress");
    deleteTunnelHop(this.#netlink, this.#uplink.index);
  }

  #route(home: Ipv4, mtu: number): Route {
    return {
      destination: { address: home, length: 32 }, table: MAIN_TABLE, protocol: HOME_AGENT_PROTOCOL, device: this.#uplink.index, via: TUNNEL_HOP.address, mtu, metric: 0,
    };
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
  return (a.device === b.device || (a.device === null && a.via === null && b.via === null)) && a.via === b.via && a.mtu === b.mtu;
}
