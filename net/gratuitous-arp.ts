import { addressBytes, macBytes, type Ipv4, type Mac } from "../model/address.js";

const ARP_HEADER = [0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01] as const;
const ETHERTYPE_ARP = [0x08, 0x06] as const;
const BROADCAST = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] as const;
/** The shortest Ethernet frame without its checksum. */
const MIN_FRAME = 60;

/**
 * An Ethernet frame that tells everybody on the link that `address` is at `owner` (RFC 5944 §4.6: sender and target are the address). It is an ARP request, which
 * more implementations take in than a reply (RFC 5227 §3). `from` is the sending interface's own address even where the owner is somebody else: bridges
 * learn from it.
 */
export function gratuitousArp({ address, from, owner }: { readonly address: Ipv4; readonly owner: Mac; readonly from: Mac }): Uint8Array {
  const frame = new Uint8Array(MIN_FRAME);
  frame.set([...BROADCAST, ...macBytes(from), ...ETHERTYPE_ARP, ...ARP_HEADER, ...macBytes(owner), ...addressBytes(address), 0, 0, 0, 0, 0, 0, ...addressBytes(address)]);
  return frame;
}
