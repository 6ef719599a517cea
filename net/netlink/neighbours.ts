import { addressBytes, addressFromBytes, isV4, macBytes, macFromBytes, type Ipv4, type Mac } from "../../model/address.js";
import { ENODEV, ENOENT, errnoOf } from "../errno.js";
import { decodeAttributes, encodeAttributes, raw } from "./attributes.js";
import { NLM_F_CREATE, NLM_F_REPLACE, type Netlink } from "./client.js";

/** A neighbour that is stated, never learned (NUD_PERMANENT). */
export interface Neighbour {
  readonly device: number;
  readonly address: Ipv4;
  readonly mac: Mac;
}

const RTM_NEWNEIGH = 28;
const RTM_DELNEIGH = 29;
const RTM_GETNEIGH = 30;
const AF_INET = 2;
const NUD_STALE = 0x04;
const NUD_NOARP = 0x40;
const NUD_PERMANENT = 0x80;
const NDA_DST = 1;
const NDA_LLADDR = 2;
const HEADER = 12;

function header(device: number, state: number): Buffer {
  const bytes = Buffer.alloc(HEADER);
  bytes.writeUInt8(AF_INET, 0);
  bytes.writeInt32LE(device, 4);
  bytes.writeUInt16LE(state, 8);
  return bytes;
}

/** Idempotent. */
export function putNeighbour(netlink: Netlink, { device, address, mac }: Neighbour): void {
  const attributes = [raw(NDA_DST, addressBytes(address)), raw(NDA_LLADDR, macBytes(mac))];
  const body = Buffer.concat([header(device, NUD_PERMANENT), encodeAttributes(attributes)]);
  netlink.request({ type: RTM_NEWNEIGH, flags: NLM_F_CREATE | NLM_F_REPLACE, body, what: `neighbour ${address}` });
}

/** As a neighbour's own announcement does: an entry that was learned gets its new Ethernet address, one that is stated or not there is left alone. */
export function updateNeighbour(netlink: Netlink, { device, address, mac }: Neighbour): void {
  const destination = raw(NDA_DST, addressBytes(address));
  try {
    const { body } = netlink.get({ type: RTM_GETNEIGH, flags: 0, body: Buffer.concat([header(device, 0), encodeAttributes([destination])]), what: `neighbour ${address}` });
    if (body.length < HEADER || (body.readUInt16LE(8) & (NUD_PERMANENT | NUD_NOARP)) !== 0) return;
    const known = decodeAttributes(body.subarray(HEADER)).get(NDA_LLADDR);
    if (known?.equals(macBytes(mac)) === true) return;
    const changed = Buffer.concat([header(device, NUD_STALE), encodeAttributes([destination, raw(NDA_LLADDR, macBytes(mac))])]);
    netlink.request({ type: RTM_NEWNEIGH, flags: NLM_F_REPLACE, body: changed, what: `neighbour ${address}` });
  } catch (thrown) {
    if (errnoOf(thrown) !== ENOENT && errnoOf(thrown) !== ENODEV) throw thrown;
  }
}

/** Idempotent; the interface may be gone. */
export function deleteNeighbour(netlink: Netlink, { device, address }: Omit<Neighbour, "mac">): void {
  const body = Buffer.concat([header(device, 0), encodeAttributes([raw(NDA_DST, addressBytes(address))])]);
  try {
    netlink.request({ type: RTM_DELNEIGH, flags: 0, body, what: `to remove neighbour ${address}` });
  } catch (thrown) {
    if (errnoOf(thrown) !== ENOENT && errnoOf(thrown) !== ENODEV) throw thrown;
  }
}

/** The permanent neighbours of one interface. */
export function listNeighbours(netlink: Netlink, device: number): Neighbour[] {
  return netlink.dump({ type: RTM_GETNEIGH, flags: 0, body: header(0, 0), what: "the list of neighbours" }).flatMap(({ type, body }) => {
    if (type !== RTM_NEWNEIGH || body.length < HEADER || body.readInt32LE(4) !== device || body.readUInt16LE(8) !== NUD_PERMANENT) return [];
    const attributes = decodeAttributes(body.subarray(HEADER));
    const destination = attributes.get(NDA_DST);
    const mac = attributes.get(NDA_LLADDR);
    const address = destination === undefined ? null : addressFromBytes(destination);
    return address !== null && isV4(address) && mac?.length === 6 ? [{ device, address, mac: macFromBytes(mac) }] : [];
  });
}
