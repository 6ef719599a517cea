import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "yaml";
import { witnessedQemu } from "./witness.js";
import type { FleetGuest } from "./fleet.js";
import { HOSTS, PLAN, type HostName } from "./plan.js";

export interface LabFiles {
  readonly absentHostToken: string;
  readonly homeAgent: string;
  readonly agents: Readonly<Record<HostName, string>>;
  readonly logs: string;
  /** The guest's heartbeat key, hex. */
  readonly key: string;
}

export interface GuestImage {
  readonly kernel: string;
  readonly initrd: string;
}

export interface FilesOptions {
  readonly directory: string;
  readonly image: GuestImage;
  /** Laid over the generated home agent's file, key by key of its top level. */
  readonly homeAgent?: Readonly<Record<string, unknown>>;
  readonly agent?: Readonly<Record<string, unknown>>;
  /** Lists a third host for the guest, which nobody starts. */
  readonly absentHost?: boolean;
  /** Starts guests so that a `Witness` can see them. */
  readonly witnessed?: boolean;
  /** Guests beside the lab's own; they send no heartbeats. */
  readonly fleet?: readonly FleetGuest[];
  /** The guest writes to so many MB of its memory all the time. */
  readonly dirtyMb?: number;
  /** The guest's disks, as in a configuration; it writes to the first two, */
  readonly disks?: readonly object[];
  /** unless it leaves them alone. */
  readonly idleDisks?: boolean;
}

/** Both hosts have one file system here. This directory has one name on both, and is another one on each: the working directory of the host's agent. */
export const OWN_DISKS = "/proc/self/cwd";


/** The lab's VMs: the guest, and one that is listed for host A only, for refusals. */
export const OTHER_VM = { name: "web2", address: "198.51.100.8", mac: "52:54:00:ca:0f:08" } as const;

/** Listed, with a token, but not there. */
export const ABSENT_HOST = { name: "host-c", careOf: "10.3.0.2" } as const;

/** Writes ordinary configuration, tokens and keys as an operator would, below `directory`. */
export function writeFiles(options: FilesOptions): LabFiles {
  const { directory } = options;
  const at = (...parts: string[]): string => join(directory, ...parts);
  mkdirSync(at("logs"), { recursive: true });
  for (const host of HOSTS) mkdirSync(at(host, "disks"), { recursive: true });
  const key = randomBytes(32).toString("hex");
  writeFileSync(at("web1.key"), `${key}\n`, { mode: 0o600 });
  writeFileSync(at("web2.key"), `${randomBytes(32).toString("hex")}\n`, { mode: 0o600 });

  const hash = (text: string): string => createHash("sha256").update(text).digest("hex");
  const token = (): string => randomBytes(24).toString("base64url");
  const tokens: Record<HostName, string> = { "host-a": token(), "host-b": token() };
  const agents: Record<HostName, string> = { "host-a": writeAgent("host-a"), "host-b": writeAgent("host-b") };
  const hosts = HOSTS.map((host) => ({
    name: host,
    careOf: [PLAN.hosts[host].careOf],
    tokenHash: hash(tokens[host]),
  }));
  const absentHostToken = token();
  const absent = options.absentHost === true ? [{ name: ABSENT_HOST.name, careOf: [ABSENT_HOST.careOf], tokenHash: hash(absentHostToken) }] : [];
  const vm = (name: string, address: string, mac: string, on: readonly string[], memory = "128M", keyOf = name, disks = name === PLAN.guest.name ? options.disks ?? [] : []): object => ({
    name,
    homeAddresses: [address],
    mac,
    keyFile: at(`${keyOf}.key`),
    keyId: PLAN.guest.keyId,
    hosts: [...on],
    driver: "qemu",
    qemu: {
      memory, cpus: 1, kernel: options.image.kernel, initrd: options.image.initrd, disks: [...disks],
      append: [...kernelCommandLine(name, address, name === PLAN.guest.name ? key : "", options.dirtyMb ?? 0), ...(name === PLAN.guest.name && disks.length > 0 && options.idleDisks !== true ? ["careof.disks=/dev/vda,/dev/vdb"] : [])].join(" "),
    },
  });
  const homeAgent = at("home-agent.yaml");
  const content = {
    name: "home",
    stateDir: at("home", "state"),
    runDir: at("home", "run"),
    tunnel: { uplink: "core0", address: PLAN.homeAgent.core, dataPlane: "auto" },
    home: { prefixes: [PLAN.homePrefix] },
    listen: {
      agents: `${PLAN.homeAgent.core}:${String(PLAN.ports.agents)}`,
      heartbeats: `0.0.0.0:${String(PLAN.ports.heartbeats)}`,
      api: `127.0.0.1:${String(PLAN.ports.api)}`,
    },
    hosts: [...hosts, ...absent],
    vms: [vm(PLAN.guest.name, PLAN.guest.address, PLAN.guest.mac, [...HOSTS, ...absent.map((host) => host.name)]), vm(OTHER_VM.name, OTHER_VM.address, OTHER_VM.mac, ["host-a"]), ...(options.fleet ?? []).map((guest) => vm(guest.name, guest.address, guest.mac, guest.hosts, guest.memory, OTHER_VM.name, [...guest.disks ?? []]))],
    log: { level: "debug" },
    ...options.homeAgent,
  };
  writeFileSync(homeAgent, stringify(content), { mode: 0o600 });
  return { absentHostToken, homeAgent, agents, logs: at("logs"), key };

  function writeAgent(host: HostName): string {
    const tokenFile = at(`${host}.token`);
    const file = at(`${host}.yaml`);
    writeFileSync(tokenFile, `${tokens[host]}\n`, { mode: 0o600 });
    const agent = {
      name: host,
      careOf: PLAN.hosts[host].careOf,
      uplink: "uplink0",
      homeAgent: `ws://${PLAN.homeAgent.core}:${String(PLAN.ports.agents)}/v1/agent`,
      tokenFile,
      stateDir: at(host, "state"),
      runDir: at(host, "run"),
      qemu: { probeKernel: options.image.kernel, ...(options.witnessed === true ? { binary: witnessedQemu(directory) } : {}) },
      log: { level: "debug" },
      ...options.agent,
    };
    writeFileSync(file, stringify(agent), { mode: 0o600 });
    return file;
  }
}

/** What deploy/guest-image/init reads; `panic=-1` with QEMU's -no-reboot: a guest that breaks ends, and does not come back as if nothing had happened. */
function kernelCommandLine(vm: string, address: string, key: string, dirtyMb: number): string[] {
  const heartbeat = key === "" ? [] : [`careof.vm=${vm}`, `careof.keyid=${String(PLAN.guest.keyId)}`, `careof.key=${key}`, `careof.hb=${PLAN.gateway}:${String(PLAN.ports.heartbeats)}`, "careof.interval=500"];
  return ["console=ttyS0", "quiet", "panic=-1", `careof.ip=${address}/32`, `careof.gw=${PLAN.gateway}`, "careof.mtu=1480", ...heartbeat, ...(dirtyMb > 0 ? [`careof.dirty=${String(dirtyMb)}`] : [])];
}
