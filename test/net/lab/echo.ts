import type { Ipv4, Mac } from "../../../model/address.js";
import { checksum, ICMP } from "./packets.js";
import type { Wire } from "./wire.js";

const REQUEST = 8;
const REPLY = 0;
const IP = 20;

/** What `ping` sends by default, with its headers. */
export const SMALL = 84;

interface Path {
  readonly wire: Wire;
  /** Of the router behind the wire. */
  readonly via: Mac;
  readonly from: Ipv4;
  readonly to: Ipv4;
}

/**
 * Pings once with DF set, in an IP packet of so many bytes, from one end of a wire; the far end's kernel answers. `true` when the same bytes have come back, with a right checksum
 * (within `limitMs`).
 */
export async function pings({ from, to, via, wire }: Path, bytes: number, limitMs?: number): Promise<boolean> {
  const request = Buffer.alloc(bytes - IP, bytes & 0xff);
  request.fill(0, 0, 8);
  request.writeUInt8(REQUEST, 0);
  request.writeUInt16BE(Math.floor(Math.random() * 0x10000), 4);
  request.writeUInt16BE(bytes, 6);
  request.writeUInt16BE(checksum(request), 2);
  wire.forget();
  wire.sendIp(via, { source: from, destination: to, protocol: ICMP, payload: request, dontFragment: true });
  const reply = await wire.packet(({ payload, protocol, source }) => protocol === ICMP && source === to && payload[0] === REPLY && payload.subarray(4).equals(request.subarray(4)), limitMs);
  return reply !== null && reply.payload.length === request.length && checksum(reply.payload) === 0;
}
