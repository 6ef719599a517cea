import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { stringify } from "yaml";
import type { Test } from "tap";
import { readHomeAgentConfig, type HomeAgentConfig } from "../../home-agent/config.js";
import { HomeAgent, type Listening } from "../../home-agent/home-agent.js";
import { MemoryStore } from "../../home-agent/store/memory-store.js";
import type { Store } from "../../home-agent/store/store.js";
import { ipAddress, ipv4 } from "../../model/address.js";
import { SystemClock } from "../../model/clock.js";
import type { Logger } from "../../model/log.js";
import type { HomeLan } from "../../net/home-lan.js";
import type { HomeEntry } from "../../net/tunnel.js";
import { FakePathWire } from "../../net/path-mtu-fake.js";
import { FakeHomeTunnel } from "../../net/tunnel-fake.js";
import { ScriptedAgent } from "./scripted-agent.js";

export const HOME = ipAddress("198.51.100.7");
export const CARE_OF = { "host-a": "10.1.0.2", "host-b": "10.2.0.2", "host-c": "10.3.0.2" } as const;
export type HostName = keyof typeof CARE_OF;

/** The hash that a configuration holds. */
export function tokenHash(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}

/** A configuration as an operator would write it; `change` lies over its top level. */
export function configFile(directory: string, change: Readonly<Record<string, unknown>> = {}): string {
  writeFileSync(join(directory, "web1.key"), `${"ab".repeat(32)}\n`);
  const file = join(directory, "home-agent.yaml");
  const vm = (name: string, home: string, mac: string, more: object): object => ({ name, homeAddresses: [home], mac, keyFile: "web1.key", hosts: ["host-a", "host-b"], ...more });
  writeFileSync(file, stringify({
    stateDir: "state",
    runDir: "run",
    tunnel: { uplink: "lo", address: "192.0.2.1" },
    home: { prefixes: ["198.51.100.0/24"] },
    listen: { agents: "127.0.0.1:0", heartbeats: "127.0.0.1:0", api: "127.0.0.1:0" },
    hosts: Object.entries(CARE_OF).map(([name, careOf]) => ({ name, careOf: [careOf], tokenHash: tokenHash(`token-${name}`) })),
    vms: [
      vm("web1", "198.51.100.7", "52:54:00:00:00:07", { driver: "qemu", qemu: { memory: "128M", kernel: "/k" } }),
      vm("ext1", "198.51.100.8", "52:54:00:00:00:08", { driver: "external", external: { port: "tap-ext*" } }),
    ],
    timing: { keepAliveMs: 200, graceMs: 300 },
    handover: { targetGoneMs: 200, sourceGoneMs: 400, lostAfterMs: 400, prepareMs: 5000 },
    log: { level: "silent" },
    ...change,
  }));
  return file;
}

/** A whole home agent in this process, with a fake tunnel and scripted agents. */
export class Bench {
  readonly tunnel: FakeHomeTunnel;
  readonly config: HomeAgentConfig;
  readonly store: Store;
  readonly paths: FakePathWire;
  readonly homeAgent: HomeAgent;
  readonly log: Logger;
  readonly at: Listening;
  readonly agents: ScriptedAgent[] = [];
  /** Every marker that was sent: to whom, which token, and whom the tunnel pointed to. */
  readonly markers: { readonly careOf: string; readonly token: number; readonly active: string | null }[];
  /** What a reload finds in the file. */
  file: HomeAgentConfig;

  private constructor(parts: { tunnel: FakeHomeTunnel; paths: FakePathWire; config: HomeAgentConfig; store: Store; homeAgent: HomeAgent; log: Logger; at: Listening; markers: Bench["markers"] }) {
    this.tunnel = parts.tunnel;
    this.paths = parts.paths;
    this.config = parts.config;
    this.file = parts.config;
    this.store = parts.store;
    this.homeAgent = parts.homeAgent;
    this.log = parts.log;
    this.at = parts.at;
    this.markers = parts.markers;
  }

  static async open(t: Test, options: { readonly store?: Store; readonly change?: Readonly<Record<string, unknown>>; readonly directory?: string; readonly homeLan?: HomeLan } = {}): Promise<Bench> {
    const directory = options.directory ?? temporary(t);
    const config = readHomeAgentConfig(configFile(directory, options.change));
    const clock = new SystemClock();
    const tunnel = new FakeHomeTunnel({ address: ipv4("192.0.2.1"), clock });
    const paths = new FakePathWire();
    const markers: Bench["markers"] = [];
    const send = tunnel.sendMarker.bind(tunnel);
    tunnel.sendMarker = (home, careOf, token): void => {
      markers.push({ careOf, token, active: tunnel.entries().find((entry) => entry.home === home)?.active ?? null });
      send(home, careOf, token);
    };
    const store = options.store ?? new MemoryStore();
    let bench: Bench | null = null;
    const log = pino({ level: process.env["CAREOF_TEST_LOG"] ?? "silent" });
    const homeAgent = await HomeAgent.open({ config, readConfig: () => bench?.file ?? config, clock, log, tunnel, pathWire: paths, homeLan: options.homeLan ?? null, store, version: "test" });
    const at = await homeAgent.start();
    bench = new Bench({ tunnel, paths, config, store, homeAgent, log, at, markers });
    const opened = bench;
    t.teardown(() => opened.close());
    return opened;
  }

  agent(name: HostName, token = `token-${name}`): ScriptedAgent {
    const agent = new ScriptedAgent({ name, token, careOf: CARE_OF[name], port: this.at.agents.port });
    this.agents.push(agent);
    return agent;
  }

  /** Two agents, and the VM started on host-a. */
  async withVm(): Promise<{ readonly a: ScriptedAgent; readonly b: ScriptedAgent }> {
    const [a, b] = [this.agent("host-a"), this.agent("host-b")];
    await a.connect();
    await b.connect();
    const started = await this.call("POST", "/v1/vms/web1/start", { host: "host-a" });
    if (started.status !== 200) throw new Error(JSON.stringify(started));
    return { a, b };
  }

  entry(home = HOME): HomeEntry | undefined {
    return this.tunnel.entries().find((entry) => entry.home === home);
  }

  async call(method: string, path: string, body?: unknown): Promise<{ readonly status: number; readonly body: Record<string, unknown> }> {
    const response = await fetch(`http://127.0.0.1:${String(this.at.api.port)}${path}`, {
      method,
      ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
    });
    return { status: response.status, body: (await response.json()) as Record<string, unknown> };
  }

  where(vm = "web1"): Promise<Record<string, unknown>> {
    return this.call("GET", `/v1/vms/${vm}`).then(({ body }) => body);
  }

  async close(): Promise<void> {
    await Promise.all(this.agents.map((agent) => agent.disconnect()));
    await this.homeAgent.close();
  }
}

export function temporary(t: Test): string {
  const directory = mkdtempSync(join(tmpdir(), "careof-home-agent-"));
  t.teardown(() => { rmSync(directory, { recursive: true, force: true }); });
  return directory;
}

/** Until `fits` is true, looking every few milliseconds. */
export async function until(what: string, fits: () => boolean | Promise<boolean>, ms = 30_000): Promise<void> {
  const end = Date.now() + ms;
  while (!(await fits())) {
    if (Date.now() > end) throw new Error(`${what}: not within ${String(ms)} ms`);
    await sleep(3);
  }
}
