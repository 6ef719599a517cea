import { addressFromKey, addressKey, ipv4, mac, type IpAddress, type Ipv4 } from "../model/address.js";
import { CareofError } from "../model/errors.js";
import { Attempts } from "./attempts.js";
import { Attachments } from "./bpf/attachments.js";
import { cutsLong } from "./bpf/cuts-long.js";
import { decapFlags } from "./bpf/decap.js";
import { Holds } from "./bpf/holds.js";
import { Ledger } from "./bpf/ledger.js";
import { PinnedMaps } from "./bpf/loader.js";
import type { BpfMap } from "./bpf/maps.js";
import { decodeHostRecord, encodeConfig, encodeHostRecord, MAX_HOME_AGENTS, type HostRecord } from "./bpf/records.js";
import { removeIpipDevice } from "./ipip-device.js";
import { EndClaim, requireOneEnd } from "./end-claim.js";
import { checkHostEntry, checkHostSet, requireV4 } from "./entry-checks.js";
import { PREFERENCES, refuseLeftHome } from "./left-end.js";
import { MarkerSocket } from "./marker.js";
import { Netlink } from "./netlink/client.js";
import { listLinks, requireLink, type Link } from "./netlink/links.js";
import { settled } from "./settled.js";
import { routeFor } from "./sysctl.js";
import { deleteTunnelHop, OUTER_HEADER, putTunnelHop, TUNNEL_HOP } from "./tunnel-hop.js";
import type { Counters, HostEntry, HostTunnel, HostTunnelOptions, SentOn, Stamps } from "./tunnel.js";
import { HOST_MAPS, type HostWay, type Workbench } from "./tunnel-way.js";
import { requireEthernet } from "./uplink.js";

/** What a guest's gateway is unless the options say otherwise. */
const DEFAULT_GATEWAY = ipv4("169.254.1.1");

/** By tc-BPF on the uplink. */
export const BPF_HOST_WAY: HostWay = {
  driver: "bpf",
  portProgram: "port_ingress",
  uplink: requireEthernet,
  programs: ["host_ingress", "host_egress", "port_ingress"],
  maps: HOST_MAPS,
  prepare: (_, uplink) => uplink.index,
  decapFlags,
  attach: ({ attachments, netlink }, uplink) => {
    putTunnelHop(netlink, uplink.index);
    attachments.ensure(uplink.index, "ingress", "host_ingress");
    attachments.ensure(uplink.index, "egress", "host_egress");
  },
  retireOther: ({ netlink }) => { removeIpipDevice(netlink, "host"); },
  clear: ({ attachments, netlink }, uplink) => {
    attachments.remove(uplink.index, "ingress");
    attachments.remove(uplink.index, "egress");
    deleteTunnelHop(netlink, uplink.index);
  },
};

/**
 * A host's end by tc-BPF; tunnel-ipip-host.ts has the other way. One entry of the map `guests` per home address, programs on the uplink and on every VM's port. What a port's program leaves to the stack
 * (too big, TTL used up) comes back to the uplink's egress by the policy route that VmPorts makes.
 * Kernels up to 6.18 at least leave the marks of the tunnel on a large segment (SKB_GSO_IPXIP4) when a program takes the outer header off, and a TAP cannot take those:
 * the kernel cuts it into packets of the MTU just before the TAP. So its queue counts packets of the wire, and downward bulk TCP costs more than upward.
 * A port keeps its program while its VM's entry says `forward`: nothing that the guest might still send gets anywhere.
 */
export class BpfHostTunnel implements HostTunnel {
  readonly driver: string;
  readonly #way: HostWay;
  readonly #options: HostTunnelOptions;
  readonly #homeAgent: Ipv4;
  readonly #netlink: Netlink;
  readonly #maps: PinnedMaps;
  readonly #guests: BpfMap;
  /** ifindex → a home address behind that port. */
  readonly #ports: BpfMap;
  readonly #ledger: Ledger;
  readonly #holds: Holds;
  readonly #attachments: Attachments;
  readonly #markers: MarkerSocket;
  readonly #claim: EndClaim;
  readonly #decapFlags: bigint;
  #pathMtu: number;
  #uplink: Link;
  /** Interface by which tunnelled packets leave. */
  #device: number;
  #attached = false;
  #closed = false;

