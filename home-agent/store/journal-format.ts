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

/** Every whole record up to the first that is torn or broken; `end` is where that begins. */
export function readRecords(bytes: Buffer): { readonly records: readonly unknown[]; readonly end: number; readonly length: number } {
  const records: unknown[] = [];
  let at = 0;
  while (at + HEADER <= bytes.length) {
    const length = bytes.readUInt32BE(at);
    const next = at + HEADER + length;
    if (length === 0 || length > MAX_RECORD || next > bytes.length) break;
    const json = bytes.subarray(at + HEADER, next);
    if (crc32(json) !== bytes.readUInt32BE(at + 4)) break;
    records.push(JSON.parse(json.toString("utf8")));
    at = next;
  }
  return { records, end: at, length: bytes.length };
}
