import { putAddressKey, type IpAddress } from "../../model/address.js";
import { ENOENT, refused } from "../errno.js";
import { addressOf, bpf } from "../syscall.js";
import { waitForMemory, type BpfMap } from "./maps.js";

/*
 * Whole tables at a time. A call of the kernel's costs a few microseconds, which with a hundred thousand bindings at a start is the time that people wait.
 */

const LOOKUP_BATCH = 24;
const UPDATE_BATCH = 26;

/** Entries per call: no more memory is needed than for these. */
const CHUNK = 4096;
/** Bytes of values per call; one value of a per-CPU map may be large. */
const CHUNK_BYTES = 1024 * 1024;

const scratch = Buffer.alloc(16);

/** The bytes of an address's key as one string, as `readAll` has them. */
export function keyText(address: IpAddress): string {
  putAddressKey(address, scratch.fill(0), 0);
  return scratch.toString("latin1");
}

/**
 * Every entry of a hash map by the key's bytes as one string, values as `lookup` returns them. An entry that comes or goes meanwhile may be in it or not.
 * @throws CareofError `kernel-refused`
 */
export function readAll(map: BpfMap): Map<string, Buffer> {
  const found = new Map<string, Buffer>();
  const { keySize, name } = map.definition;
  // The kernel wants room for a whole bucket.
  const room = Math.max(64, chunk(map));
  const position = [Buffer.alloc(8), Buffer.alloc(8)] as const;
  const keys = Buffer.allocUnsafeSlow(room * keySize);
  for (let turn = 0; ; turn++) {
    const values = Buffer.allocUnsafeSlow(room * map.valueBytes);
    const attributes = batch(map, keys, values, room);
    const [from, to] = turn % 2 === 0 ? position : [position[1], position[0]];
    if (turn > 0) attributes.writeBigUInt64LE(addressOf(from), 0);
    attributes.writeBigUInt64LE(addressOf(to), 8);
    const result = bpf(LOOKUP_BATCH, attributes);
    if (result < 0 && result !== -ENOENT) throw refused(`to list map ${name}`, -result, "BPF_MAP_LOOKUP_BATCH");
    const count = attributes.readUInt32LE(32);
    for (let i = 0; i < count; i++) {
      found.set(keys.toString("latin1", i * keySize, (i + 1) * keySize), values.subarray(i * map.valueBytes, (i + 1) * map.valueBytes));
    }
    if (result < 0) return found;
  }
}

/** Writes key and value of an item into buffers that are zero there, from these offsets on. */
export type PutEntry<T> = (item: T, keys: Buffer, keyAt: number, values: Buffer, valueAt: number) => void;

/** Sets an entry for each item, each at once for the programs that look at it. @throws CareofError `kernel-refused` */
export function writeAll<T>(map: BpfMap, items: readonly T[], put: PutEntry<T>): void {
  const { keySize } = map.definition;
  const size = Math.min(chunk(map), items.length);
  const keys = Buffer.allocUnsafeSlow(size * keySize);
  const values = Buffer.allocUnsafeSlow(size * map.valueBytes);
  for (let start = 0; start < items.length; start += size) {
    const some = items.slice(start, start + size);
    keys.fill(0);
    values.fill(0);
    some.forEach((item, index) => { put(item, keys, index * keySize, values, index * map.valueBytes); });
    update(map, keys, values, some.length);
  }
}

/** What the kernel did not get done for want of memory it is asked again for. */
function update(map: BpfMap, keys: Buffer, values: Buffer, count: number): void {
  const { keySize, name } = map.definition;
  for (let done = 0, attempt = 0; done < count;) {
    const attributes = batch(map, keys.subarray(done * keySize), values.subarray(done * map.valueBytes), count - done);
    const result = bpf(UPDATE_BATCH, attributes);
    if (result >= 0) return;
    const more = attributes.readUInt32LE(32);
    attempt = more > 0 ? 0 : attempt + 1;
    if (!waitForMemory(result, attempt)) throw refused(`entries of map ${name}`, -result, "BPF_MAP_UPDATE_BATCH");
    done += more;
  }
}

/** struct for BPF_MAP_*_BATCH: in, out, keys, values, count, fd, element flags, flags. */
function batch(map: BpfMap, keys: Buffer, values: Buffer, count: number): Buffer {
  const attributes = Buffer.alloc(56);
  attributes.writeBigUInt64LE(addressOf(keys), 16);
  attributes.writeBigUInt64LE(addressOf(values), 24);
  attributes.writeUInt32LE(count, 32);
  attributes.writeUInt32LE(map.fd, 36);
  return attributes;
}

function chunk(map: BpfMap): number {
  return Math.max(1, Math.min(CHUNK, Math.floor(CHUNK_BYTES / map.valueBytes)));
}
