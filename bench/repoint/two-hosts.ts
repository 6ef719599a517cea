import { inNamespace, must } from "../../deploy/lab/command.js";
import { PLAN } from "../../deploy/lab/plan.js";
import { ipv4, mac, prefix, type Ipv4 } from "../../model/address.js";
import { inNamespace as within } from "../../net/netns.js";
import { BpfHomeTunnel } from "../../net/tunnel-bpf-home.js";
import { BpfHostTunnel } from "../../net/tunnel-bpf-host.js";
import type { HomeWay } from "../../net/tunnel-way.js";
import type { HomeEntry } from "../../net/tunnel.js";
import { LinuxVmPorts } from "../../net/vm-port-linux.js";
import { FIRST_HOME, GUEST_MAC, HOME_PREFIX, Network, PORT } from "../dataplane/network.js";
import { INNER_MTU, TABLE } from "../dataplane/variants.js";

export const CARE_OF: readonly [Ipv4, Ipv4] = [ipv4(PLAN.hosts["host-a"].careOf), ipv4(PLAN.hosts["host-b"].careOf)];
const HOME_AGENT = ipv4(PLAN.homeAgent.core);

/** One guest with a cable to either host, so that it hears what comes by both; what it says goes by the first. */
export class TwoHosts {
  readonly network: Network;
  readonly #hosts: BpfHostTunnel[] = [];
  #ports: LinuxVmPorts | null = null;

  private constructor(network: Network) {
    this.network = network;
  }

  static async make(): Promise<TwoHosts> {
    const two = new TwoHosts(await Network.make(INNER_MTU));
    try {
      await two.#configure();
      return two;
    } catch (thrown) {
      await two.close();
      throw thrown;
    }
  }

  /** The home agent's end, of which there is one at a time. */
  home(maxEntries: number, way?: HomeWay): BpfHomeTunnel {
    const options = { uplink: "core0", address: HOME_AGENT, homePrefixes: [prefix(HOME_PREFIX)], runDir: this.network.directory("h"), maxEntries };
    return this.inHome(() => new BpfHomeTunnel(options, way));
  }

  inHome<T>(work: () => T): T {
    return within(this.network.path("h"), work);
  }

  async close(): Promise<void> {
    try {
      for (const host of this.#hosts) await host.close({ keep: false });
      await this.#ports?.close({ keep: false });
    } finally {
      await this.network.close();
    }
  }

  async #configure(): Promise<void> {
    const { network } = this;
    const gateway = { address: ipv4(PLAN.gateway), mac: mac("02:ca:0f:00:00:01") };
    const guest = mac(GUEST_MAC);
    await must(inNamespace(network.name("b"), ["ip", "link", "add", PORT, "mtu", String(INNER_MTU), "type", "veth", "peer", "name", "eth1", "netns", network.guest]));
    await network.ip("b", `link set ${PORT} up`);
    await must(inNamespace(network.guest, ["ip", "link", "set", "eth1", "address", GUEST_MAC, "mtu", String(INNER_MTU), "up"]));
    const ports = within(network.path("a"), () => new LinuxVmPorts({ uplink: "uplink0", gateway, table: TABLE, pathMtu: 0 }));
    this.#ports = ports;
    await within(network.path("a"), () => ports.set([{ name: PORT, kind: "external", mac: guest, homeAddresses: [ipv4(FIRST_HOME)], queueLength: 1000, mtu: INNER_MTU }]));
    for (const [index, node] of (["a", "b"] as const).entries()) {
      const careOf = CARE_OF[index === 0 ? 0 : 1];
      const host = within(network.path(node), () => new BpfHostTunnel({ uplink: "uplink0", careOf, homeAgents: [HOME_AGENT], pathMtu: 0, runDir: network.directory(node), maxEntries: 16 }));
      this.#hosts.push(host);
      await within(network.path(node), () => host.set([{ role: "deliver", home: ipv4(FIRST_HOME), port: PORT, mac: guest, stragglersFrom: [] }]));
    }
  }
}

/** Bound at the first host or at the second; both may send for it, as in a migration. */
export function boundAt(home: Ipv4, host: 0 | 1): HomeEntry {
  return { home, active: CARE_OF[host], accept: CARE_OF, mtu: INNER_MTU };
}
