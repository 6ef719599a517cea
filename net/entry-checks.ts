import { isV4, type IpAddress, type Ipv4 } from "../model/address.js";
import { CareofError } from "../model/errors.js";
import { requireInterfaceName } from "./tap.js";
import type { HomeEntry, HostEntry } from "./tunnel.js";
import type { VmPort } from "./vm-port.js";

/** As many care-of addresses as one entry of any driver holds: the hosts of a migration, and those in their grace time after earlier ones. */
export const MAX_CARE_OF = 8;
/** RFC 791 §3.2: every link carries 68 bytes; an outer length has 16 bits. */
const MTU = { min: 68, max: 65535 - 20 } as const;

/** @throws CareofError `unsupported-address` */
export function requireV4(address: IpAddress): Ipv4 {
  if (!isV4(address)) throw new CareofError("unsupported-address", `${address} is IPv6, which no data plane carries yet`);
  return address;
}

function requireFew(addresses: readonly IpAddress[], of: IpAddress): void {
  if (addresses.length > MAX_CARE_OF) throw new CareofError("too-many", `${of} has ${String(addresses.length)} care-of addresses, of at most ${String(MAX_CARE_OF)}`);
  addresses.forEach(requireV4);
}

/** @throws CareofError `unsupported-address`, `too-many`, `malformed-mtu` */
export function checkHomeEntry({ accept, active, home, mtu }: HomeEntry): void {
  requireV4(home);
  if (active !== null) requireV4(active);
  requireFew(accept, home);
  if (!Number.isInteger(mtu) || mtu < MTU.min || mtu > MTU.max) {
    throw new CareofError("malformed-mtu", `${String(mtu)} is not an MTU: ${String(MTU.min)} to ${String(MTU.max)} bytes`);
  }
}

/** @throws CareofError `unsupported-address`, `too-many` */
export function checkHostEntry(entry: HostEntry): void {
  requireV4(entry.home);
  if (entry.role === "forward") {
    requireV4(entry.to);
    requireFew(entry.hold?.stragglersFrom ?? [], entry.home);
  }
  else requireFew(entry.stragglersFrom, entry.home);
}

/** Each address at most once, and no more than the instance holds. @throws CareofError `too-many`, `malformed-entries` */
export function checkSet(entries: readonly { readonly home: IpAddress }[], maxEntries: number): void {
  if (entries.length > maxEntries) throw new CareofError("too-many", `${String(entries.length)} entries, of at most ${String(maxEntries)}`);
  if (new Set(entries.map(({ home }) => home)).size < entries.length) throw new CareofError("malformed-entries", "an address is listed twice");
}

/** @throws CareofError as `checkHostEntry` and `checkSet` */
export function checkHostSet(entries: readonly HostEntry[], maxEntries: number): void {
  entries.forEach(checkHostEntry);
  checkSet(entries, maxEntries);
}

/** What can be said without a look at the kernel. @throws CareofError `malformed-port`, `unsupported-address` */
export function checkPorts(ports: readonly VmPort[]): void {
  if (new Set(ports.map(({ name }) => name)).size < ports.length) throw new CareofError("malformed-port", "a port is listed twice");
  for (const { homeAddresses, name } of ports) {
    requireInterfaceName(name);
    homeAddresses.forEach(requireV4);
  }
}
