import { ipv4, type Ipv4 } from "../../../model/address.js";
import type { Namespace, Namespaces } from "./namespaces.js";
import type { Guest } from "./topology.js";

/** The home agent's own address on the home LAN. */
export const ON_LAN = ipv4("198.51.100.1");

/** A machine that lives on the home LAN, with a kernel of its own that keeps neighbours. */
export interface Neighbour {
  readonly address: Ipv4;
  readonly net: Namespace;
}

/**
 * A bridged home LAN, 198.51.100.0/24:
 *
 *     home agent (home0, 198.51.100.1) ──┐
 *     neighbour 20 ──────────────────────┤ bridge ├─── the VM when it is at home
 *     neighbour 21 ──────────────────────┘
 */
export class HomeSegment {
  readonly #all: Namespaces;
  readonly bridge: Namespace;
  readonly neighbours: readonly Neighbour[];

  constructor(all: Namespaces, homeAgent: Namespace) {
    this.#all = all;
    this.bridge = all.make("lan");
    this.bridge.ip("link add br0 type bridge", "link set br0 up");
    this.#plug(homeAgent, "home0");
    homeAgent.ip(`address add ${ON_LAN}/24 dev home0`);
    this.neighbours = [20, 21].map((n) => {
      const net = all.make(`n${String(n)}`);
      this.#plug(net, "eth0");
      const address = ipv4(`198.51.100.${String(n)}`);
      net.ip(`address add ${address}/24 dev eth0`);
      return { address, net };
    });
  }

  /** The guest as it stands at home: its address and MAC on the LAN itself. */
  atHome(guest: Guest): Namespace {
    const net = this.#all.make(`${guest.port}-home`);
    this.#plug(net, "eth0");
    net.ip("link set eth0 down", `link set eth0 address ${guest.mac}`, "link set eth0 up", `address add ${guest.home}/24 dev eth0`);
    return net;
  }

  #plug(net: Namespace, name: string): void {
    const port = `p-${net.name.split("-").slice(2).join("-").slice(0, 10)}`;
    this.#all.connect(net, name, this.bridge, port);
    this.bridge.ip(`link set ${port} master br0`);
  }
}

/** What the neighbour's kernel believes: the Ethernet address of `wanted`, or null. */
export function believes({ net }: Neighbour, wanted: Ipv4): string | null {
  return / lladdr ([0-9a-f:]{17})/.exec(net.exec("ip", "neigh", "show", "to", wanted, "dev", "eth0"))?.[1] ?? null;
}

export function macOf(net: Namespace, name: string): string {
  return /link\/ether ([0-9a-f:]{17})/.exec(net.exec("ip", "-o", "link", "show", name))?.[1] ?? "";
}
