import { macBytes, type Mac } from "../../model/address.js";
import { CareofError } from "../../model/errors.js";
import { ENODEV, errnoOf } from "../errno.js";
import { decodeAttributes, encodeAttributes, raw, readText, readU32, text, u32, type Attribute } from "./attributes.js";
import type { Netlink, Reply, Request } from "./client.js";

/** An interface as the kernel has it. */
export interface Link {
  readonly index: number;
  readonly name: string;
  /** ARPHRD: 1 is Ethernet. */
  readonly hardware: number;
  readonly up: boolean;
  /** Up, and somebody is at the other end of the cable. */
  readonly carrier: boolean;
  /** Lower case with colons; empty where the link has none. */
  readonly mac: string;
  readonly mtu: number;
  readonly queueLength: number;
  /** Packets that the kernel had for it and dropped, since it was made: of a TAP, those that found its queue full. */
  readonly dropped: number;
  /** `ifalias`: free text that says who made it. */
  readonly alias: string;
}

/** What of a link shall change; the rest stays. */
export interface LinkChange {
  readonly up?: boolean;
  readonly mac?: Mac;
  readonly mtu?: number;
  readonly queueLength?: number;
  readonly alias?: string;
}

export const ETHERNET = 1;

export const RTM_NEWLINK = 16;
export const RTM_DELLINK = 17;
const RTM_GETLINK = 18;
const IFF_UP = 1;
const IFF_LOWER_UP = 0x10000;
const IFLA_ADDRESS = 1;
const IFLA_IFNAME = 3;
const IFLA_MTU = 4;
const IFLA_TXQLEN = 13;
const IFLA_IFALIAS = 20;
const IFLA_STATS64 = 23;
/** In `struct rtnl_link_stats64`. */
const TX_DROPPED = 7 * 8;
const HEADER = 16;

function header(index: number, flags = 0, change = 0): Buffer {
  const bytes = Buffer.alloc(HEADER);
  bytes.writeInt32LE(index, 4);
  bytes.writeUInt32LE(flags, 8);
  bytes.writeUInt32LE(change, 12);
  return bytes;
}

/** Of an RTM_NEWLINK or RTM_DELLINK. @throws CareofError `malformed-netlink` */
export function decodeLink({ body }: Reply): Link {
  if (body.length < HEADER) throw new CareofError("malformed-netlink", "a link's message is too short");
  const attributes = decodeAttributes(body.subarray(HEADER));
  return {
    index: body.readInt32LE(4),
    name: readText(attributes, IFLA_IFNAME) ?? "",
    hardware: body.readUInt16LE(2),
    up: (body.readUInt32LE(8) & IFF_UP) !== 0,
    carrier: (body.readUInt32LE(8) & IFF_UP) !== 0 && (body.readUInt32LE(8) & IFF_LOWER_UP) !== 0,
    mac: [...(attributes.get(IFLA_ADDRESS) ?? [])].map((byte) => byte.toString(16).padStart(2, "0")).join(":"),
    mtu: readU32(attributes, IFLA_MTU) ?? 0,
    queueLength: readU32(attributes, IFLA_TXQLEN) ?? 0,
    dropped: Number(attributes.get(IFLA_STATS64)?.readBigUInt64LE(TX_DROPPED) ?? 0n),
    alias: readText(attributes, IFLA_IFALIAS) ?? "",
  };
}

export function listLinks(netlink: Netlink): Link[] {
  return netlink.dump({ type: RTM_GETLINK, flags: 0, body: header(0), what: "the list of interfaces" }).filter(({ type }) => type === RTM_NEWLINK).map(decodeLink);
}

/** `null` where there is no interface of that name. */
export function findLink(netlink: Netlink, name: string): Link | null {
  const body = Buffer.concat([header(0), encodeAttributes([text(IFLA_IFNAME, name)])]);
  try {
    return decodeLink(netlink.get({ type: RTM_GETLINK, flags: 0, body, what: `to describe interface ${name}` }));
  } catch (thrown) {
    if (errnoOf(thrown) === ENODEV) return null;
    throw thrown;
  }
}

/** @throws CareofError `no-link` */
export function requireLink(netlink: Netlink, name: string): Link {
  const link = findLink(netlink, name);
  if (link === null) throw new CareofError("no-link", `there is no interface "${name}"`, { retryable: true });
  return link;
}

export function changeLink(netlink: Netlink, link: Link, change: LinkChange): void {
  const attributes: Attribute[] = [];
  if (change.mac !== undefined && change.mac !== link.mac) attributes.push(raw(IFLA_ADDRESS, macBytes(change.mac)));
  if (change.mtu !== undefined && change.mtu !== link.mtu) attributes.push(u32(IFLA_MTU, change.mtu));
  if (change.queueLength !== undefined && change.queueLength !== link.queueLength) attributes.push(u32(IFLA_TXQLEN, change.queueLength));
  if (change.alias !== undefined && change.alias !== link.alias) attributes.push(text(IFLA_IFALIAS, change.alias));
  const turned = change.up !== undefined && change.up !== link.up;
  if (attributes.length === 0 && !turned) return;
  const body = Buffer.concat([header(link.index, change.up === true ? IFF_UP : 0, turned ? IFF_UP : 0), encodeAttributes(attributes)]);
  netlink.request({ type: RTM_NEWLINK, flags: 0, body, what: `a change of interface ${link.name}` });
}

export function deleteLink(netlink: Netlink, link: Link): void {
  netlink.request(deletionOf(link));
}

/** The kernel waits until no processor uses the interface any more, which takes 15 to 20 ms: others go on meanwhile. See `Netlink.requestInBackground`. */
export function deleteLinkInBackground(netlink: Netlink, link: Link): Promise<void> {
  return netlink.requestInBackground(deletionOf(link));
}

function deletionOf({ index, name }: Link): Request {
  return { type: RTM_DELLINK, flags: 0, body: header(index), what: `to remove interface ${name}` };
}
