import { readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { z } from "zod";
import { inPrefix, type IpAddress, type Ipv4, type Mac, type Prefix } from "../model/address.js";
import { fields, readConfig, type Endpoint } from "../model/config.js";
import { CareofError } from "../model/errors.js";
import { millis, type HostId, type KeyId, type Millis, type VmId } from "../model/ids.js";
import type { LogLevel } from "../model/log.js";
import { DATA_PLANES, type DataPlane } from "../net/data-plane.js";
import type { QemuSpec } from "../proto/messages.js";

/** A guest's HMAC key in bytes. */
const KEY_BYTES = 32;

/** `128M`, `2G`, or a plain number of bytes. */
const memory = z.union([z.number().int().positive(), z.string().regex(/^[1-9][0-9]{0,9}[KMG]?$/, "a size such as 128M")]).transform((value): number => {
  if (typeof value === "number") return value;
  const unit = { K: 1024, M: 1024 ** 2, G: 1024 ** 3 }[value.slice(-1)];
  return unit === undefined ? Number(value) : Number(value.slice(0, -1)) * unit;
});

/** Milliseconds, an hour at most. */
const duration = (fallback: number, min = 1) => z.number().min(min).max(3_600_000).default(fallback).transform((value) => millis(value));

const qemu = z.strictObject({
  memory: memory.default(128 * 1024 ** 2),
  cpus: z.number().int().min(1).max(512).default(1),
  kernel: z.string().default(""),
  initrd: z.string().default(""),
  append: z.string().default(""),
  disks: z.array(z.string()).max(16).default([]),
  extraArgs: z.array(z.string()).max(64).default([]),
});

const vm = z.strictObject({
  name: fields.vm,
  homeAddresses: z.array(fields.ipAddress).min(1).max(8),
  mac: fields.mac,
  keyFile: z.string().min(1),
  keyId: fields.keyId.default(1 as KeyId),
  hosts: z.array(fields.host).min(1).max(256),
  driver: z.enum(["qemu", "external"]).default("qemu"),
  qemu: qemu.optional(),
  external: z.strictObject({ port: z.string().min(1).max(15) }).optional(),
});

const host = z.strictObject({
  name: fields.host,
  careOf: z.array(fields.ipAddress).min(1).max(8),
  tokenHash: z.string().regex(/^[0-9a-f]{64}$/, "the sha256 of the token in 64 hexadecimal digits, as careof keygen prints it"),
});

/** The file as it is written; the README lists its keys. */
export const homeAgentSchema = z.strictObject({
  name: fields.host.default("home" as HostId),
  stateDir: z.string().min(1),
  runDir: z.string().min(1),
  tunnel: z.strictObject({
    uplink: z.string().min(1).max(15),
    address: fields.ipv4,
    dataPlane: z.enum(DATA_PLANES).default("auto"),
    pathMtu: z.number().int().min(576).max(65_535).default(1500),
    maxEntries: z.number().int().min(1).max(4_194_304).default(65_536),
  }),
  home: z.strictObject({ prefixes: z.array(fields.prefix).min(1).max(64) }),
  listen: z.strictObject({
    agents: fields.endpoint.default({ address: "0.0.0.0", port: 4434 }),
    heartbeats: fields.endpoint.default({ address: "0.0.0.0", port: 4434 }),
    api: fields.endpoint.default({ address: "127.0.0.1", port: 8434 }),
  }).prefault({}),
  hosts: z.array(host).max(65_536).default([]),
  vms: z.array(vm).max(4_194_304).default([]),
  timing: z.strictObject({
    lifetimeMs: duration(30_000, 100),
    keepAliveMs: duration(1000, 50),
    graceMs: duration(2000, 0),
    startMs: duration(60_000),
    stopPatienceMs: duration(5000, 0),
  }).prefault({}),
  handover: z.strictObject({
    lead: z.boolean().default(true),
    holdMaxMs: duration(1000),
    downtimeLimitMs: duration(20),
    maxBandwidth: z.number().int().min(0).default(0),
    timeoutMs: duration(600_000),
    prepareMs: duration(20_000),
    targetGoneMs: duration(3000),
    sourceGoneMs: duration(10_000),
    lostAfterMs: duration(5000),
  }).prefault({}),
  log: z.strictObject({ level: fields.logLevel.default("info") }).prefault({}),
});

export interface HostConfig {
  readonly name: HostId;
  /** Every care-of address that the host may register, in order of preference. */
  readonly careOf: readonly IpAddress[];
  /** sha256 of the host's token, hexadecimal. */
  readonly tokenHash: string;
}

export interface VmConfig {
  readonly name: VmId;
  readonly homeAddresses: readonly IpAddress[];
  readonly mac: Mac;
  readonly keyId: KeyId;
  /** 32 bytes. */
  readonly key: Uint8Array;
  readonly hosts: readonly HostId[];
  readonly driver: "qemu" | "external";
  readonly qemu: QemuSpec | null;
  readonly externalPort: string;
}

/** All durations in milliseconds. */
export interface Timing {
  /** A binding silent for so long is stale, for twice as long expired. */
  readonly lifetimeMs: Millis;
  readonly keepAliveMs: Millis;
  /** How long the old host may still send for a VM, and passes stragglers on, after a move. */
  readonly graceMs: Millis;
  readonly startMs: Millis;
  readonly stopPatienceMs: Millis;
}

export interface HandoverConfig {
  readonly lead: boolean;
  readonly holdMaxMs: Millis;
  readonly downtimeLimitMs: Millis;
  /** Bytes per second, 0 is unlimited. */
  readonly maxBandwidth: number;
  readonly timeoutMs: Millis;
  readonly prepareMs: Millis;
  /** A target whose connection is gone for so long loses the migration. */
  readonly targetGoneMs: Millis;
  readonly sourceGoneMs: Millis;
  /** After RELEASE: the target gone for so long makes the binding LOST. */
  readonly lostAfterMs: Millis;
}

export interface HomeAgentConfig {
  readonly name: HostId;
  readonly stateDir: string;
  readonly runDir: string;
  readonly tunnel: { readonly uplink: string; readonly address: Ipv4; readonly dataPlane: DataPlane; readonly pathMtu: number; readonly maxEntries: number };
  readonly home: { readonly prefixes: readonly Prefix[] };
  readonly listen: { readonly agents: Endpoint; readonly heartbeats: Endpoint; readonly api: Endpoint };
  readonly hosts: readonly HostConfig[];
  readonly vms: readonly VmConfig[];
  readonly timing: Timing;
  readonly handover: HandoverConfig;
  readonly log: { readonly level: LogLevel };
}

/**
 * Reads and cross-checks the home agent's file; relative paths in it are relative to it.
 * @throws CareofError as `readConfig`, and `config-invalid` for what contradicts itself, `key-unreadable` for a VM's key.
 */
export function readHomeAgentConfig(file: string): HomeAgentConfig {
  const read = readConfig(file, homeAgentSchema);
  const refuse = (why: string): never => {
    throw new CareofError("config-invalid", `${file}: ${why}`);
  };
  const from = dirname(resolve(file));
  const hosts = new Map<HostId, HostConfig>();
  const careOfs = new Set<IpAddress>();
  for (const each of read.hosts) {
    if (hosts.has(each.name)) refuse(`hosts: "${each.name}" is listed twice`);
    hosts.set(each.name, each);
    for (const address of each.careOf) {
      if (careOfs.has(address)) refuse(`hosts: the care-of address ${address} is listed twice`);
      if (address === read.tunnel.address) refuse(`hosts: ${each.name}: ${address} is the home agent's own address`);
      careOfs.add(address);
    }
  }
  const names = new Set<VmId>();
  const homes = new Map<IpAddress, VmId>();
  const macs = new Map<Mac, VmId>();
  const vms = read.vms.map((each): VmConfig => {
    const at = `vms: ${each.name}`;
    if (names.has(each.name)) refuse(`vms: "${each.name}" is listed twice`);
    names.add(each.name);
    for (const address of each.homeAddresses) {
      const other = homes.get(address);
      if (other !== undefined) refuse(`${at}: the home address ${address} belongs to ${other} already`);
      if (!read.home.prefixes.some((within) => inPrefix(address, within))) refuse(`${at}: the home address ${address} is in none of home.prefixes`);
      if (careOfs.has(address) || address === read.tunnel.address) refuse(`${at}: the home address ${address} is a tunnel's end`);
      homes.set(address, each.name);
    }
    const twin = macs.get(each.mac);
    if (twin !== undefined) refuse(`${at}: the Ethernet address ${each.mac} belongs to ${twin} already`);
    macs.set(each.mac, each.name);
    if (new Set(each.hosts).size !== each.hosts.length) refuse(`${at}: a host is listed twice`);
    for (const name of each.hosts) if (!hosts.has(name)) refuse(`${at}: the host "${name}" is not among hosts`);
    if (each.driver === "external" && each.external === undefined) refuse(`${at}: driver external needs external.port`);
    if (each.driver === "external" && each.qemu !== undefined) refuse(`${at}: driver external has no use for qemu`);
    if (each.driver === "qemu" && each.external !== undefined) refuse(`${at}: driver qemu has no use for external`);
    const machine = each.qemu ?? qemu.parse({});
    const { memory: memoryBytes, ...rest } = machine;
    return {
      name: each.name,
      homeAddresses: each.homeAddresses,
      mac: each.mac,
      keyId: each.keyId,
      key: readKey(resolve(from, each.keyFile)),
      hosts: each.hosts,
      driver: each.driver,
      qemu: each.driver === "qemu" ? { ...rest, memoryBytes } : null,
      externalPort: each.external?.port ?? "",
    };
  });
  return { ...read, stateDir: resolve(from, read.stateDir), runDir: resolve(from, read.runDir), hosts: read.hosts, vms };
}

/** @throws CareofError `key-unreadable`: not there, or not 64 hexadecimal digits. The key itself is never in the message. */
function readKey(file: string): Uint8Array {
  let text: string;
  try {
    text = readFileSync(file, "utf8").trim();
  } catch (cause) {
    throw new CareofError("key-unreadable", `cannot read the key ${file}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
  if (!/^[0-9a-fA-F]{64}$/.test(text)) throw new CareofError("key-unreadable", `${file} does not hold ${String(KEY_BYTES)} bytes as ${String(KEY_BYTES * 2)} hexadecimal digits`);
  return Uint8Array.from(Buffer.from(text, "hex"));
}
