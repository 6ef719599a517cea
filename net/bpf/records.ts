import { addressFromKey, addressKey, macBytes, macFromBytes, putAddressKey, type IpAddress, type Ipv4, type Mac } from "../../model/address.js";
import { millis, type Millis } from "../../model/ids.js";
import type { Counters, HomeEntry, HostHold, SentOn, Stamps } from "../tunnel.js";
import { perCpuStride } from "./maps.js";

/*
 * The bytes of layout.h, field by field. Numbers are little-endian (the loader refuses other machines).
 */

/** MAX_ACCEPT: care-of addresses in one entry's `accept` or `stragglersFrom`. */
export const MAX_ACCEPT = 8;
/** MAX_HOME_AGENTS of one host. */
export const MAX_HOME_AGENTS = 8;

/**
 * `enum reason`, in its order. Beyond what tunnel.ts names: `fragment` is an outer fragment, `not-ipv4` and `multicast` are what a guest sends and
 * no tunnel carries, `refused` a helper of the kernel's that failed.
 */
export const DROP_REASONS = ["not-listed", "spoofed", "no-binding", "too-big", "loop", "malformed", "fragment", "not-ipv4", "multicast", "refused"] as const;

const ADDRESS = 16;
const CONFIG = 176;
const HOME_ENTRY = 152;
const HOST_ENTRY = 184;
const WAITING = 24;
export const COUNTERS = 168;

const ROLE_DELIVER = 1;
const ROLE_FORWARD = 2;
const HOLD_DIRECT = 1;
const HOLD_STRAGGLERS = 2;
const HOLD_REFUSED = 4;
const OPENING = 4;
const NUMBER_MASK = 0xff_ffffn;
/** `host_entry.held` of an entry that delivers. */
const HELD: Readonly<Record<HostHold["from"], number>> = { "home-agents": HOLD_DIRECT, all: HOLD_DIRECT | HOLD_STRAGGLERS, port: HOLD_REFUSED };
const KINDS: readonly (readonly [keyof SentOn, number])[] = [["directly", HOLD_DIRECT], ["straggler", HOLD_STRAGGLERS]];

const NONE = new Uint8Array(ADDRESS);

export interface InstanceConfig {
  readonly self: Ipv4;
  readonly homeAgents: readonly Ipv4[];
  /** ifindex */
  readonly uplink: number;
  /** Bytes. */
  readonly innerMtu: number;
  readonly gateway: Ipv4;
  readonly decapFlags: bigint;
  readonly hopMac: Mac;
  /** `cutsLong` of this kernel. */
  readonly cutsLong: boolean;
}

export function encodeConfig(config: InstanceConfig): Buffer {
  const bytes = Buffer.alloc(CONFIG);
  bytes.set(addressKey(config.self), 0);
  putAddresses(bytes, 16, config.homeAgents);
  bytes.writeUInt32LE(config.homeAgents.length, 144);
  bytes.writeUInt32LE(config.uplink, 148);
  bytes.writeUInt32LE(config.innerMtu, 152);
  bytes.set(addressKey(config.gateway).subarray(12), 156);
  bytes.writeBigUInt64LE(config.decapFlags, 160);
  bytes.set(macBytes(config.hopMac), 168);
  bytes.writeUInt8(config.cutsLong ? 1 : 0, 174);
  return bytes;
}

export function encodeHomeEntry(entry: HomeEntry): Buffer {
  return putHomeEntry(entry, Buffer.alloc(HOME_ENTRY), 0);
}

/** `encodeHomeEntry` written into bytes of `into` that are zero, from `offset` on. Returns `into`. */
export function putHomeEntry(entry: HomeEntry, into: Buffer, offset: number): Buffer {
  if (entry.active !== null) putAddressKey(entry.active, into, offset);
  putAddresses(into, offset + 16, entry.accept);
  into.writeUInt32LE(entry.accept.length, offset + 144);
  into.writeUInt32LE(entry.mtu, offset + 148);
  return into;
}

