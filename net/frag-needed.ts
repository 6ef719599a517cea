import { Buffer } from "node:buffer";
import { addressFromBytes, isV4, type Ipv4 } from "../model/address.js";
import { EAGAIN, refused } from "./errno.js";
import { ipHeader } from "./marker.js";
import * as sys from "./syscall.js";

/** A router on the way of a tunnel packet says that it does not fit (RFC 792, RFC 1191 §4): what it quotes of the packet's outer header, and what would fit. */
export interface FragNeeded {
  readonly source: Ipv4;
  readonly destination: Ipv4;
  /** Length in bytes of the packet that did not fit. */
  readonly length: number;
  /** What fits, outer header included; less than `length`. */
  readonly mtu: number;
}

const IP = 20;
const ICMP = 8;
/** RFC 792: the quote has at least this much of what follows the header. */
const QUOTED_BEYOND = 8;
const PROTOCOL = { icmp: 1, ipip: 4 } as const;
const UNREACHABLE = 3;
const FRAG_NEEDED = 4;
const DONT_FRAGMENT = 0x40;
/** RFC 1191 §7.1: what a router that names no MTU may mean. */
const PLATEAUS = [65_535, 32_000, 17_914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68] as const;

/**
 * Reads an ICMP message from its IP header on. `null` for anything but a well-formed "fragmentation needed" about a protocol 4 packet that had DF set and was longer than
 * what is said to fit. That it is about a packet of ours, and on a path that we use, is for the caller to see: anybody can send such a message.
 */
export function decodeFragNeeded(message: Buffer): FragNeeded | null {
  const icmp = afterHeader(message, PROTOCOL.icmp);
  if (icmp === null || icmp.length < ICMP + IP + QUOTED_BEYOND || icmp[0] !== UNREACHABLE || icmp[1] !== FRAG_NEEDED || checksum(icmp) !== 0) return null;
  const quoted = icmp.subarray(ICMP);
  const beyond = afterHeader(quoted, PROTOCOL.ipip);
  if (beyond === null || beyond.length < QUOTED_BEYOND || ((quoted[6] ?? 0) & DONT_FRAGMENT) === 0) return null;
  const source = addressFromBytes(quoted.subarray(12, 16));
  const destination = addressFromBytes(quoted.subarray(16, 20));
  const length = quoted.readUInt16BE(2);
  const mtu = icmp.readUInt16BE(6) === 0 ? plateauBelow(length) : icmp.readUInt16BE(6);
  return isV4(source) && isV4(destination) && mtu < length ? { source, destination, length, mtu } : null;
}

/** What follows an IPv4 header, `null` for a packet of another protocol or a broken one. */
function afterHeader(packet: Buffer, protocol: number): Buffer | null {
  const [first = 0] = packet;
  const header = (first & 15) * 4;
  return first >> 4 === 4 && header >= IP && packet.length >= header && packet[9] === protocol ? packet.subarray(header) : null;
}

function plateauBelow(length: number): number {
  return PLATEAUS.find((plateau) => plateau < length) ?? 0;
}

/** RFC 1071; 0 over a message that holds its own right sum. */
function checksum(bytes: Buffer): number {
  let sum = 0;
  for (let at = 0; at + 1 < bytes.length; at += 2) sum += bytes.readUInt16BE(at);
  if (bytes.length % 2 === 1) sum += (bytes[bytes.length - 1] ?? 0) << 8;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

const AF_INET = 2;
const SOCK_RAW_CLOEXEC_NONBLOCK = 3 | 0o2000000 | 0o4000;
const SOL_RAW = 255;
const ICMP_FILTER = 1;
const MESSAGE_BYTES = 2048;

/** The messages that this machine gets, in the network namespace in which it was made. The kernel hands over "unreachable" alone, and does what it does with them all the same. */
export class FragNeededSocket {
  /** Readable when something has come. */
  readonly descriptor = sys.socket(AF_INET, SOCK_RAW_CLOEXEC_NONBLOCK, PROTOCOL.icmp);
  readonly #buffer = Buffer.allocUnsafeSlow(MESSAGE_BYTES);

  /** @throws CareofError `kernel-refused` */
  constructor() {
    const others = Buffer.alloc(4);
    others.writeUInt32LE(~(1 << UNREACHABLE) >>> 0);
    sys.setSocketOption(this.descriptor, SOL_RAW, ICMP_FILTER, others);
  }

  /** Everything since the last call. @throws CareofError `kernel-refused` */
  read(): FragNeeded[] {
    const found: FragNeeded[] = [];
    for (;;) {
      const length = sys.tryReceive(this.descriptor, this.#buffer);
      if (length === -EAGAIN) return found;
      if (length < 0) throw refused("to receive ICMP", -length, "recv");
      const said = decodeFragNeeded(Buffer.from(this.#buffer.subarray(0, length)));
      if (said !== null) found.push(said);
    }
  }

  close(): void {
    sys.close(this.descriptor);
  }
}

/** RFC 3692: for experiments, as a marker's; a probe says nothing. */
const NOTHING = 253;

/**
 * A tunnel packet of exactly `length` bytes with DF, that no tunnel end delivers: its inner addresses are those of the ends, which are no VM's. The far end counts it as `no-binding` of
 * nobody. If it does not fit somewhere, the router there says so, before a VM's packet has had to find it out.
 */
export function encodeProbe(from: Ipv4, to: Ipv4, length: number): Buffer {
  return Buffer.concat([ipHeader(from, to, PROTOCOL.ipip, length), ipHeader(from, to, NOTHING, length - IP), Buffer.alloc(length - 2 * IP)]);
}
