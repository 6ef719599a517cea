import type { IpAddress } from "../model/address.js";
import type { VmId } from "../model/ids.js";
import { MAX_CARE_OF } from "../net/entry-checks.js";
import type { HomeEntry } from "../net/tunnel.js";
import type { HomeMode, VmConfig } from "./config.js";
import { routeOf, type VmState } from "./handover/migration.js";
import type { Hosts } from "./hosts.js";

/** RFC 2003 §3: an outer IPv4 header without options, in bytes. */
const OUTER_HEADER = 20;

/**
 * The tunnel's entries of one VM: what its state means in care-of addresses. Every host of a VM that somebody else moves may send for it: its first packet is what claims it.
 * An expired VM is silent, unless it may have come home to a LAN: there its binding has ended, and who has the address answers.
 */
export function entriesFor(state: VmState, vm: VmConfig, hosts: Hosts, pathMtu: number, mode: HomeMode): readonly HomeEntry[] {
  const route = routeOf(state);
  if (route === null || (route.active === null && mode === "proxy-arp")) return [];
  const active = hosts.careOf(route.active);
  const accept: IpAddress[] = [];
  let outer = pathMtu;
  const senders = vm.driver === "external" ? [...route.accept, ...vm.hosts].slice(0, MAX_CARE_OF) : route.accept;
  for (const host of senders) {
    const locator = hosts.locator(host);
    if (locator === null || accept.includes(locator.address)) continue;
    accept.push(locator.address);
    const inMove = state.migration !== null || host === route.active;
    const known = hosts.pathMtu(locator);
    if (inMove && known !== 0) outer = Math.min(outer, known);
  }
  return vm.homeAddresses.map((home) => ({ home, active, accept, mtu: outer - OUTER_HEADER }));
}

/** Which entries differ, so that nothing is put that is there already. */
export class RouteBook {
  readonly #put = new Map<VmId, readonly HomeEntry[]>();

  all(): readonly HomeEntry[] {
    return [...this.#put.values()].flat();
  }

  replace(vm: VmId, entries: readonly HomeEntry[]): { readonly put: readonly HomeEntry[]; readonly drop: readonly IpAddress[] } {
    const before = this.#put.get(vm) ?? [];
    if (entries.length === 0) this.#put.delete(vm);
    else this.#put.set(vm, entries);
    return {
      put: entries.filter((entry) => !before.some((old) => same(old, entry))),
      drop: before.map((old) => old.home).filter((home) => !entries.some((entry) => entry.home === home)),
    };
  }

  /** The entry could not be put: it is tried again with the next change. */
  distrust(vm: VmId): void {
    this.#put.delete(vm);
  }
}

function same(a: HomeEntry, b: HomeEntry): boolean {
  return a.home === b.home && a.active === b.active && a.mtu === b.mtu && a.accept.length === b.accept.length && a.accept.every((address) => b.accept.includes(address));
}
