import type { IpAddress, Ipv4, Mac } from "../model/address.js";
import type { Millis } from "../model/ids.js";

/**
 * What the home agent's end of the tunnels shall do for one home address.
 * The packets of an entry without `active` are silently dropped (a binding that is stale, or gone while others know it).
 */
export interface HomeEntry {
  readonly home: IpAddress;
  /** Care-of address that gets the traffic; `null` drops it, without any ICMP (a VM in handover is not "unreachable"). */
  readonly active: IpAddress | null;
  /** Every care-of address that may send for this home address (RFC 3024 §4.3), the active one included. */
  readonly accept: readonly IpAddress[];
  /** Largest inner packet in bytes: path MTU − 20 of the path, of the smaller one while moving. */
  readonly mtu: number;
}

/** What a host's end shall do for one home address. */
export type HostEntry = HostDeliver | HostForward;

export interface HostDeliver {
  readonly role: "deliver";
  readonly home: IpAddress;
  /** Interface name of the VM's port. */
  readonly port: string;
  readonly mac: Mac;
  /** Care-of addresses of other hosts that may send stragglers for it (hosts in a migration), apart from the home agents. */
  readonly stragglersFrom: readonly IpAddress[];
  /** What waits meanwhile; none: all of it goes to the port. */
  readonly hold?: HostHold | null;
}

/** Packets that must not go to the port yet, and the home agent's markers between them: they leave by `device` (net/hold.ts), where the agent takes them in. */
export interface HostHold {
  readonly device: string;
  /**
   * `home-agents`: what comes directly, while stragglers go first. `all`: nobody is behind the port. `port`: only what the port does not take, because it is gone or down, has no carrier, or is a full veth
   * (that a TAP's queue is full, the kernel does not say); no marker is among these. It costs a copy of each packet's headers.
   */
  readonly from: "home-agents" | "all" | "port";
}

/** The VM has left: what still comes from a home agent, markers too, goes on to `to`. What comes from anywhere else is dropped, or waits, but never goes on: no loops. */
export interface HostForward {
  readonly role: "forward";
  readonly home: IpAddress;
  readonly to: IpAddress;
  /** The VM has not quite left: what it still sends from this port goes its way. */
  readonly sender?: { readonly port: string; readonly mac: Mac } | null;
  /** What one of these hosts passes on to here waits: the VM may be on its way back. None: it is dropped. */
  readonly hold?: { readonly device: string; readonly stragglersFrom: readonly IpAddress[]; readonly mac: Mac } | null;
}

/**
 * How far what waited in a hold has been sent on: the number of the last packet of each kind as the hold has numbered it (`HeldFrame.number`), 0 before the first. Those that were dropped since count as sent.
 */
export interface SentOn {
  readonly directly: number;
  readonly straggler: number;
}

export interface Counters {
  readonly downPackets: number;
  readonly downBytes: number;
  readonly upPackets: number;
  readonly upBytes: number;
  readonly forwardedPackets: number;
  /** By reason: `not-listed` (outer source), `spoofed` (inner source), `no-binding`, `too-big`, `loop`, `malformed`, and what a driver adds (bpf/records.ts). */
  readonly dropped: Readonly<Record<string, number>>;
}

/**
 * Stamps of one home address since `clearStamps`, in CLOCK_MONOTONIC milliseconds (the same clock as `Clock.monotonic`), `null` while it has
 * not happened. They are what gaps are computed from.
 */
export interface Stamps {
  /** A down marker with this token has arrived (host), or an up marker has passed the check (home agent): newest token and when. */
  readonly marker: { readonly token: number; readonly at: Millis } | null;
  /**
   * Host: token of the newest down marker that a host of `stragglersFrom` has passed on. Apart from `marker`, since it says another thing: that nothing comes by that host any more, while the
   * home agent's own marker says that nothing comes to here. A VM that goes to and fro has both at once, and whoever waits for the one must not be answered by the other.
   */
  readonly passedMarker: number | null;
  /** First packet handed to the VM's port (host) or to the stack (home agent). */
  readonly firstPacket: Millis | null;
  /** The first that came behind a marker: by a path that a down marker has closed, none does. */
  readonly behindMarker: Millis | null;
  /** First straggler passed on (host). */
  readonly firstForwarded: Millis | null;
}

