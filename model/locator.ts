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

/** What a locator is good for: *active* gets the traffic, *accept* may send for the VM, *forward* passes stragglers on. */
export type LocatorRole = "active" | "accept" | "forward";

export function ipInIp(address: IpAddress, pathMtu = 0): Locator {
  return { address, encapsulation: "ip-in-ip", port: 0, pathMtu };
}
