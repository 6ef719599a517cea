import { isIPv4, isIPv6 } from "node:net";
import type { Brand } from "./brand.js";
import { CareofError } from "./errors.js";

/** Dotted quad, canonical: `198.51.100.7`. */
export type Ipv4 = Brand<string, "Ipv4">;
/** RFC 5952 text. Carried by the types and the wire; no data plane handles it yet. */
export type Ipv6 = Brand<string, "Ipv6">;
/** One spelling per address, so that two are equal when the strings are. */
export type IpAddress = Ipv4 | Ipv6;
/** An Ethernet address, lower case with colons. */
export type Mac = Brand<string, "Mac">;
export interface Prefix {
  readonly address: Ipv4;
  /** 0 to 32. */
  readonly length: number;
}

/** @throws CareofError `malformed-address` */
export function ipv4(text: string): Ipv4 {
  if (!isIPv4(text)) throw new CareofError("malformed-address", `"${text.slice(0, 60)}" is not an IPv4 address`);
  return text as Ipv4;
}

/** @throws CareofError `malformed-address` */
export function ipAddress(text: string): IpAddress {
  if (isIPv4(text)) return text as Ipv4;
  if (!isIPv6(text) || text.includes("%")) throw new CareofError("malformed-address", `"${text.slice(0, 60)}" is not an IP address`);
  return new URL(`http://[${text}]`).hostname.slice(1, -1) as Ipv6;
}

/** By its spelling: an address that has got its type was checked then. */
export function isV4(address: IpAddress): address is Ipv4 {
  return !address.includes(":");
}

/** 4 or 16 bytes, network order. */
export function addressBytes(address: IpAddress): Uint8Array {
  if (isV4(address)) return v4Bytes(address, new Uint8Array(4), 0);
  const [head = "", tail] = address.split("::");
  const words = (part: string): number[] => (part === "" ? [] : part.split(":").map((word) => parseInt(word, 16)));
  const left = words(head);
  const right = tail === undefined ? [] : words(tail);
  const all = [...left, ...new Array<number>(8 - left.length - right.length).fill(0), ...right];
  return Uint8Array.from(all.flatMap((word) => [word >> 8, word & 0xff]));
}

/** @throws CareofError `malformed-address` unless 4 or 16 bytes. */
export function addressFromBytes(bytes: Uint8Array): IpAddress {
  if (bytes.length === 4) return `${String(bytes[0])}.${String(bytes[1])}.${String(bytes[2])}.${String(bytes[3])}` as Ipv4;
  if (bytes.length !== 16) throw new CareofError("malformed-address", `an address has 4 or 16 bytes, not ${String(bytes.length)}`);
  const words: string[] = [];
  for (let i = 0; i < 16; i += 2) words.push((((bytes[i] ?? 0) << 8) | (bytes[i + 1] ?? 0)).toString(16));
  return ipAddress(words.join(":"));
}

/** The 16-byte form that keys every map of the data plane: IPv4 is mapped (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2). */
export function addressKey(address: IpAddress): Uint8Array {
  return putAddressKey(address, new Uint8Array(16), 0);
}

/** `addressKey` written into 16 bytes of `into` that are zero, from `offset` on. Returns `into`. */
export function putAddressKey(address: IpAddress, into: Uint8Array, offset: number): Uint8Array {
  if (!isV4(address)) {
    into.set(addressBytes(address), offset);
    return into;
  }
  into[offset + 10] = 0xff;
  into[offset + 11] = 0xff;
  return v4Bytes(address, into, offset + 12);
}

/** Digit by digit: a start with many bindings passes here a few hundred thousand times. */
function v4Bytes(address: Ipv4, into: Uint8Array, offset: number): Uint8Array {
  let at = offset;
  for (let i = 0; i < address.length; i++) {
    const digit = address.charCodeAt(i) - 48;
    if (digit < 0) at++;
    else into[at] = (into[at] ?? 0) * 10 + digit;
  }
  return into;
}

/** The inverse of `addressKey`. @throws CareofError `malformed-address` unless 16 bytes. */
export function addressFromKey(key: Uint8Array): IpAddress {
  const mapped = key.length === 16 && key[10] === 0xff && key[11] === 0xff && key.subarray(0, 10).every((byte) => byte === 0);
  return addressFromBytes(mapped ? key.subarray(12) : key);
}

/** @throws CareofError `malformed-mac`; a group (multicast) address is refused too, a VM cannot own one. */
export function mac(text: string): Mac {
  const lower = text.toLowerCase();
  if (!/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/.test(lower) || (parseInt(lower.slice(0, 2), 16) & 1) === 1) {
    throw new CareofError("malformed-mac", `"${text.slice(0, 60)}" is not the Ethernet address of a station`);
  }
  return lower as Mac;
}

export function macBytes(address: Mac): Uint8Array {
  return Uint8Array.from(address.split(":"), (part) => parseInt(part, 16));
}

/** @throws CareofError `malformed-mac` */
export function macFromBytes(bytes: Uint8Array): Mac {
  return mac([...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(":"));
}

/** `198.51.100.0/24`; host bits must be zero. @throws CareofError `malformed-prefix` */
export function prefix(text: string): Prefix {
  const [address = "", length = ""] = text.split("/");
  const bits = /^[0-9]{1,2}$/.test(length) ? Number(length) : 99;
  if (!isIPv4(address) || bits > 32) throw new CareofError("malformed-prefix", `"${text.slice(0, 60)}" is not an IPv4 prefix such as 198.51.100.0/24`);
  const found = { address: address as Ipv4, length: bits };
  if ((ipv4Number(found.address) & ~mask(bits)) !== 0) throw new CareofError("malformed-prefix", `${text} has bits set behind its length`);
  return found;
}

export function inPrefix(address: IpAddress, within: Prefix): boolean {
  return isV4(address) && ((ipv4Number(address) ^ ipv4Number(within.address)) & mask(within.length)) === 0;
}

function mask(length: number): number {
  return length === 0 ? 0 : -1 << (32 - length);
}

/** As a signed 32-bit number, for bit arithmetic. */
function ipv4Number(address: Ipv4): number {
  return address.split(".").reduce((sum, part) => (sum << 8) | Number(part), 0);
}
