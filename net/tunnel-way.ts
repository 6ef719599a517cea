import type { Ipv4 } from "../model/address.js";
import type { Attachments } from "./bpf/attachments.js";
import type { PinnedMaps } from "./bpf/loader.js";
import type { Netlink, Request } from "./netlink/client.js";
import type { Link } from "./netlink/links.js";
import type { Route } from "./netlink/routes.js";
import type { HomeEntry } from "./tunnel.js";

/** Maps of either end. */
export const HOME_MAPS = ["config", "counters", "stamps", "hops", "homes"] as const;
export const HOST_MAPS = ["config", "counters", "stamps", "hops", "guests", "ports", "waiting"] as const;

/** What an instance of a driver works with. */
export interface Workbench {
  readonly netlink: Netlink;
  readonly maps: PinnedMaps;
  readonly attachments: Attachments;
}

/**
 * Who puts the outer header on and takes it off, which is all that the drivers bpf and ipip differ in: entries, checks, markers, counters and stamps are the same maps
 * and the same code.
 */
export interface TunnelWay {
  /** `bpf` or `ipip`. */
  readonly driver: string;
  /** The uplink as it is now. @throws CareofError `no-link`, `unsupported` */
  uplink(netlink: Netlink, name: string): Link;
  /**
   * Makes the interface by which tunnelled packets leave, if it is not there, and returns its number; no packet sees it yet. Idempotent.
   * @throws CareofError `unsupported`, `not-ours`, `kernel-refused`
   */
  prepare(netlink: Netlink, uplink: Link): number;
  /** All of them have to be taken by the kernel. */
  readonly programs: readonly string[];
  /** What they work with. */
  readonly maps: readonly string[];
  /** Of the kernel that is here; 0 where no program takes a header off. @throws CareofError `kernel-refused` */
  decapFlags(maps: Pick<PinnedMaps, "get">): bigint;
  /** From now on packets are taken. Idempotent. */
  attach(bench: Workbench, uplink: Link, device: number): void;
  /** What the other driver has left and nothing uses any more. Idempotent. */
  retireOther(bench: Workbench, uplink: Link): void;
  /** Idempotent; the uplink may be gone. */
  clear(bench: Workbench, uplink: Link): void;
}

export interface HomeWay extends TunnelWay {
  /** Two entries with the same word need the same route. */
  routeWord(entry: HomeEntry): string;
  /** The word of a route on the device that the kernel has; null for one that no entry gets. */
  wordOf(found: Route, address: Ipv4): string | null;
  route(entry: Pick<HomeEntry, "active" | "mtu"> & { readonly home: Ipv4 }, device: number, address: Ipv4): Route;
  /** Adds or replaces the routes of many. */
  routeRequests(entries: readonly HomeEntry[], device: number, address: Ipv4): Request[];
}

export interface HostWay extends TunnelWay {
  /** For the ingress of VMs' ports. */
  readonly portProgram: string;
}
