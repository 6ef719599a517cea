import { readFileSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { z } from "zod";
import { readAgentConfig } from "../../agent/config.js";
import { readHomeAgentConfig } from "../../home-agent/config.js";
import { readConfig } from "../../model/config.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import type { DataPlane } from "../../net/data-plane.js";
import type { HomeSide, Probe } from "../../net/probe.js";
import { checkApi, fine, type Hypervisor, type Port } from "./checks.js";

/** What a configuration says that the other checks need. */
export interface Configured {
  readonly part: "home-agent" | "agent" | null;
  readonly uplink: string | null;
  readonly home: HomeSide | null;
  readonly dataPlane: DataPlane;
  readonly qemu: Hypervisor;
  readonly ports: readonly Port[];
  readonly rows: readonly Probe[];
}

const ANY_QEMU = { binary: "qemu-system-x86_64", accelerator: "auto", kernel: null, needed: false } as const;

const DEFAULT_PORTS: readonly Port[] = [
  { kind: "tcp", address: "0.0.0.0", port: 4434, what: "host agents", key: "listen.agents" },
  { kind: "udp", address: "0.0.0.0", port: 4434, what: "heartbeats", key: "listen.heartbeats" },
  { kind: "tcp", address: "127.0.0.1", port: 8434, what: "the HTTP API", key: "listen.api" },
];

/** Reads the file as what it is, told by the keys that only one of the two has. A file that does not fit is a row, not an exception. */
export function configured(file: string | null): Configured {
  if (file === null) return { part: null, uplink: null, home: null, dataPlane: "auto", qemu: ANY_QEMU, ports: DEFAULT_PORTS, rows: [] };
  try {
    return isAgents(file) ? ofAgent(file) : ofHomeAgent(file);
  } catch (thrown) {
    return { part: null, uplink: null, home: null, dataPlane: "auto", qemu: ANY_QEMU, ports: [], rows: [{ name: "configuration", ok: false, found: toCareofError(thrown).message, mend: "mend the file; the README has the reference" }] };
  }
}

/** @throws CareofError `config-unreadable` */
function isAgents(file: string): boolean {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new CareofError("config-unreadable", `cannot read the configuration ${file}: ${toCareofError(cause).message}`, { cause });
  }
  return /^(homeAgent|tokenFile|careOf)\s*:/m.test(text);
}

function ofAgent(file: string): Configured {
  const config = readAgentConfig(file);
  return {
    part: "agent",
    uplink: config.uplink,
    home: null,
    dataPlane: config.tunnel.dataPlane,
    qemu: { binary: config.qemu.binary, accelerator: config.qemu.accel, kernel: config.qemu.probeKernel ?? null, needed: true },
    // Heartbeats are taken on each VM's port, which does not exist before the VM does.
    ports: [],
    rows: [fine("configuration", `${file}: host agent ${config.name}, care-of ${config.careOf}`), secretRow("token", config.tokenFile)],
  };
}

function ofHomeAgent(file: string): Configured {
  const { name, home, hosts, vms, listen, tunnel } = readHomeAgentConfig(file);
  return {
    part: "home-agent",
    uplink: tunnel.uplink,
    home,
    dataPlane: tunnel.dataPlane,
    qemu: ANY_QEMU,
    ports: [
      { kind: "tcp", ...listen.agents, what: "host agents", key: "listen.agents" },
      { kind: "udp", ...listen.heartbeats, what: "heartbeats", key: "listen.heartbeats" },
      { kind: "tcp", ...listen.api, what: "the HTTP API", key: "listen.api" },
    ],
    rows: [
      fine("configuration", `${file}: home agent ${name}, ${String(hosts.length)} hosts, ${String(vms.length)} VMs`),
      ...present(checkApi(listen.api.address)),
      ...present(keysRow(keyFiles(file))),
    ],
  };
}

function present(row: Probe | null): Probe[] {
  return row === null ? [] : [row];
}

const OTHERS = 0o077;
/** Files that are named in one row. */
const NAMED = 3;

const withKeys = z.looseObject({ vms: z.array(z.looseObject({ keyFile: z.string() })).default([]) });

/** The files themselves, of which the configuration that was read has only the keys. */
function keyFiles(file: string): string[] {
  return [...new Set(readConfig(file, withKeys).vms.map((vm) => resolve(dirname(file), vm.keyFile)))];
}

/** Null without any key. They can be read: the configuration was. */
function keysRow(files: readonly string[]): Probe | null {
  if (files.length === 0) return null;
  const open = files.filter((file) => (statSync(file).mode & OTHERS) !== 0);
  if (open.length === 0) return fine("keys", `${String(files.length)}, which only their owner can read`);
  const named = open.slice(0, NAMED).join(" ");
  const more = open.length > NAMED ? `, ${String(open.length - NAMED)} more` : "";
  return { name: "keys", ok: "warn", found: `${named}${more} can be read by others, who can then speak for the guest`, mend: `chmod 600 ${named}${more === "" ? "" : " …"}` };
}

function secretRow(name: string, file: string): Probe {
  try {
    const mode = statSync(file).mode & 0o777;
    if (readFileSync(file, "utf8").trim() === "") return { name, ok: false, found: `${file} is empty`, mend: "careof keygen host NAME makes a token" };
    if ((mode & OTHERS) !== 0) return { name, ok: "warn", found: `${file} can be read by others (mode ${mode.toString(8)})`, mend: `chmod 600 ${file}` };
    return fine(name, file);
  } catch (thrown) {
    return { name, ok: false, found: toCareofError(thrown).message, mend: "careof keygen host NAME makes a token; put it into that file, mode 0600" };
  }
}
