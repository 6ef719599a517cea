import { addressBytes, addressFromBytes, isV4, type Ipv4 } from "../../model/address.js";
import { ENODEV, ENOENT, errnoOf } from "../errno.js";
import { decodeAttributes, encodeAttributes, raw, u8 } from "./attributes.js";
import { NLM_F_CREATE, NLM_F_REPLACE, type Netlink, type Request } from "./client.js";

/** An address for which the kernel answers ARP requests on one interface, as long as its route to the address leads over another one. */
export interface ProxyNeighbour {
  readonly device: number;
  readonly address: Ipv4;
  /** Who made it, as of a route; 0 when nobody said. */
  readonly protocol: number;
}

const RTM_NEWNEIGH = 28;
const RTM_DELNEIGH = 29;
const RTM_GETNEIGH = 30;
const AF_INET = 2;
/** Survives a loss of carrier; without it the kernel would forget. */
const NUD_PERMANENT = 0x80;
const NTF_PROXY = 0x08;
const NDA_DST = 1;
const NDA_PROTOCOL = 12;
const HEADER = 12;

function header(device: number, state: number): Buffer {
  const bytes = Buffer.alloc(HEADER);
  bytes.writeUInt8(AF_INET, 0);
  bytes.writeInt32LE(device, 4);
  bytes.writeUInt16LE(state, 8);
  bytes.writeUInt8(NTF_PROXY, 10);
  return bytes;
}

/** Idempotent. */
export function proxyRequest({ device, address, protocol }: ProxyNeighbour): Request {
  const body = Buffer.concat([header(device, NUD_PERMANENT), encodeAttributes([raw(NDA_DST, addressBytes(address)), u8(NDA_PROTOCOL, protocol)])]);
  return { type: RTM_NEWNEIGH, flags: NLM_F_CREATE | NLM_F_REPLACE, body, what: `to answer for ${address}` };
}

/** False when there was none; the interface may be gone. */
export function deleteProxy(netlink: Netlink, { device, address }: Omit<ProxyNeighbour, "protocol">): boolean {
  const body = Buffer.concat([header(device, 0), encodeAttributes([raw(NDA_DST, addressBytes(address))])]);
  try {
    netlink.request({ type: RTM_DELNEIGH, flags: 0, body, what: `to answer for ${address} no more` });
    return true;
  } catch (thrown) {
    if (errnoOf(thrown) !== ENOENT && errnoOf(thrown) !== ENODEV) throw thrown;
    return false;
  }
}

/** Those of all interfaces, IPv4. */
export function listProxies(netlink: Netlink): ProxyNeighbour[] {
  return netlink.dump({ type: RTM_GETNEIGH, flags: 0, body: header(0, 0), what: "the list of proxied addresses" }).flatMap(({ type, body }) => {
    if (type !== RTM_NEWNEIGH || body.length < HEADER || (body.readUInt8(10) & NTF_PROXY) === 0) return [];
    const attributes = decodeAttributes(body.subarray(HEADER));
    const destination = attributes.get(NDA_DST);
    const address = destination === undefined ? null : addressFromBytes(destination);
    return address !== null && isV4(address) ? [{ device: body.readInt32LE(4), address, protocol: attributes.get(NDA_PROTOCOL)?.[0] ?? 0 }] : [];
  });
}