interface Tunnel {
  /** `bpf`, `ipip`, `fake`: the word for logs and `doctor`. */
  readonly driver: string;
  /** Cumulative since the entry exists; zeros for an address without one. `::` has the drops that belong to no entry. */
  counters(home: IpAddress): Counters;
  stamps(home: IpAddress): Stamps;
  clearStamps(home: IpAddress): void;
  /** Lets go of descriptors; a second call does nothing. `keep` leaves the kernel's state in place, so that traffic flows on while the process is away. */
  close(options: { readonly keep: boolean }): Promise<void>;
}

/**
 * Contract of both ends: `set` makes the kernel's state exactly what is wanted, whatever was there before (a crash's left-overs included), and
 * changes nothing where it already is so: an unchanged entry loses no packet. It may be called any number of times. `put` and `drop` do the same for one
 * entry, and are what a handover uses: when they return, the next packet goes the new way.
 * @throws CareofError `no-link` (interface missing), `unsupported-address` (IPv6), `kernel-refused` (cause has errno)
 */
export interface HomeTunnel extends Tunnel {
  set(entries: readonly HomeEntry[]): Promise<void>;
  put(entry: HomeEntry): void;
  drop(home: IpAddress): void;
  /** What is set now, for tests and `doctor`, sorted by address. */
  entries(): readonly HomeEntry[];
  /**
   * Sends a marker with `token` (1 to 2^32 − 1) to `careOf` inside the same outer header as the VM's packets, behind all that went there before.
   * Where the VM's packets go on from there (`forward`, or a hold of what comes directly) the marker does too, in their order and uncounted; the next host stamps it as passed on and never hands it on.
   * Marker layout: net/marker.ts.
   */
  sendMarker(home: IpAddress, careOf: IpAddress, token: number): void;
}

export interface HostTunnel extends Tunnel {
  set(entries: readonly HostEntry[]): Promise<void>;
  /**
   * For what the kernel may have dropped (net/uplink-mender.ts): makes it as it is wanted again, first what is on the uplink, then each entry for itself, and takes nothing away. One that cannot be (its port is gone) keeps no
   * other one from it, and stays as it was: its failure, or the first of some, is told at the end. What is malformed changes nothing.
   */
  renew(entries: readonly HostEntry[]): Promise<void>;
  /**
   * `sendOn` is called when everything is ready for the switch: what waits in the hold that `entry` ends, and must go out before the next packet does, is sent on there, the way that `entry` says. It is called
   * again as long as more has come since, a bounded number of times; when it has found everything, no packet overtakes one that waited, unless another processor was
   * just about to put that one there.
   */
  put(entry: HostEntry, sendOn?: () => SentOn): void;
  drop(home: IpAddress): void;
  entries(): readonly HostEntry[];
  /** The outer path MTU towards the home agent is another one from the next packet on, in bytes; 0 takes the uplink's. Nothing else changes. @throws CareofError `kernel-refused` */
  usePathMtu(bytes: number): void;
  /** Sends an up marker through the reverse tunnel to the home agent, with the VM's home address as inner source. */
  sendMarker(home: IpAddress, token: number): void;
}

export interface HomeTunnelOptions {
  /** Interface towards the hosts. */
  readonly uplink: string;
  /** Outer source: the home agent's fixed address. */
  readonly address: Ipv4;
  /** Prefixes of which every address without an entry is `unreachable`, so that a miss never loops. */
  readonly homePrefixes: readonly { readonly address: Ipv4; readonly length: number }[];
  /** Directory of this instance for pins (a bpffs is mounted below it). Survives the process, not a reboot. */
  readonly runDir: string;
  /** Home addresses at most; the kernel reserves about 300 bytes for each. */
  readonly maxEntries: number;
}

export interface HostTunnelOptions {
  readonly uplink: string;
  /** This host's care-of address: outer source and only accepted outer destination. */
  readonly careOf: Ipv4;
  /** Tunnel ends of the home agents: the only outer sources (besides `stragglersFrom`) that are listened to; the first gets the reverse tunnel. */
  readonly homeAgents: readonly Ipv4[];
  /** Outer path MTU towards the home agent in bytes; 0 takes the uplink's. */
  readonly pathMtu: number;
  /** What guests send to this address stays here; default 169.254.1.1. */
  readonly gateway?: { readonly address: Ipv4 };
  readonly runDir: string;
  /** Home addresses at most; the kernel reserves about 300 bytes for each. */
  readonly maxEntries: number;
}
