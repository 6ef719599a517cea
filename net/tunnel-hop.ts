import { ipv4, mac } from "../model/address.js";
import { listFilters } from "./netlink/filters.js";
import { deleteNeighbour, putNeighbour } from "./netlink/neighbours.js";
import type { Netlink } from "./netlink/client.js";

/**
 * The next hop that does not exist. Routes to it on the uplink make the stack do a router's work on the inner packet (TTL, "frag needed" by the route's MTU,
 * fragmenting) and then hand it to the uplink's egress, where the BPF program encapsulates it. It drops what would leave towards this MAC as it is.
 */
export const TUNNEL_HOP = {
  /** RFC 7600's dummy address: never a destination of anything. */
  address: ipv4("192.0.0.8"),
  /** Locally administered. */
  mac: mac("02:ca:4e:0f:00:08"),
} as const;

/** Bytes that RFC 2003 adds. */
export const OUTER_HEADER = 20;

/** Idempotent. */
export function putTunnelHop(netlink: Netlink, uplink: number): void {
  putNeighbour(netlink, { device: uplink, address: TUNNEL_HOP.address, mac: TUNNEL_HOP.mac });
}

/** Idempotent. It stays while a program of the other end, which may have run here before, is there; ours are to be gone. */
export function deleteTunnelHop(netlink: Netlink, uplink: number): void {
  if (listFilters(netlink, uplink).some(({ direction, name }) => direction === "egress" && name.startsWith("careof_"))) return;
  deleteNeighbour(netlink, { device: uplink, address: TUNNEL_HOP.address });
}
