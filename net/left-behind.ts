import { Buffer } from "node:buffer";
import { endianness } from "node:os";

/*
 * What waited in a TAP's queue for a guest that does not run here any more, made into packets that any path carries: a TAP hands out checksums that are still to be made and TCP
 * segments that are still to be cut, with a header that says so (struct virtio_net_hdr, virtio 1.2 §5.1.6).
 */

const ETHERNET = 14;
const IPV4 = 0x0800;
const NEEDS_CHECKSUM = 1;
const GSO_NONE = 0;
const GSO_TCP4 = 1;
const GSO_UDP = 5;
/** Of the type: congestion was notified. */
const GSO_ECN = 0x80;
const TCP = 6;
const UDP = 17;
const [FIN, PSH, CWR] = [0x01, 0x08, 0x80];

/**
 * The IPv4 packets that a frame stands for, whole and with their checksums; none for a frame of another kind, `null` for one that cannot be made whole.
 * `header`: bytes of that header, 10 or 12 as the TAP's reader has asked for, 0 without.
 */
export function wholePackets(frame: Buffer, header: number): readonly Buffer[] | null {
  const packet = Buffer.from(frame.subarray(header + ETHERNET));
  if (frame.length < header + ETHERNET + 20 || frame.readUInt16BE(header + 12) !== IPV4) return [];
  if (header === 0) return [packet];
  const half = (at: number): number => (endianness() === "LE" ? frame.readUInt16LE(at) : frame.readUInt16BE(at));
  const [flags, gso, segment] = [frame[0] ?? 0, (frame[1] ?? 0) & ~GSO_ECN, half(4)];
  const [start, offset] = [half(6) - ETHERNET, half(8)];
  if (gso === GSO_TCP4) return tcpSegments(packet, segment);
  if (gso === GSO_UDP) return udpSegments(packet, segment);
  if (gso !== GSO_NONE) return null;
  if ((flags & NEEDS_CHECKSUM) !== 0) {
    if (start < 20 || start + offset + 2 > packet.length) return null;
    // The field holds the pseudo header's sum (RFC 1071), which the rest is added to.
    packet.writeUInt16BE(notZero(~sum(packet.subarray(start)) & 0xffff, packet[9] ?? 0), start + offset);
  }
  return [packet];
}

/** RFC 9293 §3.1: each with its part of the sequence; FIN and PSH belong to the last one, CWR (RFC 3168) to the first. */
function tcpSegments(packet: Buffer, segment: number): readonly Buffer[] | null {
  const ip = headerLength(packet);
  if (segment === 0 || packet[9] !== TCP || packet.length < ip + 20) return null;
  const headers = ip + ((packet[ip + 12] ?? 0) >> 4) * 4;
  return cut(packet, headers, segment, (one, at, last) => {
    one.writeUInt32BE((packet.readUInt32BE(ip + 4) + at) >>> 0, ip + 4);
    one.writeUInt8((packet[ip + 13] ?? 0) & ~(last ? 0 : FIN | PSH) & ~(at === 0 ? 0 : CWR), ip + 13);
    one.writeUInt16BE(0, ip + 16);
    one.writeUInt16BE(~withPseudoHeader(one, ip) & 0xffff, ip + 16);
  });
}

/** Datagrams of one size that a sender hands over as one (UDP_SEGMENT). */
function udpSegments(packet: Buffer, segment: number): readonly Buffer[] | null {
  const ip = headerLength(packet);
  if (segment === 0 || packet[9] !== UDP) return null;
  return cut(packet, ip + 8, segment, (one) => {
    one.writeUInt16BE(one.length - ip, ip + 4);
    one.writeUInt16BE(0, ip + 6);
    one.writeUInt16BE(notZero(~withPseudoHeader(one, ip) & 0xffff, UDP), ip + 6);
  });
}

/** Pieces of so many bytes behind the same headers; `finish` writes what the transport wants in each. */
function cut(packet: Buffer, headers: number, segment: number, finish: (one: Buffer, at: number, last: boolean) => void): readonly Buffer[] | null {
  if (packet.length < headers) return null;
  const found: Buffer[] = [];
  const data = packet.subarray(headers);
  for (let at = 0; at < data.length; at += segment) {
    const one = Buffer.concat([packet.subarray(0, headers), data.subarray(at, at + segment)]);
    one.writeUInt16BE(one.length, 2);
    one.writeUInt16BE((packet.readUInt16BE(4) + found.length) & 0xffff, 4);
    one.writeUInt16BE(0, 10);
    one.writeUInt16BE(~sum(one.subarray(0, headerLength(packet))) & 0xffff, 10);
    finish(one, at, at + segment >= data.length);
    found.push(one);
  }
  return found;
}

function headerLength(packet: Buffer): number {
  return ((packet[0] ?? 0) & 0x0f) * 4;
}

/** RFC 9293 §3.1, RFC 768: the sum over addresses, protocol, length and what is behind the IP header. */
function withPseudoHeader(packet: Buffer, ip: number): number {
  return sum(packet.subarray(ip), sum(packet.subarray(12, 20)) + (packet[9] ?? 0) + packet.length - ip);
}

/** RFC 1071: the sum in ones' complement of 16 bit words. */
function sum(bytes: Buffer, from = 0): number {
  let total = from;
  for (let at = 0; at + 1 < bytes.length; at += 2) total += bytes.readUInt16BE(at);
  if (bytes.length % 2 === 1) total += (bytes.at(-1) ?? 0) << 8;
  while (total > 0xffff) total = (total & 0xffff) + (total >>> 16);
  return total;
}

/** RFC 768: a UDP checksum of 0 says that there is none. */
function notZero(checksum: number, protocol: number): number {
  return checksum === 0 && protocol === UDP ? 0xffff : checksum;
}
