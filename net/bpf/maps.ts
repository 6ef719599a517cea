import { readFileSync } from "node:fs";
import { EEXIST, ENOENT, ENOMEM, refused } from "../errno.js";
import { addressOf, bpf, close } from "../syscall.js";
import type { MapDefinition } from "./elf.js";

const MAP_CREATE = 0;
const MAP_LOOKUP = 1;
const MAP_UPDATE = 2;
const MAP_DELETE = 3;
const MAP_NEXT_KEY = 4;
const OBJ_PIN = 6;
const OBJ_GET = 7;
const OBJ_INFO = 15;

const PERCPU_HASH = 5;
const PERCPU_ARRAY = 6;
const NO_EXIST = 1;

/**
 * A map that is not reserved as a whole takes its elements from a small pool per CPU, which the kernel refills a moment after it has run low: many new entries in a
 * row may find it empty.
 */
const MEMORY_TRIES = 100;
const MEMORY_PAUSE_MS = 1;
const PAUSE = new Int32Array(new SharedArrayBuffer(4));

/** Did the kernel refuse for want of memory that it may have in a moment? Waits for that moment. `attempt` counts from 0. */
export function waitForMemory(result: number, attempt: number): boolean {
  if (result !== -ENOMEM || attempt >= MEMORY_TRIES) return false;
  Atomics.wait(PAUSE, 0, 0, MEMORY_PAUSE_MS);
  return true;
}

/** A map of the kernel's. Keys and values are copied in and out. @throws CareofError `kernel-refused` */
export class BpfMap {
  readonly definition: MapDefinition;
  readonly fd: number;
  readonly #key: Buffer;
  readonly #nextKey: Buffer;
  readonly #value: Buffer;
  /** fd, key, value (or next key), flags: made once, so that an update is one call. */
  readonly #attributes = Buffer.allocUnsafeSlow(32);

  constructor(fd: number, definition: MapDefinition) {
    this.fd = fd;
    this.definition = definition;
    this.#key = Buffer.allocUnsafeSlow(definition.keySize);
    this.#nextKey = Buffer.allocUnsafeSlow(definition.keySize);
    this.#value = Buffer.allocUnsafeSlow(this.#isPerCpu() ? perCpuStride(definition.valueSize) * possibleCpus() : definition.valueSize);
    this.#attributes.fill(0);
    this.#attributes.writeUInt32LE(fd, 0);
    this.#attributes.writeBigUInt64LE(addressOf(this.#key), 8);
  }

  /** Replaces the whole value at once: a program sees the old one or the new one. A value shorter than a per-CPU one is filled up with zeros. */
  update(key: Uint8Array, value: Uint8Array): void {
    const errno = this.#write(key, value, 0);
    if (errno !== 0) throw refused(`an entry of map ${this.definition.name}`, errno, "BPF_MAP_UPDATE_ELEM");
  }

  /** Makes the entry, all zeros, unless there is one. Was there none? */
  ensure(key: Uint8Array): boolean {
    const errno = this.#write(key, new Uint8Array(0), NO_EXIST);
    if (errno === 0) return true;
    if (errno !== EEXIST) throw refused(`an entry of map ${this.definition.name}`, errno, "BPF_MAP_UPDATE_ELEM");
    return false;
  }

