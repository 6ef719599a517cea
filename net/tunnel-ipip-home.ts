import type { IpAddress } from "../model/address.js";
import { requireV4 } from "./entry-checks.js";
import { ensureIpipDevice, raiseIpipDevice, removeIpipDevice } from "./ipip-device.js";
import { requireLink } from "./netlink/links.js";
import { HOME_AGENT_PROTOCOL, homeRouteRequests, MAIN_TABLE } from "./netlink/routes.js";
import { BpfHomeTunnel } from "./tunnel-bpf-home.js";
import { deleteTunnelHop, OUTER_HEADER } from "./tunnel-hop.js";
import type { HomeEntry, HomeTunnelOptions } from "./tunnel.js";
import { HOME_MAPS, type HomeWay } from "./tunnel-way.js";

/**
 * By the kernel's device. An entry without `active` has a route without outer addresses: the program on the device's egress drops what takes it, before the device
 * could complain. The uplink may be of any kind: the kernel finds the way of the outer packet.
 */
export const IPIP_HOME_WAY: HomeWay = {
  driver: "ipip",
  uplink: requireLink,
  programs: ["ipip_home_ingress", "ipip_home_egress"],
  maps: HOME_MAPS,
  prepare: (netlink, uplink) => ensureIpipDevice(netlink, "home", uplink.mtu - OUTER_HEADER).index,
  decapFlags: () => 0n,
  attach: ({ attachments, netlink }, _, device) => {
    attachments.ensure(device, "ingress", "ipip_home_ingress");
    attachments.ensure(device, "egress", "ipip_home_egress");
    raiseIpipDevice(netlink);
  },
  retireOther: ({ attachments, netlink }, uplink) => {
    attachments.remove(uplink.index, "ingress");
    attachments.remove(uplink.index, "egress");
    deleteTunnelHop(netlink, uplink.index);
  },
  clear: ({ netlink }) => { removeIpipDevice(netlink, "home"); },
  routeWord: ({ active, mtu }) => `${String(active)} ${String(mtu)}`,
  wordOf: ({ encap = null, mtu, via }, address) => (via !== null || (encap !== null && encap.source !== address) ? null : `${String(encap?.destination ?? null)} ${String(mtu)}`),
  route: ({ active, home, mtu }, device, address) => ({
    destination: { address: home, length: 32 }, table: MAIN_TABLE, protocol: HOME_AGENT_PROTOCOL, device, via: null, mtu, metric: 0,
    encap: active === null ? null : { source: address, destination: requireV4(active) },
    // What the home agent itself says to a VM ("frag needed", "time exceeded"): the device has no address.
    source: address,
  }),
  routeRequests: (entries, device, address) => {
    const byCareOf = new Map<IpAddress | null, HomeEntry[]>();
    for (const entry of entries) {
      const same = byCareOf.get(entry.active);
      if (same === undefined) byCareOf.set(entry.active, [entry]);
      else same.push(entry);
    }
    return [...byCareOf].flatMap(([active, same]) => homeRouteRequests(IPIP_HOME_WAY.route({ active, home: address, mtu: 0 }, device, address), same));
  },
};

/**
 * The home agent's end by the kernel's ipip device (collect-metadata mode): one device, one route per home address with the care-of address in it, which a re-point
 * replaces. Everything else is as in tunnel-bpf-home.ts: entries, accept-lists, counters and stamps are maps, and classifiers on the device check and count by them.
 */
export class IpipHomeTunnel extends BpfHomeTunnel {
  /** @throws CareofError `no-link`, `unsupported` (this kernel has no ipip), `not-ours`, `kernel-refused` */
  constructor(options: HomeTunnelOptions) {
    super(options, IPIP_HOME_WAY);
  }
}
