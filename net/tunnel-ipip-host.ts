import { ensureIpipDevice, raiseIpipDevice, removeIpipDevice } from "./ipip-device.js";
import { BpfHostTunnel } from "./tunnel-bpf-host.js";
import { deleteTunnelHop, OUTER_HEADER, putTunnelHop } from "./tunnel-hop.js";
import type { HostTunnelOptions } from "./tunnel.js";
import { HOST_MAPS, type HostWay } from "./tunnel-way.js";
import { requireEthernet } from "./uplink.js";

/** By the kernel's device. The uplink has a program for what the stack's slow path sends towards the hop that does not exist, so it is an Ethernet one here too. */
export const IPIP_HOST_WAY: HostWay = {
  driver: "ipip",
  portProgram: "ipip_port_ingress",
  uplink: requireEthernet,
  programs: ["ipip_host_ingress", "ipip_host_egress", "ipip_port_ingress"],
  maps: HOST_MAPS,
  prepare: (netlink, uplink) => ensureIpipDevice(netlink, "host", uplink.mtu - OUTER_HEADER).index,
  decapFlags: () => 0n,
  attach: ({ attachments, netlink }, uplink, device) => {
    putTunnelHop(netlink, uplink.index);
    attachments.ensure(uplink.index, "egress", "ipip_host_egress");
    attachments.ensure(device, "ingress", "ipip_host_ingress");
    raiseIpipDevice(netlink);
  },
  retireOther: ({ attachments }, uplink) => { attachments.remove(uplink.index, "ingress"); },
  clear: ({ attachments, netlink }, uplink) => {
    removeIpipDevice(netlink, "host");
    attachments.remove(uplink.index, "egress");
    deleteTunnelHop(netlink, uplink.index);
  },
};

/**
 * A host's end by the kernel's ipip device (collect-metadata mode). The device takes outer headers off and puts them on; classifiers on its ingress and on the VMs' ports
 * check, and tell it with each packet where to (`bpf_skb_set_tunnel_key`), because what a packet may do depends on its outer source. Everything else is as in tunnel-bpf-host.ts.
 */
export class IpipHostTunnel extends BpfHostTunnel {
  /** @throws CareofError `no-link`, `unsupported` (this kernel has no ipip), `not-ours`, `too-many`, `no-home-agent`, `kernel-refused` */
  constructor(options: HostTunnelOptions) {
    super(options, IPIP_HOST_WAY);
  }
}
