import { crc32 } from "node:zlib";
import { CareofError } from "../../model/errors.js";

/**
 * ```
 *  0        4        8             8 + length
 *  ├────────┼────────┼─────────────┤
 *  │ length │ crc32  │ JSON, UTF-8 │   … and the next record
 *  └────────┴────────┴─────────────┘
 * ```
 * Both numbers are unsigned, big-endian; the checksum is of the JSON.
 */
const HEADER = 8;
/** A record's JSON in bytes; a longer length is a torn or broken header. */
export const MAX_RECORD = 16 * 1024 * 1024;

/** @throws CareofError `too-large` */
export function encodeRecord(value: unknown): Buffer {
  const json = Buffer.from(JSON.stringify(value));
  if (json.length > MAX_RECORD) throw new CareofError("too-large", `a record of ${String(json.length)} bytes`);
  const header = Buffer.alloc(HEADER);
  header.writeUInt32BE(json.length, 0);
  header.writeUInt32BE(crc32(json), 4);
  return Buffer.concat([header, json]);
}

export interface Read {
  readonly records: readonly unknown[];
  /** Where the first record begins that is torn or broken, or the file ends. */
  readonly end: number;
  readonly length: number;
  /** What is broken at `end` was once safely on disk: a later record says so (`synced`, see the journal). Never a torn tail. */
  readonly corrupt: boolean;
}

/** Every whole record up to the first that is torn or broken. */
export function readRecords(bytes: Buffer): Read {
  const records: unknown[] = [];
  let at = 0;
  for (let record = recordAt(bytes, at); record !== null; record = recordAt(bytes, at)) {
    records.push(record.value);
    at = record.next;
  }
  return { records, end: at, length: bytes.length, corrupt: at < bytes.length && vouchedFor(bytes, at) };
}

/** Whether a whole record behind the broken one at `broken` says that more than that was on disk when it was written. */
function vouchedFor(bytes: Buffer, broken: number): boolean {
  for (let at = broken + 1; at + HEADER < bytes.length; at++) {
    // Cheap enough for every offset: text has no bytes that make a plausible length.
    if (bytes[at + HEADER] !== OBJECT) continue;
    const record = recordAt(bytes, at);
    if (record === null) continue;
    if (syncedOf(record.value) > broken) return true;
    at = record.next - 1;
  }
  return false;
}

/** `{`, with which every record begins. */
const OBJECT = 0x7b;

function recordAt(bytes: Buffer, at: number): { readonly value: unknown; readonly next: number } | null {
  if (at + HEADER > bytes.length) return null;
  const length = bytes.readUInt32BE(at);
  const next = at + HEADER + length;
  if (length === 0 || length > MAX_RECORD || next > bytes.length) return null;
  const json = bytes.subarray(at + HEADER, next);
  return crc32(json) === bytes.readUInt32BE(at + 4) ? { value: JSON.parse(json.toString("utf8")), next } : null;
}

function syncedOf(record: unknown): number {
  return typeof record === "object" && record !== null && "synced" in record && typeof record.synced === "number" ? record.synced : 0;
}
