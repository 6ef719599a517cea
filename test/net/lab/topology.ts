import { join } from "node:path";
import { ipv4, mac, prefix, type Ipv4 } from "../../../model/address.js";
import { BpfHomeTunnel } from "../../../net/tunnel-bpf-home.js";
import { BpfHostTunnel } from "../../../net/tunnel-bpf-host.js";
import { IpipHomeTunnel } from "../../../net/tunnel-ipip-home.js";
import { IpipHostTunnel } from "../../../net/tunnel-ipip-host.js";
import type { HomeEntry, HostDeliver } from "../../../net/tunnel.js";
import { writeSysctlIfThere } from "../../../net/sysctl.js";
import { LinuxVmPorts } from "../../../net/vm-port-linux.js";
import type { VmPort } from "../../../net/vm-port.js";
import { Namespaces, type Namespace } from "./namespaces.js";

export const HOME_AGENT = ipv4("192.0.2.1");
export const CORRESPONDENT = ipv4("203.0.113.2");
export const GATEWAY = { address: ipv4("169.254.1.1"), mac: mac("02:ca:4e:0f:00:01") };
export const MTU = 1480;
/** What holder.ts holds packets in. */
export const HELD = "co-held";
const TABLE = 1234;

/** Which driver each end has. */
export interface Drivers {
  readonly home: "bpf" | "ipip";
  readonly hosts: "bpf" | "ipip";
}

/** `CAREOF_TEST_DRIVERS=ipip,bpf`: of the home agent, of the hosts. The kernel must have an ipip device for it; test/uml/main.ts runs where it has. */
export const DRIVERS: Drivers = (() => {
  const [home = "bpf", hosts = home] = (process.env["CAREOF_TEST_DRIVERS"] ?? "bpf").split(",").map((name) => (name === "ipip" ? "ipip" : "bpf"));
  return { home, hosts };
})();

/** A host with the namespaces of the guests on it. */
export interface Host {
  readonly careOf: Ipv4;
  readonly net: Namespace;
  readonly tunnel: BpfHostTunnel;
  readonly ports: LinuxVmPorts;
}

/** A machine that may stand on any host: the same address and MAC in a namespace on each. */
export interface Guest {
  readonly home: Ipv4;
  readonly mac: ReturnType<typeof mac>;
  readonly port: string;
  readonly on: (host: Host) => Namespace;
}

/**
 *     correspondent ── home agent ── router ─┬─ host a ── guests
 *     203.0.113.2       192.0.2.1            └─ host b ── guests
 *
 * Guests are namespaces on veth pairs (`kind: external`), so that real sockets talk.
 */
export class Topology {
  readonly all = new Namespaces();
  readonly correspondent: Namespace;
  readonly homeAgent: Namespace;
  readonly router: Namespace;
  readonly home: BpfHomeTunnel;
  readonly a: Host;
  readonly b: Host;
  readonly guests: readonly Guest[];

  readonly #maxEntries: number;

  constructor({ maxEntries = 1000 }: { readonly maxEntries?: number } = {}) {
    this.#maxEntries = maxEntries;
    const { all } = this;
    this.correspondent = all.make("c");
    this.homeAgent = all.make("h");
    this.router = all.make("r");
    all.connect(this.correspondent, "lan", this.homeAgent, "lan");
    all.connect(this.homeAgent, "uplink", this.router, "toh");
    this.correspondent.ip(`address add ${CORRESPONDENT}/24 dev lan`, "route add default via 203.0.113.1");
    this.homeAgent.ip("address add 203.0.113.1/24 dev lan", `address add ${HOME_AGENT}/24 dev uplink`, "route add default via 192.0.2.254");
    this.router.ip("address add 192.0.2.254/24 dev toh");
    this.router.sysctl("net.ipv4.ip_forward", "1");
    this.guests = [1, 2].map((n) => this.#guest(n));
    this.a = this.#host("a", 1);
    this.b = this.#host("b", 2);
    this.home = this.homeAgent.within(() => this.homeTunnel());
  }

  homeTunnel(): BpfHomeTunnel {
    const runDir = join(this.all.folder, "home");
    const options = { uplink: "uplink", address: HOME_AGENT, homePrefixes: [prefix("198.51.100.0/24")], runDir, maxEntries: this.#maxEntries };
    return DRIVERS.home === "ipip" ? new IpipHomeTunnel(options) : new BpfHomeTunnel(options);
  }

  hostTunnel(label: string, careOf: Ipv4): BpfHostTunnel {
    const options = { uplink: "uplink", careOf, homeAgents: [HOME_AGENT], pathMtu: 0, runDir: join(this.all.folder, label), maxEntries: this.#maxEntries };
    return DRIVERS.hosts === "ipip" ? new IpipHostTunnel(options) : new BpfHostTunnel(options);
  }

  port(guest: Guest): VmPort {
    return { name: guest.port, kind: "external", mac: guest.mac, homeAddresses: [guest.home], queueLength: 1000, mtu: MTU };
  }

  async close(): Promise<void> {
    try {
      await this.homeAgent.within(() => this.home.close({ keep: false }));
      for (const host of [this.a, this.b]) {
        await host.net.within(() => host.tunnel.close({ keep: false }));
        await host.net.within(() => host.ports.close({ keep: false }));
      }
    } finally {
      this.all.destroy();
    }
  }

  #guest(n: number): Guest {
    const made = new Map<string, Namespace>();
    return {
      home: ipv4(`198.51.100.${String(6 + n)}`),
      mac: mac(`52:54:00:00:00:0${String(n)}`),
      port: `vm${String(n)}`,
      on: (host) => {
        const found = made.get(host.careOf) ?? this.#place(this.guests[n - 1], host);
        made.set(host.careOf, found);
        return found;
      },
    };
  }

  /** Makes the guest's namespace on a host; the interface keeps the port's MTU as a guest's would. */
  #place(guest: Guest | undefined, host: Host): Namespace {
    if (guest === undefined) throw new Error("no such guest");
    const there = this.all.make(`${guest.port}-${host.careOf}`);
    // Its own neighbour discovery would be counted among what tests send.
    there.within(() => { writeSysctlIfThere(["net", "ipv6", "conf", "default", "disable_ipv6"], "1"); });
    this.all.connect(host.net, guest.port, there, "eth0");
    there.ip(`link set eth0 address ${guest.mac} mtu ${String(MTU)}`, `address add ${guest.home}/32 dev eth0`, "route add default via 169.254.1.1 dev eth0 onlink");
    return there;
  }

  #host(label: string, subnet: number): Host {
    const net = this.all.make(label);
    const careOf = ipv4(`10.0.${String(subnet)}.1`);
    this.all.connect(net, "uplink", this.router, `to${label}`);
    net.ip(`address add ${careOf}/24 dev uplink`, `route add default via 10.0.${String(subnet)}.254`);
    this.router.ip(`address add 10.0.${String(subnet)}.254/24 dev to${label}`);
    const tunnel = net.within(() => this.hostTunnel(label, careOf));
    const ports = net.within(() => new LinuxVmPorts({ uplink: "uplink", gateway: GATEWAY, table: TABLE, pathMtu: 0 }));
    return { careOf, net, tunnel, ports };
  }
}

/** The binding of a guest that stands on one host. */
export function bound(guest: Guest, host: Host): HomeEntry {
  return { home: guest.home, active: host.careOf, accept: [host.careOf], mtu: MTU };
}

export function deliver(guest: Guest): HostDeliver {
  return { role: "deliver", home: guest.home, port: guest.port, mac: guest.mac, stragglersFrom: [] };
}
