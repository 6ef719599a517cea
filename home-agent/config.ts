import { readFileSync, statSync } from "node:fs";
import { isIPv4 } from "node:net";
import { dirname, resolve } from "node:path";
import { z } from "zod";
import { inPrefix, type IpAddress, type Ipv4, type Mac, type Prefix } from "../model/address.js";
import { fields, locateConfig, type Endpoint } from "../model/config.js";
import { CareofError } from "../model/errors.js";
import { millis, type HostId, type KeyId, type Millis, type VmId } from "../model/ids.js";
import type { LogLevel } from "../model/log.js";
import { DATA_PLANES, type DataPlane } from "../net/data-plane.js";
import { MAX_CHANNELS, type Adopt, type DiskOptions, type OnTimeout, type QemuSpec } from "../proto/messages.js";
import { MAX_MOVES_AT_ONCE } from "./drains/drain.js";
import { machineConflict } from "./machine-conflicts.js";

/**
 * How the home network finds the home agent. `routed`: its routers send it the home prefixes. `proxy-arp`: it stands on the VMs' LAN and answers there for those
 * that are away (RFC 5944 §4.6).
 */
const HOME_MODES = ["routed", "proxy-arp"] as const;
export type HomeMode = (typeof HOME_MODES)[number];

/** A guest's HMAC key in bytes. */
const KEY_BYTES = 32;

/** `128M`, `2G`, or a plain number of bytes. */
const memory = z.union([z.number().int().positive(), z.string().regex(/^[1-9][0-9]{0,9}[KMG]?$/)], "it must be a size such as 128M or 2G, or whole bytes").transform((value): number => {
  if (typeof value === "number") return value;
  const unit = { K: 1024, M: 1024 ** 2, G: 1024 ** 3 }[value.slice(-1)];
  return unit === undefined ? Number(value) : Number(value.slice(0, -1)) * unit;
}).refine((bytes) => Number.isSafeInteger(bytes), "it is more than any host has");

/** Milliseconds, an hour at most. */
const duration = (fallback: number, min = 1) => z.number().min(min).max(3_600_000).default(fallback).transform((value) => millis(value));

