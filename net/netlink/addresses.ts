import { addressBytes, addressFromBytes, isV4, type Ipv4, type Prefix } from "../../model/address.js";
import { EADDRNOTAVAIL, errnoOf } from "../errno.js";
import { decodeAttributes, encodeAttributes, raw } from "./attributes.js";
import { NLM_F_CREATE, NLM_F_REPLACE, type Netlink, type Reply } from "./client.js";

export const RTM_NEWADDR = 20;
export const RTM_DELADDR = 21;
const RTM_GETADDR = 22;
const AF_INET = 2;
const IFA_ADDRESS = 1;
const IFA_LOCAL = 2;
const HEADER = 8;

function message(index: number, { address, length }: Prefix): Buffer {
  const header = Buffer.alloc(HEADER);
  header.writeUInt8(AF_INET, 0);
  header.writeUInt8(length, 1);
  header.writeUInt32LE(index, 4);
  const bytes = addressBytes(address);
  return Buffer.concat([header, encodeAttributes([raw(IFA_LOCAL, bytes), raw(IFA_ADDRESS, bytes)])]);
}

/** Idempotent. `prefix.address` is the interface's own, host bits and all. */
export function putAddress(netlink: Netlink, index: number, prefix: Prefix): void {
  const what = `address ${prefix.address}/${String(prefix.length)}`;
  netlink.request({ type: RTM_NEWADDR, flags: NLM_F_CREATE | NLM_F_REPLACE, body: message(index, prefix), what });
}

/** Idempotent. */
export function deleteAddress(netlink: Netlink, index: number, prefix: Prefix): void {
  try {
    netlink.request({ type: RTM_DELADDR, flags: 0, body: message(index, prefix), what: `to remove address ${prefix.address}` });
  } catch (thrown) {
    if (errnoOf(thrown) !== EADDRNOTAVAIL) throw thrown;
  }
}

/** The IPv4 addresses of one interface. */
export function listAddresses(netlink: Netlink, index: number): Prefix[] {
  const header = Buffer.alloc(HEADER);
  header.writeUInt8(AF_INET, 0);
  return netlink.dump({ type: RTM_GETADDR, flags: 0, body: header, what: "the list of addresses" }).flatMap((reply) => {
    const found = reply.type === RTM_NEWADDR ? decodeAddress(reply) : null;
    return found?.device === index ? [{ address: found.address, length: found.length }] : [];
  });
}

/** Of an RTM_NEWADDR or RTM_DELADDR; `null` unless it is one of IPv4. */
export function decodeAddress({ body }: Reply): { readonly device: number; readonly address: Ipv4; readonly length: number } | null {
  if (body.length < HEADER) return null;
  const bytes = decodeAttributes(body.subarray(HEADER)).get(IFA_LOCAL);
  const address = bytes === undefined ? null : addressFromBytes(bytes);
  return address !== null && isV4(address) ? { device: body.readUInt32LE(4), address, length: body.readUInt8(1) } : null;
}
