import type { IpAddress } from "./address.js";

/** RFC 2003 is the only one that a data plane carries today. */
export type Encapsulation = "ip-in-ip";

/** How to reach a care-of address. */
export interface Locator {
  readonly address: IpAddress;
  readonly encapsulation: Encapsulation;
  /** UDP port of an encapsulation that has one, else 0. */
  readonly port: number;
  /** Largest outer packet that the path carries, in bytes; 0 is "not known, take the link's". */
  readonly pathMtu: number;
}

/**
 * The least path MTU that is configured, registered or believed, in bytes of the outer packet. RFC 791 §3.2 lets a link carry as little as 68, but every host takes 576, and a router's
 * message that names less is more probably forged than true.
 */
export const LEAST_PATH_MTU = 576;

/** What a locator is good for: *active* gets the traffic, *accept* may send for the VM, *forward* passes stragglers on. */
export type LocatorRole = "active" | "accept" | "forward";

export function ipInIp(address: IpAddress, pathMtu = 0): Locator {
  return { address, encapsulation: "ip-in-ip", port: 0, pathMtu };
}
