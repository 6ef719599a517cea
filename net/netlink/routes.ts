import { addressBytes, addressFromBytes, ipv4, isV4, type IpAddress, type Ipv4, type Prefix } from "../../model/address.js";
import { ENODEV, ENOENT, errnoOf, ESRCH } from "../errno.js";
import { decodeAttributes, encodeAttributes, nested, raw, readU32, u32, u8, type Attribute } from "./attributes.js";
import { NLM_F_CREATE, NLM_F_REPLACE, type Netlink, type Request } from "./client.js";

/** Who made a route: rtm_protocol, so that our own are told from others', after a crash too. 202 and 203 are assigned to nobody. */
export const HOME_AGENT_PROTOCOL = 202;
export const HOST_PROTOCOL = 203;

export const MAIN_TABLE = 254;

export interface Route {
  readonly destination: Prefix;
  readonly table: number;
  readonly protocol: number;
  /** `null`: unreachable. */
  readonly device: number | null;
  /** Next hop on that device, whether or not an address there says that it is on link; `null`: the destination itself is. */
  readonly via: Ipv4 | null;
  /** Bytes; 0 leaves it to the device. */
  readonly mtu: number;
  /** Smaller wins. */
  readonly metric: number;
  /** Outer addresses, where `device` is a tunnel that takes them from the route. */
  readonly encap?: Encap | null;
  /** Address of this machine's that what it says itself on this route shall come from. */
  readonly source?: Ipv4 | null;
}

/** `encap ip`: the outer TTL is 64, DSCP and ECN are the inner header's, DF is set always (RFC 2003 §5.1; a packet that may be cut is cut before). */
export interface Encap {
  readonly source: Ipv4;
  readonly destination: Ipv4;
}

const RTM_NEWROUTE = 24;
const RTM_DELROUTE = 25;
const RTM_GETROUTE = 26;
const AF_INET = 2;
const RTA_DST = 1;
const RTA_OIF = 4;
const RTA_GATEWAY = 5;
const RTA_PRIORITY = 6;
const RTA_PREFSRC = 7;
const RTA_METRICS = 8;
const RTA_TABLE = 15;
const RTA_ENCAP_TYPE = 21;
const RTA_ENCAP = 22;
const LWTUNNEL_ENCAP_IP = 2;
const LWTUNNEL_IP_ID = 1;
const LWTUNNEL_IP_DST = 2;
const LWTUNNEL_IP_SRC = 3;
const LWTUNNEL_IP_TTL = 4;
const LWTUNNEL_IP_TOS = 5;
const LWTUNNEL_IP_FLAGS = 6;
/** TUNNEL_DONT_FRAGMENT, in network order. */
const DONT_FRAGMENT = Uint8Array.of(1, 0);
const OUTER_TTL = 64;
const INHERIT = 1;
const RTAX_MTU = 2;
const RTNH_F_ONLINK = 4;
const RTN_UNICAST = 1;
const RTN_UNREACHABLE = 7;
const SCOPE_UNIVERSE = 0;
const SCOPE_LINK = 253;
const ANY_TABLE = 252;
const HEADER = 12;
/** In `body`: behind the header, RTA_TABLE and the head of RTA_DST. */
const DESTINATION_AT = HEADER + 8 + 4;

function body(route: Route): Buffer {
  const header = Buffer.allocUnsafe(HEADER).fill(0);
  header.writeUInt8(AF_INET, 0);
  header.writeUInt8(route.destination.length, 1);
  header.writeUInt8(route.table < 256 ? route.table : ANY_TABLE, 4);
  header.writeUInt8(route.protocol, 5);
  header.writeUInt8(route.device !== null && route.via === null ? SCOPE_LINK : SCOPE_UNIVERSE, 6);
  header.writeUInt8(route.device === null ? RTN_UNREACHABLE : RTN_UNICAST, 7);
  header.writeUInt32LE(route.via === null ? 0 : RTNH_F_ONLINK, 8);
  const { encap = null, source = null } = route;
  const attributes: Attribute[] = [u32(RTA_TABLE, route.table)];
  if (route.destination.length > 0) attributes.push(raw(RTA_DST, addressBytes(route.destination.address)));
  if (route.device !== null) attributes.push(u32(RTA_OIF, route.device));
  if (route.via !== null) attributes.push(raw(RTA_GATEWAY, addressBytes(route.via)));
  if (source !== null) attributes.push(raw(RTA_PREFSRC, addressBytes(source)));
  if (encap !== null) attributes.push(...encapsulation(encap));
  if (route.metric > 0) attributes.push(u32(RTA_PRIORITY, route.metric));
  if (route.mtu > 0) attributes.push(nested(RTA_METRICS, [u32(RTAX_MTU, route.mtu)]));
  return Buffer.concat([header, encodeAttributes(attributes)]);
}

function encapsulation({ destination, source }: Encap): Attribute[] {
  const type = Buffer.alloc(2);
  type.writeUInt16LE(LWTUNNEL_ENCAP_IP);
  const inner = [
    raw(LWTUNNEL_IP_ID, new Uint8Array(8)), raw(LWTUNNEL_IP_DST, addressBytes(destination)), raw(LWTUNNEL_IP_SRC, addressBytes(source)),
    u8(LWTUNNEL_IP_TTL, OUTER_TTL), u8(LWTUNNEL_IP_TOS, INHERIT), raw(LWTUNNEL_IP_FLAGS, DONT_FRAGMENT),
  ];
  return [raw(RTA_ENCAP_TYPE, type), nested(RTA_ENCAP, inner)];
}

