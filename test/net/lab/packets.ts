import { addressBytes, addressFromBytes, isV4, macBytes, type Ipv4, type Mac } from "../../../model/address.js";

/** IPv4 as a test writes or reads it. */
export interface Packet {
  readonly source: Ipv4;
  readonly destination: Ipv4;
  readonly protocol: number;
  readonly payload: Buffer;
  readonly ttl: number;
  readonly tos: number;
  readonly id: number;
  readonly dontFragment: boolean;
  /** In units of 8 bytes, with the more-fragments bit as 0x2000. */
  readonly fragment: number;
}

export type Sketch = Pick<Packet, "source" | "destination"> & Partial<Packet>;

/** RFC 3692: for experiments; no kernel does anything with it but answer "protocol unreachable". */
export const TEST_PROTOCOL = 254;
export const ICMP = 1;
export const IPIP = 4;

export function checksum(bytes: Buffer): number {
  let sum = 0;
  for (let at = 0; at + 1 < bytes.length; at += 2) sum += bytes.readUInt16BE(at);
  if (bytes.length % 2 === 1) sum += (bytes[bytes.length - 1] ?? 0) << 8;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

export function encode(sketch: Sketch): Buffer {
  const { destination, dontFragment = true, fragment = 0, id = 0, payload = Buffer.alloc(0), protocol = TEST_PROTOCOL, source, tos = 0, ttl = 64 } = sketch;
  const header = Buffer.alloc(20);
  header.writeUInt8(0x45, 0);
  header.writeUInt8(tos, 1);
  header.writeUInt16BE(20 + payload.length, 2);
  header.writeUInt16BE(id, 4);
  header.writeUInt16BE((dontFragment ? 0x4000 : 0) | fragment, 6);
  header.writeUInt8(ttl, 8);
  header.writeUInt8(protocol, 9);
  header.set(addressBytes(source), 12);
  header.set(addressBytes(destination), 16);
  header.writeUInt16BE(checksum(header), 10);
  return Buffer.concat([header, payload]);
}

/** `null` unless a whole IPv4 packet with a right header checksum. */
export function decode(bytes: Buffer): Packet | null {
  if (bytes.length < 20 || bytes[0] !== 0x45 || checksum(bytes.subarray(0, 20)) !== 0 || bytes.readUInt16BE(2) > bytes.length) return null;
  const source = addressFromBytes(bytes.subarray(12, 16));
  const destination = addressFromBytes(bytes.subarray(16, 20));
  if (!isV4(source) || !isV4(destination)) return null;
  return {
    source, destination,
    protocol: bytes.readUInt8(9),
    payload: bytes.subarray(20, bytes.readUInt16BE(2)),
    ttl: bytes.readUInt8(8),
    tos: bytes.readUInt8(1),
    id: bytes.readUInt16BE(4),
    dontFragment: (bytes.readUInt16BE(6) & 0x4000) !== 0,
    fragment: bytes.readUInt16BE(6) & 0x3fff,
  };
}

export const ETHERTYPE = { ipv4: 0x0800, arp: 0x0806, vlan: 0x8100, ipv6: 0x86dd, rarp: 0x8035 } as const;

export function frame(destination: Mac, source: Mac, type: number, payload: Buffer): Buffer {
  const header = Buffer.alloc(14);
  header.set(macBytes(destination), 0);
  header.set(macBytes(source), 6);
  header.writeUInt16BE(type, 12);
  return Buffer.concat([header, payload]);
}

/** Who has `wanted`? Asked by broadcast. */
export function arpRequest(sender: { readonly mac: Mac; readonly address: Ipv4 }, wanted: Ipv4): Buffer {
  const body = Buffer.alloc(28);
  body.writeUInt16BE(1, 0);
  body.writeUInt16BE(ETHERTYPE.ipv4, 2);
  body.writeUInt8(6, 4);
  body.writeUInt8(4, 5);
  body.writeUInt16BE(1, 6);
  body.set(macBytes(sender.mac), 8);
  body.set(addressBytes(sender.address), 14);
  body.set(addressBytes(wanted), 24);
  const header = Buffer.alloc(14, 0xff);
  header.set(macBytes(sender.mac), 6);
  header.writeUInt16BE(ETHERTYPE.arp, 12);
  return Buffer.concat([header, body]);
}
