import type { IpAddress, Ipv4, Mac } from "../model/address.js";
import type { PortQueue } from "./tap-queue.js";

/** The gateway that every guest sees, the same on every host (a moved guest's ARP cache stays true). */
export interface Gateway {
  readonly address: Ipv4;
  readonly mac: Mac;
}

/** One VM's port on this host, as it shall be. */
export interface VmPort {
  /** Interface name, at most 15 characters. */
  readonly name: string;
  /** `tap`: ours, made and removed by us. `external`: somebody else's, only addressed and never removed. */
  readonly kind: "tap" | "external";
  readonly mac: Mac;
  readonly homeAddresses: readonly IpAddress[];
  /** Packets that the TAP's queue holds while its reader is halted: rate × longest hold. */
  readonly queueLength: number;
  /** Guest-side MTU in bytes. */
  readonly mtu: number;
}

/**
 * The VM ports of this host as desired state. Each gets: the gateway's address (/32) and MAC, an explicit permanent neighbour and a /32 route per home
 * address (never learned), proxy ARP without delay (and never for the guest's own address), policy routing of what comes in by it (`iif PORT` → table
 * whose default leads into the reverse tunnel), no redirects, no IPv6 of the host's own.
 * `set` removes TAPs that an earlier run of this instance made and that are no longer wanted; it never touches a port that is unchanged.
 * @throws CareofError `no-link` (an external port is missing), `kernel-refused`
 */
export interface VmPorts {
  set(ports: readonly VmPort[]): Promise<void>;
  /**
   * For what the kernel may have dropped (net/uplink-mender.ts): makes it as it is wanted again, first what all ports share, then each for itself, and takes nothing away. A port that cannot be (it is gone, or not ours any more)
   * keeps no other one from it: its failure, or the first of some, is told at the end. What is malformed changes nothing.
   */
  renew(ports: readonly VmPort[]): Promise<void>;
  put(port: VmPort): Promise<void>;
  /** Idempotent. */
  drop(name: string): Promise<void>;
  /** As `drop`, but the interface stays, whoever made it, and is somebody else's from now on. Idempotent. */
  giveAway(name: string): Promise<void>;
  /** Sends `frame` (Ethernet) out of the port towards the guest, by a packet socket. Used to prime a halted reader's TAP. */
  sendFrame(name: string, frame: Uint8Array): void;
  /** Packets that found the port's queue full, since its interface was made; 0 where there is none. */
  overflowed(name: string): number;
  /** What waits in the port's queue for the process that reads it. @throws CareofError `no-reader` (it does not have that TAP open), `kernel-refused` */
  queue(name: string, reader: number): PortQueue;
  /** The outer path MTU towards the home agent is another one from now on, in bytes; 0 takes the uplink's. Ports keep theirs: what is too big for the path is answered with "frag needed". */
  usePathMtu(bytes: number): void;
  list(): readonly VmPort[];
  close(options: { readonly keep: boolean }): Promise<void>;
}

export interface VmPortsOptions {
  readonly uplink: string;
  readonly gateway: Gateway;
  /** Policy table and rule priority that belong to this instance. */
  readonly table: number;
  readonly pathMtu: number;
}
