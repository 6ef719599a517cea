import { addressBytes, addressFromBytes, isV4, type Ipv4 } from "../model/address.js";
import { CareofError } from "../model/errors.js";
import { close, sendTo, socket } from "./syscall.js";

/**
 * A marker says: nothing that was sent before it is still on the way. It travels as the VM's packets do:
 *
 *     outer IPv4, protocol 4         source and destination of the tunnel
 *     inner IPv4, protocol 253       the VM's home address as destination (down) or source (up); RFC 3692's experimental protocol
 *     "careofm1"                     8 bytes
 *     token                          4 bytes, network order, 1 to 2^32 − 1
 *
 * What it cannot know: a multi-queue interface or a router that spreads load by the *inner* headers (fq_codel, ECMP with inner hashing) may let it overtake a packet of
 * another flow by what is queued there at that moment. Whoever relies on it keeps the old host's forwarding as the net below.
 *
 * The data plane stamps its arrival and consumes it, unless the VM's packets go on from there: then it goes with them, behind the last one, and ends at the next host. It takes no marker from inside a tunnel's mouth: neither a guest nor a correspondent can make one.
 */
export interface Marker {
  readonly outer: { readonly source: Ipv4; readonly destination: Ipv4 };
  readonly inner: { readonly source: Ipv4; readonly destination: Ipv4 };
  readonly token: number;
}

const IP_HEADER = 20;
const IPIP = 4;
const EXPERIMENTAL = 253;
const TTL = 64;
const MAGIC = Buffer.from("careofm1", "latin1");
const LENGTH = 2 * IP_HEADER + MAGIC.length + 4;

/** @throws CareofError `malformed-marker` for a token out of range */
export function encodeMarker({ inner, outer, token }: Marker): Buffer {
  if (!Number.isInteger(token) || token < 1 || token > 0xffff_ffff) throw new CareofError("malformed-marker", `${String(token)} is not a marker's token`);
  const payload = Buffer.alloc(MAGIC.length + 4);
  payload.set(MAGIC);
  payload.writeUInt32BE(token, MAGIC.length);
  return Buffer.concat([ipHeader(outer.source, outer.destination, IPIP, LENGTH), ipHeader(inner.source, inner.destination, EXPERIMENTAL, LENGTH - IP_HEADER), payload]);
}

/** The inverse, from the outer header on; `null` for any other packet. */
export function decodeMarker(packet: Buffer): Marker | null {
  if (packet.length < LENGTH || packet[0] !== 0x45 || packet[9] !== IPIP || packet[IP_HEADER] !== 0x45 || packet[IP_HEADER + 9] !== EXPERIMENTAL) return null;
  if (!packet.subarray(2 * IP_HEADER, 2 * IP_HEADER + MAGIC.length).equals(MAGIC)) return null;
  const addresses = [12, 16, IP_HEADER + 12, IP_HEADER + 16].map((at) => addressFromBytes(packet.subarray(at, at + 4))).filter(isV4);
  const [source, destination, innerSource, innerDestination] = addresses;
  const token = packet.readUInt32BE(2 * IP_HEADER + MAGIC.length);
  if (source === undefined || destination === undefined || innerSource === undefined || innerDestination === undefined || token === 0) return null;
  return { outer: { source, destination }, inner: { source: innerSource, destination: innerDestination }, token };
}

/** Whether the packet, which begins with the inner header, is one: no guest is to see it. */
export function isMarker(inner: Buffer): boolean {
  return inner.length >= LENGTH - IP_HEADER && inner[0] === 0x45 && inner[9] === EXPERIMENTAL && inner.subarray(IP_HEADER, IP_HEADER + MAGIC.length).equals(MAGIC);
}

/** RFC 791 §3.1 without options; DF is set, as on a VM's packets as a rule. `length` is the packet's, in bytes. */
export function ipHeader(source: Ipv4, destination: Ipv4, protocol: number, length: number): Buffer {
  const bytes = Buffer.alloc(IP_HEADER);
  bytes.writeUInt8(0x45, 0);
  bytes.writeUInt16BE(length, 2);
  bytes.writeUInt16BE(0x4000, 6);
  bytes.writeUInt8(TTL, 8);
  bytes.writeUInt8(protocol, 9);
  bytes.set(addressBytes(source), 12);
  bytes.set(addressBytes(destination), 16);
  let sum = 0;
  for (let at = 0; at < IP_HEADER; at += 2) sum += bytes.readUInt16BE(at);
  sum = (sum & 0xffff) + (sum >>> 16);
  sum = (sum & 0xffff) + (sum >>> 16);
  bytes.writeUInt16BE(~sum & 0xffff, 10);
  return bytes;
}

const AF_INET = 2;
const SOCK_RAW_CLOEXEC = 3 | 0o2000000;
const IPPROTO_RAW = 255;

/** Sends markers with both headers as given (IP_HDRINCL), from the network namespace in which it was made. */
export class MarkerSocket {
  readonly #fd = socket(AF_INET, SOCK_RAW_CLOEXEC, IPPROTO_RAW);

  /** Returns when the packet is behind all that this machine has put into the same path before. @throws CareofError `kernel-refused` */
  send(marker: Marker): void {
    const address = Buffer.alloc(16);
    address.writeUInt16LE(AF_INET);
    address.set(addressBytes(marker.outer.destination), 4);
    sendTo(this.#fd, encodeMarker(marker), address);
  }

  close(): void {
    close(this.#fd);
  }
}
