import type { IpAddress, Mac } from "../model/address.js";
import type { Arrival } from "./arrival-sight.js";

/** `usable`: up, with a carrier, and perhaps another interface than before: what was set may be gone. */
export type HomeLanState = "usable" | "unusable";

export interface HomeLanListener {
  /** The interface became usable or unusable, was replaced by another of its name, or changed its Ethernet address. */
  changed(state: HomeLanState): void;
  /** A station on the LAN, ours apart, has said that it is there. */
  arrived(arrival: Arrival): void;
  /** So many frames that might have been arrivals were not looked at: there was a storm of them. */
  missed(frames: number): void;
  /** There will be no more news. */
  failed(error: Error): void;
}

/**
 * The home network as a LAN that the home agent stands on: it answers there for the home addresses of VMs that are away (RFC 5944 §4.6), and says so by
 * gratuitous ARP. Contract:
 *
 * `set` makes the addresses that are answered for exactly the wanted ones, whatever was there before (a crash's left-overs on this interface and on others
 * included, whose settings are put back), and leaves alone what somebody else has set. It returns those that were not answered for before. `put` and `drop` do the same for one
 * address, and return whether it changed anything. An answer is given at once (no proxy delay), on this interface only, and only while the machine's route
 * to the address leads elsewhere; a probe of an address that is about to be taken (RFC 5227 §2.1) and the owner's own announcement are not answered.
 * `announce` sends one gratuitous ARP, broadcast: it names this machine's Ethernet address, or the one of `owner` (who has come home). It is not repeated.
 * @throws CareofError `no-link` (the interface is missing), `unsupported` (it is not Ethernet), `unsupported-address` (IPv6), `too-many`, `malformed-entries`
 * (an address twice): nothing has changed then; `kernel-refused` (cause has errno; for `announce` also: the interface is down).
 */
export interface HomeLan {
  set(homes: readonly IpAddress[]): readonly IpAddress[];
  put(home: IpAddress): boolean;
  drop(home: IpAddress): boolean;
  /** What is answered for now, sorted as text. */
  answered(): readonly IpAddress[];
  announce(home: IpAddress, owner: Mac | null): void;
  /** Tells what happens on the LAN; once per HomeLan. The listener must not throw. Of a storm of arrivals only so many are told, a few at a time, that other work goes on. */
  watch(listener: HomeLanListener): void;
  /** Lets go of descriptors; a second call does nothing. `keep` leaves the kernel answering while the process is away; otherwise the interface is set as it was before. */
  close(options: { readonly keep: boolean }): void;
}

export interface HomeLanOptions {
  /** Name of the interface on the home LAN; Ethernet, and not the uplink. */
  readonly interface: string;
  /** Home addresses at most. */
  readonly maxEntries: number;
  /** Directory where stands how the interface was set before. */
  readonly runDir: string;
  /** Hears what nothing is stopped by. */
  readonly warn?: (detail: string) => void;
}