const qemu = z.strictObject({
  memory: memory.default(128 * 1024 ** 2),
  cpus: z.number().int().min(1).max(512).default(1),
  kernel: z.string().default(""),
  initrd: z.string().default(""),
  append: z.string().default(""),
  disks: z.array(z.union([
    z.string(),
    z.strictObject({ path: z.string().startsWith("/", "an absolute path"), shared: z.boolean().default(true), format: z.enum(["raw", "qcow2"]).optional() }),
  ])).max(16).default([]),
  extraArgs: z.array(z.string()).max(64).default([]),
  adopt: z.record(z.string(), z.strictObject({ qmp: z.string().startsWith("/", "an absolute path on that host").max(107), port: z.string().max(15).regex(/^(?!\.{1,2}$)[^\s/:]+$/, "the name of an interface") })).default({}),
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
  home: z.strictObject({
    prefixes: z.array(fields.prefix).min(1).max(64),
    mode: z.enum(HOME_MODES).default("routed"),
    interface: z.string().min(1).max(15).optional(),
  }),
  listen: z.strictObject({
    agents: fields.endpoint.default({ address: "0.0.0.0", port: 4434 }),
    heartbeats: fields.endpoint.default({ address: "0.0.0.0", port: 4434 }),
    api: fields.endpoint.default({ address: "127.0.0.1", port: 8434 }),
    apiWithoutAuthentication: z.boolean().default(false),
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
    onTimeout: z.enum(["abort", "force"]).default("abort"),
    forceMs: duration(60_000),
    autoConverge: z.boolean().default(false),
    channels: z.number().int().min(1).max(MAX_CHANNELS).default(1),
    postcopy: z.boolean().default(false),
    encrypt: z.boolean().default(true),
    prepareMs: duration(20_000),
    targetGoneMs: duration(3000),
    sourceGoneMs: duration(10_000),
    lostAfterMs: duration(5000),
  }).prefault({}),
  drain: z.strictObject({
    limit: z.number().int().min(1).max(MAX_MOVES_AT_ONCE).default(2),
    reserve: z.union([z.literal(0), memory], "it must be 0, a size such as 256M or 2G, or whole bytes").default(256 * 1024 ** 2),
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
  /** Hosts on which a QEMU that somebody else starts is taken over. */
  readonly adopt: ReadonlyMap<HostId, Adopt>;
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
  /** Of the copy. Then it is aborted, or the guest is stopped and what is left is copied within `forceMs`. */
  readonly timeoutMs: Millis;
  readonly onTimeout: OnTimeout;
  readonly forceMs: Millis;
  /** Slow a guest down that writes faster than is copied. */
  readonly autoConverge: boolean;
  /** Streams of memory side by side. */
  readonly channels: number;
  /** A copy that does not converge ends by postcopy: the guest goes on at the target while memory of it is still at the source, and is lost with either host or the link between them meanwhile. */
  readonly postcopy: boolean;
  /** False: memory and disks go between the hosts in clear, carried by the kernel. What the agents say to one another stays encrypted. */
  readonly encrypt: boolean;
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
  /** `interface`: on the home LAN, with `proxy-arp` only. */
  readonly home: { readonly prefixes: readonly Prefix[]; readonly mode: HomeMode; readonly interface: string | null };
  /** `apiWithoutAuthentication`: the API may listen where others than this machine reach it. */
  readonly listen: { readonly agents: Endpoint; readonly heartbeats: Endpoint; readonly api: Endpoint; readonly apiWithoutAuthentication: boolean };
  readonly hosts: readonly HostConfig[];
  readonly vms: readonly VmConfig[];
  /** Key files that others than their owner can read: who has a VM's key can speak for its guest. */
  readonly exposedKeys: readonly string[];
  readonly timing: Timing;
  readonly handover: HandoverConfig;
  /** `limit`: moves at once. `reserve`: bytes of every host that are not for guests. */
  readonly drain: { readonly limit: number; readonly reserve: number };
  readonly log: { readonly level: LogLevel };
}

/**
 * Reads and cross-checks the home agent's file; relative paths in it are relative to it.
 * @throws CareofError as `readConfig`, and `config-invalid` for what contradicts itself, `key-unreadable` for a VM's key.
 */
export function readHomeAgentConfig(file: string): HomeAgentConfig {
  const { value: read, at } = locateConfig(file, homeAgentSchema);
  const refuse = (path: readonly (string | number)[], why: string): never => {
    throw new CareofError("config-invalid", `${at(path)}: ${why}`);
  };
  if (!isLoopback(read.listen.api.address) && !read.listen.apiWithoutAuthentication) {
    refuse(["listen", "api"], `listen.api: whoever reaches ${read.listen.api.address} could stop and move every VM, the API asks for no password: listen on 127.0.0.1 (ssh -L brings you there), or, where only operators reach it, say listen.apiWithoutAuthentication: true`);
  }
  const { mode, interface: lan } = read.home;
  if (mode === "proxy-arp" && lan === undefined) refuse(["home", "mode"], "home.mode: proxy-arp needs home.interface, the interface on the VMs' LAN");
  if (mode === "routed" && lan !== undefined) refuse(["home", "interface"], "home.interface: mode routed has no use for it; say mode: proxy-arp");
  if (lan !== undefined && lan === read.tunnel.uplink) {
    refuse(["home", "interface"], `home.interface: ${lan} is the uplink, on which home addresses are never answered for: give the home agent a second interface on the LAN (a macvlan on the same cable will do), or say mode: routed`);
  }
  const from = dirname(resolve(file));
  const hosts = new Map<HostId, HostConfig>();
  const careOfs = new Set<IpAddress>();
  for (const [i, each] of read.hosts.entries()) {
    if (hosts.has(each.name)) refuse(["hosts", i, "name"], `hosts: "${each.name}" is listed twice`);
    hosts.set(each.name, each);
    for (const [j, address] of each.careOf.entries()) {
      if (careOfs.has(address)) refuse(["hosts", i, "careOf", j], `hosts: the care-of address ${address} is listed twice`);
      if (address === read.tunnel.address) refuse(["hosts", i, "careOf", j], `hosts: ${each.name}: ${address} is the home agent's own address`);
      careOfs.add(address);
    }
  }
  const names = new Set<VmId>();
  const homes = new Map<IpAddress, VmId>();
  const macs = new Map<Mac, VmId>();
  const exposedKeys = new Set<string>();
  const vms = read.vms.map((each, i): VmConfig => {
    const wrong = (path: readonly (string | number)[], why: string): never => refuse(["vms", i, ...path], `vms: ${each.name}: ${why}`);
    if (names.has(each.name)) refuse(["vms", i, "name"], `vms: "${each.name}" is listed twice`);
    names.add(each.name);
    for (const [j, address] of each.homeAddresses.entries()) {
      const other = homes.get(address);
      if (other !== undefined) wrong(["homeAddresses", j], `the home address ${address} belongs to ${other} already`);
      if (!read.home.prefixes.some((within) => inPrefix(address, within))) wrong(["homeAddresses", j], `the home address ${address} is in none of home.prefixes`);
      if (careOfs.has(address) || address === read.tunnel.address) wrong(["homeAddresses", j], `the home address ${address} is a tunnel's end`);
      homes.set(address, each.name);
    }
    const twin = macs.get(each.mac);
    if (twin !== undefined) wrong(["mac"], `the Ethernet address ${each.mac} belongs to ${twin} already`);
    macs.set(each.mac, each.name);
    for (const [j, name] of each.hosts.entries()) {
      if (each.hosts.indexOf(name) < j) wrong(["hosts", j], `a host is listed twice: "${name}"`);
      if (!hosts.has(name)) wrong(["hosts", j], `the host "${name}" is not among hosts`);
    }
    if (each.driver === "external" && each.external === undefined) wrong(["driver"], "driver external needs external.port");
    if (each.driver === "external" && each.qemu !== undefined) wrong(["qemu"], "driver external has no use for qemu");
    if (each.driver === "qemu" && each.external !== undefined) wrong(["external"], "driver qemu has no use for external");
    const machine = each.qemu ?? qemu.parse({});
    const { memory: memoryBytes, adopt: adoptOn, disks: given, ...rest } = machine;
    const adopt = new Map(Object.entries(adoptOn).map(([on, { qmp, port }]): [HostId, Adopt] => {
      const name = each.hosts.find((listed) => listed === on);
      return [name ?? wrong(["qemu", "adopt", on], `it is adopted on "${on}", which is not among its hosts`), { control: qmp, port }];
    }));
    const disks = given.map((disk) => (typeof disk === "string" ? disk : disk.path));
    for (const [j, path] of disks.entries()) if (disks.indexOf(path) < j) wrong(["qemu", "disks", j], `a disk is listed twice: ${path}`);
    const diskOptions = given.flatMap((disk): DiskOptions[] => (typeof disk === "string" ? [] : [{ path: disk.path, shared: disk.shared, format: disk.format ?? formatOf(disk.path) }]));
    const keyFile = resolve(from, each.keyFile);
    const key = readKey(keyFile, at(["vms", i, "keyFile"]));
    if (key.exposed) exposedKeys.add(keyFile);
    return {
      name: each.name,
      homeAddresses: each.homeAddresses,
      mac: each.mac,
      keyId: each.keyId,
      key: key.bytes,
      hosts: each.hosts,
      driver: each.driver,
      qemu: each.driver === "qemu" ? { ...rest, memoryBytes, disks, diskOptions } : null,
      externalPort: each.external?.port ?? "",
      adopt,
    };
  });
  const conflict = machineConflict(vms);
  if (conflict !== null) refuse(["vms", conflict.index, ...conflict.path], `vms: ${String(vms[conflict.index]?.name)}: ${conflict.why}`);
  return { ...read, home: { ...read.home, interface: lan ?? null }, stateDir: resolve(from, read.stateDir), runDir: resolve(from, read.runDir), hosts: read.hosts, vms, exposedKeys: [...exposedKeys] };
}

function formatOf(path: string): DiskOptions["format"] {
  return path.endsWith(".qcow2") ? "qcow2" : "raw";
}

/** RFC 1122 §3.2.1.3, RFC 4291 §2.5.3. */
function isLoopback(address: string): boolean {
  return address === "localhost" || address === "::1" || (isIPv4(address) && address.startsWith("127."));
}

/** Others than its owner may read it. */
const OTHERS = 0o077;

/** @throws CareofError `key-unreadable`: not there, or not 64 hexadecimal digits. The key itself is never in the message. */
function readKey(file: string, at: string): { readonly bytes: Uint8Array; readonly exposed: boolean } {
  let text: string;
  let exposed: boolean;
  try {
    text = readFileSync(file, "utf8").trim();
    exposed = (statSync(file).mode & OTHERS) !== 0;
  } catch (cause) {
    throw new CareofError("key-unreadable", `${at}: cannot read the key ${file}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
  if (!/^[0-9a-fA-F]{64}$/.test(text)) throw new CareofError("key-unreadable", `${at}: ${file} does not hold ${String(KEY_BYTES)} bytes as ${String(KEY_BYTES * 2)} hexadecimal digits`);
  return { bytes: Uint8Array.from(Buffer.from(text, "hex")), exposed };
}