/** Adds it, or replaces the route with the same destination, table and metric. */
export function routeRequest(route: Route): Request {
  const what = `the route to ${route.destination.address}/${String(route.destination.length)}`;
  return { type: RTM_NEWROUTE, flags: NLM_F_CREATE | NLM_F_REPLACE, body: body(route), what };
}

/**
 * `routeRequest` for many that differ from `like`, which has a destination of 32 bits, in address and MTU alone: the bytes of one are written for each MTU and the
 * address is put into copies of them.
 */
export function homeRouteRequests(like: Route, homes: readonly { readonly home: IpAddress; readonly mtu: number }[]): Request[] {
  const patterns = new Map<number, Buffer>();
  return homes.map(({ home, mtu }) => {
    let pattern = patterns.get(mtu);
    if (pattern === undefined) {
      pattern = body({ ...like, mtu });
      patterns.set(mtu, pattern);
    }
    const bytes = Buffer.allocUnsafe(pattern.length);
    bytes.set(pattern);
    bytes.set(addressBytes(home), DESTINATION_AT);
    return { type: RTM_NEWROUTE, flags: NLM_F_CREATE | NLM_F_REPLACE, body: bytes, what: "a home address's route" };
  });
}

export function putRoute(netlink: Netlink, route: Route): void {
  netlink.request(routeRequest(route));
}

/** Idempotent; the interface may be gone. */
export function deleteRoute(netlink: Netlink, route: Route): void {
  try {
    // Destination, table, metric and device name it well enough; outer addresses would have to be the same to the flag.
    netlink.request({ type: RTM_DELROUTE, flags: 0, body: body({ ...route, encap: null }), what: `to remove the route to ${route.destination.address}` });
  } catch (thrown) {
    const errno = errnoOf(thrown);
    if (errno !== ESRCH && errno !== ENOENT && errno !== ENODEV) throw thrown;
  }
}

/** The IPv4 routes of one protocol number, in all tables. A hundred thousand of them mostly differ in their address alone, so what is as in the one before is not read again. */
export function listRoutes(netlink: Pick<Netlink, "dump">, protocol: number): Route[] {
  const header = Buffer.alloc(HEADER);
  header.writeUInt8(AF_INET, 0);
  const found: Route[] = [];
  let before: { readonly bytes: Buffer; readonly route: Route } | null = null;
  for (const { body: bytes, type } of netlink.dump({ type: RTM_GETROUTE, flags: 0, body: header, what: "the list of routes" })) {
    if (type !== RTM_NEWROUTE || bytes.length < HEADER || bytes.readUInt8(5) !== protocol) continue;
    const address = before === null || !differsInAddressAlone(before.bytes, bytes) ? null : v4(bytes.subarray(DESTINATION_AT, DESTINATION_AT + 4));
    if (before === null || address === null) before = { bytes, route: decodeRoute(bytes) };
    found.push(address === null ? before.route : { ...before.route, destination: { address, length: before.route.destination.length } });
  }
  return found;
}

/** Whether RTA_DST stands where the kernel writes it, and all else is the same. */
function differsInAddressAlone(one: Buffer, other: Buffer): boolean {
  const [head, tail, end] = [DESTINATION_AT, DESTINATION_AT + 4, one.length];
  if (other.length !== end || end < tail || one.readUInt16LE(head - 4) !== 8 || one.readUInt16LE(head - 2) !== RTA_DST) return false;
  return one.compare(other, 0, head, 0, head) === 0 && one.compare(other, tail, end, tail, end) === 0;
}

function decodeRoute(bytes: Buffer): Route {
  const attributes = decodeAttributes(bytes.subarray(HEADER));
  const metrics = attributes.get(RTA_METRICS);
  return {
    destination: { address: v4(attributes.get(RTA_DST)) ?? ipv4("0.0.0.0"), length: bytes.readUInt8(1) },
    table: readU32(attributes, RTA_TABLE) ?? bytes.readUInt8(4),
    protocol: bytes.readUInt8(5),
    device: readU32(attributes, RTA_OIF),
    via: v4(attributes.get(RTA_GATEWAY)),
    mtu: metrics === undefined ? 0 : (readU32(decodeAttributes(metrics), RTAX_MTU) ?? 0),
    metric: readU32(attributes, RTA_PRIORITY) ?? 0,
    encap: encapOf(attributes),
    source: v4(attributes.get(RTA_PREFSRC)),
  };
}

function encapOf(attributes: ReadonlyMap<number, Buffer>): Encap | null {
  const bytes = attributes.get(RTA_ENCAP);
  if (bytes === undefined || attributes.get(RTA_ENCAP_TYPE)?.[0] !== LWTUNNEL_ENCAP_IP) return null;
  const inner = decodeAttributes(bytes);
  const source = v4(inner.get(LWTUNNEL_IP_SRC));
  const destination = v4(inner.get(LWTUNNEL_IP_DST));
  return source === null || destination === null ? null : { source, destination };
}

function v4(bytes: Buffer | undefined): Ipv4 | null {
  if (bytes === undefined) return null;
  const address = addressFromBytes(bytes);
  return isV4(address) ? address : null;
}
