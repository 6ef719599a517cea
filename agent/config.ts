import { z } from "zod";
import { endpoint, fields, readConfig, type Endpoint } from "../model/config.js";
import { ipv4, mac, type Ipv4, type Mac } from "../model/address.js";
import type { HostId } from "../model/ids.js";
import type { LogLevel } from "../model/log.js";
import { LEAST_PATH_MTU } from "../model/locator.js";

/** The host agent's configuration file. */
export interface AgentConfig {
  readonly name: HostId;
  readonly careOf: Ipv4;
  readonly uplink: string;
  readonly homeAgent: string;
  /** File with the token that `careof keygen` made; its first line counts. */
  readonly tokenFile: string;
  readonly stateDir: string;
  readonly runDir: string;
  readonly gateway: { readonly address: Ipv4; readonly mac: Mac };
  /** Tunnel ends of the home agents, until one has said its own; default: the address in `homeAgent`. */
  readonly homeAgents?: readonly Ipv4[] | undefined;
  readonly relay: { readonly listen?: Endpoint | undefined };
  readonly qemu: { readonly binary: string; readonly accel: "auto" | "kvm" | "tcg"; readonly probeKernel?: string | undefined };
  /** Of a guest that has moved away with its disks. */
  readonly disks: { readonly keepMoved: boolean };
  readonly heartbeats: { readonly port: number; readonly perVmPerSecond: number };
  readonly ports: {
    /** Packets that wait for a halted guest: rate × longest hold. */
    readonly queueLength: number;
    /** Bytes; 0 takes the uplink's less the tunnel's header. */
    readonly mtu: number;
    /** Policy routing table of the VMs' routes, and the priority of its rule. */
    readonly table: number;
  };
  readonly tunnel: { readonly dataPlane: "auto" | "bpf" | "ipip"; readonly pathMtu: number; readonly maxEntries: number };
  readonly log: { readonly level: LogLevel };
}

const portNumber = z.number().int().min(1).max(65535);
const qemu = z.strictObject({ binary: z.string().min(1).default("qemu-system-x86_64"), accel: z.enum(["auto", "kvm", "tcg"]).default("auto"), probeKernel: z.string().optional() });
const gateway = z.strictObject({ address: fields.ipv4.default(ipv4("169.254.1.1")), mac: fields.mac.default(mac("02:ca:0f:00:00:01")) });
const heartbeats = z.strictObject({ port: portNumber.default(4434), perVmPerSecond: z.number().min(1).max(1000).default(20) });
/** Its rule's priority is the table's number, and it must come before the main table's rule (32766); 253 to 255 are the kernel's own tables. */
const policyTable = z.number().int().min(1).max(32_765).refine((table) => table < 253 || table > 255, "253 to 255 are the kernel's own tables");
const ports = z.strictObject({
  queueLength: z.number().int().min(100).max(1_000_000).default(10_000),
  mtu: z.number().int().min(0).max(65_535).default(0),
  table: policyTable.default(4434),
});
const tunnel = z.strictObject({
  dataPlane: z.enum(["auto", "bpf", "ipip"]).default("auto"),
  pathMtu: z.number().int().min(0).max(65_535).refine((bytes) => bytes === 0 || bytes >= LEAST_PATH_MTU, `0 (the uplink's) or at least ${String(LEAST_PATH_MTU)}`).default(0),
  maxEntries: z.number().int().min(1).max(1_000_000).default(4096),
});

/** The file as it is written; the README lists its keys. */
export const agentSchema: z.ZodType<AgentConfig> = z.strictObject({
  name: fields.host,
  careOf: fields.ipv4,
  uplink: z.string().min(1).max(15),
  homeAgent: z.url({ protocol: /^wss?$/ }),
  tokenFile: z.string().min(1),
  stateDir: z.string().min(1),
  runDir: z.string().min(1),
  gateway: gateway.default(gateway.parse({})),
  homeAgents: z.array(fields.ipv4).min(1).optional(),
  relay: z.strictObject({ listen: fields.endpoint.optional() }).default({}),
  qemu: qemu.default(qemu.parse({})),
  disks: z.strictObject({ keepMoved: z.boolean().default(false) }).default({ keepMoved: false }),
  heartbeats: heartbeats.default(heartbeats.parse({})),
  ports: ports.default(ports.parse({})),
  tunnel: tunnel.default(tunnel.parse({})),
  log: z.strictObject({ level: fields.logLevel.default("info") }).default({ level: "info" }),
});

/** @throws CareofError `config-…` with file, line and column */
export function readAgentConfig(file: string): AgentConfig {
  return readConfig(file, agentSchema);
}

/** Where the migration relay listens: the care-of address and any port, unless configured (a firewall may want a fixed one). */
export function relayEndpoint(config: AgentConfig): Endpoint {
  const listen = config.relay.listen;
  if (listen === undefined) return { address: config.careOf, port: 0 };
  return listen.address === "0.0.0.0" ? { address: config.careOf, port: listen.port } : endpoint(`${listen.address}:${String(listen.port)}`);
}