export function decodeHomeEntry(home: IpAddress, bytes: Buffer): HomeEntry {
  const active = bytes.subarray(0, ADDRESS);
  return {
    home,
    active: active.equals(NONE) ? null : addressFromKey(active),
    accept: getAddresses(bytes, 16, bytes.readUInt32LE(144)),
    mtu: bytes.readUInt32LE(148),
  };
}

/** A host's entry as the kernel has it: the port, and the device where packets wait, are an ifindex. */
export type HostRecord =
  | { readonly role: "deliver"; readonly port: number; readonly mac: Mac; readonly portMac: Mac; readonly stragglersFrom: readonly IpAddress[]; readonly hold: { readonly device: number; readonly from: HostHold["from"] } | null }
  | { readonly role: "forward"; readonly to: IpAddress; readonly sender: { readonly port: number; readonly mac: Mac } | null; readonly hold: { readonly device: number; readonly stragglersFrom: readonly IpAddress[]; readonly mac: Mac } | null };

export function encodeHostRecord(record: HostRecord): Buffer {
  const bytes = Buffer.alloc(HOST_ENTRY);
  if (record.role === "forward") {
    bytes.writeUInt32LE(ROLE_FORWARD, 0);
    bytes.set(addressKey(record.to), 20);
    if (record.sender !== null) {
      bytes.writeUInt32LE(record.sender.port, 4);
      bytes.set(macBytes(record.sender.mac), 8);
    }
    if (record.hold !== null) {
      bytes.set(macBytes(record.hold.mac), 8);
      putAddresses(bytes, 36, record.hold.stragglersFrom);
      bytes.writeUInt32LE(record.hold.stragglersFrom.length, 164);
      bytes.writeUInt32LE(record.hold.device, 168);
      bytes.writeUInt32LE(HOLD_STRAGGLERS, 172);
    }
    return bytes;
  }
  bytes.writeUInt32LE(ROLE_DELIVER, 0);
  bytes.writeUInt32LE(record.port, 4);
  bytes.set(macBytes(record.mac), 8);
  bytes.set(macBytes(record.portMac), 14);
  putAddresses(bytes, 36, record.stragglersFrom);
  bytes.writeUInt32LE(record.stragglersFrom.length, 164);
  if (record.hold !== null) {
    bytes.writeUInt32LE(record.hold.device, 168);
    bytes.writeUInt32LE(HELD[record.hold.from], 172);
  }
  return bytes;
}

/** Kinds that wait at `before`, and at `after` no longer. */
export function opens(before: HostRecord, after: HostRecord): readonly (keyof SentOn)[] {
  const bits = waits(before) & ~waits(after);
  return KINDS.filter(([, bit]) => (bits & bit) !== 0).map(([kind]) => kind);
}

/** `after`, but what waits at `before` still does, as long as an earlier one of its kind has not been sent on; `sent` says how far that has come. */
export function encodeOpening(before: HostRecord, after: HostRecord, sent: SentOn): Buffer {
  const bytes = encodeHostRecord(after);
  if (before.hold === null) return bytes;
  // The packets may go to another host, but into the hold they go as frames.
  if (after.role === "forward") bytes.set(macBytes(before.role === "forward" ? before.hold.mac : before.mac), 8);
  bytes.writeUInt32LE(before.hold.device, 168);
  bytes.writeUInt32LE(bytes.readUInt32LE(172) | ((waits(before) & ~waits(after)) << OPENING), 172);
  bytes.writeUInt32LE(sent.directly, 176);
  bytes.writeUInt32LE(sent.straggler, 180);
  return bytes;
}

/** Bits of what waits whatever has been sent on. */
function waits(record: HostRecord): number {
  if (record.hold === null) return 0;
  return record.role === "forward" ? HOLD_STRAGGLERS : HELD[record.hold.from] & (HOLD_DIRECT | HOLD_STRAGGLERS);
}

/** `struct waiting` of a hold into which nothing has gone yet. */
export function encodeWaiting(device: number): Buffer {
  const bytes = Buffer.alloc(WAITING);
  bytes.writeUInt32LE(device, 16);
  return bytes;
}