  /**
   * Opens what an earlier process left in `runDir`; traffic is touched only from the first `set` or `put` on.
   * @throws CareofError `both-ends`, `no-link`, `unsupported`, `not-ours` (what a home agent has left), `too-many` (home agents), `no-home-agent`, `kernel-refused`
   */
  constructor(options: HostTunnelOptions, way: HostWay = BPF_HOST_WAY) {
    const [first] = options.homeAgents;
    if (first === undefined) throw new CareofError("no-home-agent", "a host's tunnel needs the address of a home agent");
    if (options.homeAgents.length > MAX_HOME_AGENTS) throw new CareofError("too-many", `a host listens to at most ${String(MAX_HOME_AGENTS)} home agents`);
    requireOneEnd("host");
    this.driver = way.driver;
    this.#way = way;
    this.#options = options;
    this.#homeAgent = first;
    this.#pathMtu = options.pathMtu;
    this.#netlink = new Netlink();
    this.#uplink = way.uplink(this.#netlink, options.uplink);
    refuseLeftHome(this.#netlink, options.uplink);
    this.#device = way.prepare(this.#netlink, this.#uplink);
    this.#maps = new PinnedMaps(options.runDir, way.maps, options.maxEntries);
    this.#guests = this.#maps.get("guests");
    this.#ports = this.#maps.get("ports");
    this.#ledger = new Ledger(this.#maps.get("counters"), this.#maps.get("stamps"));
    this.#holds = new Holds(this.#guests, this.#maps.get("waiting"));
    this.#attachments = new Attachments(this.#netlink, this.#maps, PREFERENCES.host);
    for (const program of way.programs) this.#attachments.load(program);
    this.#decapFlags = way.decapFlags(this.#maps);
    this.#markers = new MarkerSocket();
    this.#claim = new EndClaim("host");
  }

  set(entries: readonly HostEntry[]): Promise<void> {
    return settled(() => { this.#set(entries); });
  }

  renew(entries: readonly HostEntry[]): Promise<void> {
    return settled(() => {
      checkHostSet(entries, this.#options.maxEntries);
      this.#lookAtUplink();
      this.#attach();
      const attempts = new Attempts();
      for (const entry of entries) attempts.make(() => { this.put(entry); });
      attempts.end();
    });
  }

  put(entry: HostEntry, sendOn?: () => SentOn): void {
    checkHostEntry(entry);
    const record = this.#record(entry);
    if (!this.#attached) this.#attach();
    const port = guestPort(record);
    if (port !== null) this.#attachPort(port, addressKey(entry.home));
    this.#write(addressKey(entry.home), record, sendOn);
  }

  drop(home: IpAddress): void {
    const key = addressKey(requireV4(home));
    this.#forget(key);
    this.#releasePorts();
  }

  entries(): readonly HostEntry[] {
    const names = new Map(listLinks(this.#netlink).map(({ index, name }) => [index, name]));
    const name = (index: number): string => names.get(index) ?? `gone:${String(index)}`;
    return this.#records().map(([key, record]): HostEntry => {
      const home = addressFromKey(key);
      if (record.role === "forward") return { role: "forward", home, to: record.to, ...(record.sender === null ? {} : { sender: { port: name(record.sender.port), mac: record.sender.mac } }), ...(record.hold === null ? {} : { hold: { ...record.hold, device: name(record.hold.device) } }) };
      return { role: "deliver", home, port: name(record.port), mac: record.mac, stragglersFrom: record.stragglersFrom, ...(record.hold === null ? {} : { hold: { device: name(record.hold.device), from: record.hold.from } }) };
    });
  }

  usePathMtu(bytes: number): void {
    this.#pathMtu = bytes;
    if (this.#attached) this.#configure();
  }

  sendMarker(home: IpAddress, token: number): void {
    const inner = { source: requireV4(home), destination: this.#homeAgent };
    this.#markers.send({ outer: { source: this.#options.careOf, destination: this.#homeAgent }, inner, token });
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

  /** No `await` inside, for the reason given in the home agent's end. All ports are looked up before anything changes. */
  #set(entries: readonly HostEntry[]): void {
    checkHostSet(entries, this.#options.maxEntries);
    const wanted = entries.map((entry): [Uint8Array, HostRecord] => [addressKey(entry.home), this.#record(entry)]);
    this.#lookAtUplink();
    const stale = new Map(this.#guests.keys().map((key) => [key.toString("hex"), key]));
    for (const [key, record] of wanted) {
      stale.delete(Buffer.from(key).toString("hex"));
      this.#write(key, record);
    }
    for (const key of stale.values()) {
      this.#forget(key);
    }
    this.#attach();
    for (const [key, record] of wanted) {
      const port = guestPort(record);
      if (port !== null) this.#attachPort(port, key);
    }
    this.#releasePorts();
    this.#way.retireOther(this.#bench(), this.#uplink);
  }

  #lookAtUplink(): void {
    this.#uplink = this.#way.uplink(this.#netlink, this.#options.uplink);
    this.#device = this.#way.prepare(this.#netlink, this.#uplink);
  }

  #write(key: Uint8Array, record: HostRecord, sendOn?: () => SentOn): void {
    const value = encodeHostRecord(record);
    this.#ledger.open(key);
    if (record.hold !== null) this.#holds.ensure(key, record.hold.device);
    const before = this.#guests.lookup(key);
    if (sendOn !== undefined) this.#holds.open(key, before === null ? null : decodeHostRecord(before), record, sendOn);
    if (before?.equals(value) !== true) this.#guests.update(key, value);
  }

  #forget(key: Uint8Array): void {
    this.#guests.delete(key);
    this.#ledger.forget(key);
    this.#holds.forget(key);
  }

  /** @throws CareofError `no-link` */
  #record(entry: HostEntry): HostRecord {
    if (entry.role === "forward") {
      const sender = entry.sender ?? null;
      const hold = entry.hold ?? null;
      return {
        role: "forward", to: entry.to, sender: sender === null ? null : { port: requireLink(this.#netlink, sender.port).index, mac: sender.mac },
        hold: hold === null ? null : { ...hold, device: requireLink(this.#netlink, hold.device).index },
      };
    }
    const port = requireLink(this.#netlink, entry.port);
    const hold = entry.hold ?? null;
    return {
      role: "deliver", port: port.index, mac: entry.mac, portMac: mac(port.mac), stragglersFrom: entry.stragglersFrom,
      hold: hold === null ? null : { device: requireLink(this.#netlink, hold.device).index, from: hold.from },
    };
  }

  #records(): [Buffer, HostRecord][] {
    return this.#guests.keys().flatMap((key): [Buffer, HostRecord][] => {
      const value = this.#guests.lookup(key);
      return value === null ? [] : [[key, decodeHostRecord(value)]];
    });
  }

  #attach(): void {
    routeFor([this.#options.uplink]);
    this.#configure();
    this.#way.attach(this.#bench(), this.#uplink, this.#device);
    this.#attached = true;
  }

  #configure(): void {
    const { careOf, gateway, homeAgents } = this.#options;
    const pathMtu = this.#pathMtu;
    this.#maps.get("config").update(new Uint8Array(4), encodeConfig({
      self: careOf,
      homeAgents,
      uplink: this.#device,
      innerMtu: (pathMtu === 0 ? this.#uplink.mtu : pathMtu) - OUTER_HEADER,
      gateway: gateway?.address ?? DEFAULT_GATEWAY,
      decapFlags: this.#decapFlags,
      hopMac: TUNNEL_HOP.mac,
      cutsLong: cutsLong(),
    }));
  }

  #attachPort(port: number, home: Uint8Array): void {
    this.#ports.update(indexKey(port), home);
    this.#attachments.ensure(port, "ingress", this.#way.portProgram);
  }

  /** Takes the programs off the ports that no VM is behind any more. */
  #releasePorts(): void {
    const used = new Map<number, Uint8Array>();
    for (const [key, record] of this.#records()) {
      const port = guestPort(record);
      if (port !== null && !used.has(port)) used.set(port, key);
    }
    for (const found of this.#ports.keys()) {
      const port = found.readUInt32LE(0);
      const home = used.get(port);
      if (home !== undefined) {
        if (this.#ports.lookup(found)?.equals(home) !== true) this.#ports.update(found, home);
        continue;
      }
      this.#attachments.remove(port, "ingress");
      this.#ports.delete(found);
    }
  }

  #clear(): void {
    for (const port of this.#ports.keys()) this.#attachments.remove(port.readUInt32LE(0), "ingress");
    this.#way.clear(this.#bench(), this.#uplink);
  }

  #bench(): Workbench {
    return { netlink: this.#netlink, maps: this.#maps, attachments: this.#attachments };
  }
}

/** The port by which the guest may send. */
function guestPort(record: HostRecord): number | null {
  if (record.role === "forward") return record.sender?.port ?? null;
  return record.port === record.hold?.device ? null : record.port;
}

function indexKey(index: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(index);
  return bytes;
}
