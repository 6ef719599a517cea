import { addressBytes, addressFromBytes, isV4, type Prefix } from "../../model/address.js";
import { EADDRNOTAVAIL, errnoOf } from "../errno.js";
import { decodeAttributes, encodeAttributes, raw } from "./attributes.js";
import { NLM_F_CREATE, NLM_F_REPLACE, type Netlink } from "./client.js";

const RTM_NEWADDR = 20;
const RTM_DELADDR = 21;
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
  return netlink.dump({ type: RTM_GETADDR, flags: 0, body: header, what: "the list of addresses" }).flatMap(({ type, body }) => {
    if (type !== RTM_NEWADDR || body.length < HEADER || body.readUInt32LE(4) !== index) return [];
    const bytes = decodeAttributes(body.subarray(HEADER)).get(IFA_LOCAL);
    const address = bytes === undefined ? null : addressFromBytes(bytes);
    return address !== null && isV4(address) ? [{ address, length: body.readUInt8(1) }] : [];
  });
}
