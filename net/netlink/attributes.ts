import { CareofError } from "../../model/errors.js";

/** One netlink attribute: its type and its payload as it stands on the wire. */
export interface Attribute {
  readonly type: number;
  readonly value: Uint8Array;
}

/** Payload of 1 byte. */
export function u8(type: number, value: number): Attribute {
  return { type, value: Uint8Array.of(value) };
}

/** Payload of 4 bytes in host order. */
export function u32(type: number, value: number): Attribute {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeUInt32LE(value >>> 0);
  return { type, value: bytes };
}

/** Payload of a NUL-terminated string. */
export function text(type: number, value: string): Attribute {
  return { type, value: Buffer.from(`${value}\0`, "utf8") };
}

export function raw(type: number, value: Uint8Array): Attribute {
  return { type, value };
}

/** Attributes inside an attribute. */
export function nested(type: number, inner: readonly Attribute[]): Attribute {
  const flag = 0x8000;
  return { type: type | flag, value: encodeAttributes(inner) };
}

function aligned(length: number): number {
  return (length + 3) & ~3;
}

/** struct nlattr: length (with the header, without the padding), type, payload padded to 4. */
export function encodeAttributes(attributes: readonly Attribute[]): Buffer {
  const total = attributes.reduce((sum, { value }) => sum + 4 + aligned(value.length), 0);
  const bytes = Buffer.allocUnsafe(total).fill(0);
  let at = 0;
  for (const { type, value } of attributes) {
    if (value.length > 0xffff - 4) throw new CareofError("malformed-netlink", `an attribute carries at most 65531 bytes, not ${String(value.length)}`);
    bytes.writeUInt16LE(4 + value.length, at);
    bytes.writeUInt16LE(type, at + 2);
    bytes.set(value, at + 4);
    at += 4 + aligned(value.length);
  }
  return bytes;
}

/**
 * By type, the flag bits (nested, network order) taken off; of equal types the last one wins.
 * @throws CareofError `malformed-netlink` when a length leads out of the buffer
 */
export function decodeAttributes(bytes: Buffer): ReadonlyMap<number, Buffer> {
  const found = new Map<number, Buffer>();
  let at = 0;
  while (at + 4 <= bytes.length) {
    const length = bytes.readUInt16LE(at);
    const type = bytes.readUInt16LE(at + 2) & 0x3fff;
    if (length < 4 || at + length > bytes.length) {
      throw new CareofError("malformed-netlink", `attribute ${String(type)} at ${String(at)} claims ${String(length)} of ${String(bytes.length - at)} bytes`);
    }
    found.set(type, bytes.subarray(at + 4, at + length));
    at += aligned(length);
  }
  return found;
}

/** `null` for an attribute that is not there. @throws CareofError `malformed-netlink` when it is too short */
export function readU32(attributes: ReadonlyMap<number, Buffer>, type: number): number | null {
  const value = attributes.get(type);
  if (value === undefined) return null;
  if (value.length < 4) throw new CareofError("malformed-netlink", `attribute ${String(type)} has ${String(value.length)} bytes instead of 4`);
  return value.readUInt32LE(0);
}

/** `null` for an attribute that is not there. */
export function readText(attributes: ReadonlyMap<number, Buffer>, type: number): string | null {
  const value = attributes.get(type);
  if (value === undefined) return null;
  const end = value.indexOf(0);
  return value.toString("utf8", 0, end < 0 ? value.length : end);
}