/** Of `struct waiting`: the device. */
export function holdOf(bytes: Buffer): number {
  return bytes.readUInt32LE(16);
}

/** Of `struct waiting`: the last numbers as frames bear them. */
export function decodeWaiting(bytes: Buffer): SentOn {
  return { directly: Number(bytes.readBigUInt64LE(0) & NUMBER_MASK), straggler: Number(bytes.readBigUInt64LE(8) & NUMBER_MASK) };
}

export function decodeHostRecord(bytes: Buffer): HostRecord {
  if (bytes.readUInt32LE(0) === ROLE_FORWARD) {
    const port = bytes.readUInt32LE(4);
    const guest = macFromBytes(bytes.subarray(8, 14));
    return {
      role: "forward", to: addressFromKey(bytes.subarray(20, 36)),
      sender: port === 0 ? null : { port, mac: guest },
      hold: bytes.readUInt32LE(172) === 0 ? null : { device: bytes.readUInt32LE(168), stragglersFrom: getAddresses(bytes, 36, bytes.readUInt32LE(164)), mac: guest },
    };
  }
  return {
    role: "deliver",
    port: bytes.readUInt32LE(4),
    mac: macFromBytes(bytes.subarray(8, 14)),
    portMac: macFromBytes(bytes.subarray(14, 20)),
    stragglersFrom: getAddresses(bytes, 36, bytes.readUInt32LE(164)),
    hold: bytes.readUInt32LE(172) === 0 ? null : { device: bytes.readUInt32LE(168), from: fromOf(bytes.readUInt32LE(172)) },
  };
}

function fromOf(held: number): HostHold["from"] {
  if ((held & HOLD_DIRECT) === 0) return "port";
  return (held & HOLD_STRAGGLERS) === 0 ? "home-agents" : "all";
}

export const NO_COUNTERS: Counters = decodeCounters(Buffer.alloc(0));

/** Sums the CPUs' values. */
export function decodeCounters(perCpu: Buffer): Counters {
  const stride = perCpuStride(COUNTERS);
  const sum = (field: number): number => {
    let total = 0;
    for (let at = field * 8; at + 8 <= perCpu.length; at += stride) total += Number(perCpu.readBigUInt64LE(at));
    return total;
  };
  const firstReason = 5;
  return {
    downPackets: sum(0),
    downBytes: sum(1),
    upPackets: sum(2),
    upBytes: sum(3),
    forwardedPackets: sum(4),
    dropped: Object.fromEntries(DROP_REASONS.map((reason, index) => [reason, sum(firstReason + index)])),
  };
}

export const NO_STAMPS: Stamps = { marker: null, passedMarker: null, firstPacket: null, behindMarker: null, firstForwarded: null };

export function decodeStamps(bytes: Buffer): Stamps {
  const marker = stamp(bytes, 0);
  const passed = bytes.readUInt32LE(36);
  return {
    marker: marker === null ? null : { token: bytes.readUInt32LE(32), at: marker },
    passedMarker: passed === 0 ? null : passed,
    firstPacket: stamp(bytes, 8),
    behindMarker: stamp(bytes, 16),
    firstForwarded: stamp(bytes, 24),
  };
}

function stamp(bytes: Buffer, offset: number): Millis | null {
  const nanoseconds = bytes.readBigUInt64LE(offset);
  return nanoseconds === 0n ? null : millis(Number(nanoseconds) / 1e6);
}

function putAddresses(bytes: Buffer, offset: number, addresses: readonly IpAddress[]): void {
  addresses.forEach((address, index) => { putAddressKey(address, bytes, offset + index * ADDRESS); });
}

function getAddresses(bytes: Buffer, offset: number, count: number): IpAddress[] {
  return Array.from({ length: Math.min(count, MAX_ACCEPT) }, (_, index) => addressFromKey(bytes.subarray(offset + index * ADDRESS, offset + (index + 1) * ADDRESS)));
}