  /** `null` when there is no such entry. Of a per-CPU map: all CPUs' values, each padded to 8 bytes. The buffer is the caller's. */
  lookup(key: Uint8Array): Buffer | null {
    this.#key.set(key);
    this.#point(this.#value, 0);
    const result = bpf(MAP_LOOKUP, this.#attributes);
    if (result === -ENOENT) return null;
    if (result < 0) throw refused(`to read map ${this.definition.name}`, -result, "BPF_MAP_LOOKUP_ELEM");
    return Buffer.from(this.#value);
  }

  /** Idempotent. */
  delete(key: Uint8Array): void {
    this.#key.set(key);
    this.#attributes.fill(0, 16);
    const result = bpf(MAP_DELETE, this.#attributes);
    if (result < 0 && result !== -ENOENT) throw refused(`to remove from map ${this.definition.name}`, -result, "BPF_MAP_DELETE_ELEM");
  }

  /** Sorted. */
  keys(): Buffer[] {
    const found: Buffer[] = [];
    const attributes = Buffer.alloc(32);
    attributes.writeUInt32LE(this.fd, 0);
    attributes.writeBigUInt64LE(addressOf(this.#nextKey), 16);
    for (;;) {
      const result = bpf(MAP_NEXT_KEY, attributes);
      if (result === -ENOENT || found.length > this.definition.maxEntries) return found.sort((a, b) => Buffer.compare(a, b));
      if (result < 0) throw refused(`to list map ${this.definition.name}`, -result, "BPF_MAP_GET_NEXT_KEY");
      found.push(Buffer.from(this.#nextKey));
      this.#key.set(this.#nextKey);
      attributes.writeBigUInt64LE(addressOf(this.#key), 8);
    }
  }

  /** Bytes of one value as `lookup` returns it. */
  get valueBytes(): number {
    return this.#value.length;
  }

  close(): void {
    close(this.fd);
  }

  #isPerCpu(): boolean {
    return this.definition.type === PERCPU_HASH || this.definition.type === PERCPU_ARRAY;
  }

  #write(key: Uint8Array, value: Uint8Array, flags: number): number {
    this.#key.set(key);
    this.#value.fill(0);
    this.#value.set(value);
    this.#point(this.#value, flags);
    for (let attempt = 0; ; attempt++) {
      const result = bpf(MAP_UPDATE, this.#attributes);
      if (result >= 0) return 0;
      if (!waitForMemory(result, attempt)) return -result;
    }
  }

  #point(value: Buffer, flags: number): void {
    this.#attributes.writeBigUInt64LE(addressOf(value), 16);
    this.#attributes.writeBigUInt64LE(BigInt(flags), 24);
  }
}

export function createMap(definition: MapDefinition): BpfMap {
  const attributes = Buffer.alloc(44);
  attributes.writeUInt32LE(definition.type, 0);
  attributes.writeUInt32LE(definition.keySize, 4);
  attributes.writeUInt32LE(definition.valueSize, 8);
  attributes.writeUInt32LE(definition.maxEntries, 12);
  attributes.writeUInt32LE(definition.flags, 16);
  attributes.write(definition.name.slice(0, 15), 28, "latin1");
  const fd = bpf(MAP_CREATE, attributes);
  if (fd < 0) throw refused(`map ${definition.name}`, -fd, "BPF_MAP_CREATE");
  return new BpfMap(fd, definition);
}

/** `null` when nothing is pinned there, or a map of another shape: what an older version left cannot be used. */
export function openPinnedMap(path: string, definition: MapDefinition): BpfMap | null {
  const name = Buffer.from(`${path}\0`);
  const attributes = Buffer.alloc(16);
  attributes.writeBigUInt64LE(addressOf(name), 0);
  const fd = bpf(OBJ_GET, attributes);
  if (fd === -ENOENT) return null;
  if (fd < 0) throw refused(`to open ${path}`, -fd, "BPF_OBJ_GET");
  if (hasShape(fd, definition)) return new BpfMap(fd, definition);
  close(fd);
  return null;
}

export function pinMap(map: BpfMap, path: string): void {
  const name = Buffer.from(`${path}\0`);
  const attributes = Buffer.alloc(16);
  attributes.writeBigUInt64LE(addressOf(name), 0);
  attributes.writeUInt32LE(map.fd, 8);
  const result = bpf(OBJ_PIN, attributes);
  if (result < 0) throw refused(`to pin ${path}`, -result, "BPF_OBJ_PIN");
}

/** struct bpf_map_info begins: type, id, key size, value size, entries, flags. */
function hasShape(fd: number, wanted: MapDefinition): boolean {
  const info = Buffer.allocUnsafeSlow(80).fill(0);
  const attributes = Buffer.alloc(16);
  attributes.writeUInt32LE(fd, 0);
  attributes.writeUInt32LE(info.length, 4);
  attributes.writeBigUInt64LE(addressOf(info), 8);
  const result = bpf(OBJ_INFO, attributes);
  if (result < 0) throw refused("to describe a pinned map", -result, "BPF_OBJ_GET_INFO_BY_FD");
  const found = [0, 8, 12, 16, 20].map((offset) => info.readUInt32LE(offset));
  return [wanted.type, wanted.keySize, wanted.valueSize, wanted.maxEntries, wanted.flags].every((value, index) => found[index] === value);
}

/** Bytes from one CPU's value to the next one's. */
export function perCpuStride(valueSize: number): number {
  return (valueSize + 7) & ~7;
}

let cpus = 0;

/** As many values as a per-CPU entry has: the CPUs that the machine could ever have, present or not. */
export function possibleCpus(): number {
  if (cpus === 0) {
    const ranges = readFileSync("/sys/devices/system/cpu/possible", "utf8").trim();
    cpus = 1 + Math.max(...ranges.split(/[,-]/).map(Number));
  }
  return cpus;
}
