import { mkdirSync } from "node:fs";
import { freemem, totalmem } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { ipv4, type Ipv4 } from "../model/address.js";
import { SystemClock } from "../model/clock.js";
import { fields } from "../model/config.js";
import { ipInIp } from "../model/locator.js";
import { createLogger } from "../model/log.js";
import { openHostTunnel } from "../net/data-plane.js";
import { EndClaim } from "../net/end-claim.js";
import { refuseLeftHome } from "../net/left-end.js";
import { Netlink } from "../net/netlink/client.js";
import { requireLink } from "../net/netlink/links.js";
import { LinuxPathWire, PathMtus } from "../net/path-mtu.js";
import { StragglerSocket } from "../net/stragglers.js";
import { UplinkMender } from "../net/uplink-mender.js";
import { LinuxUplinkNews } from "../net/uplink-news.js";
import { LinuxVmPorts } from "../net/vm-port-linux.js";
import { HostAgent } from "./agent.js";
import { readAgentConfig, relayEndpoint, type AgentConfig } from "./config.js";
import { openControl } from "./control.js";
import { LinuxEyes } from "./external/eyes.js";
import { OutsideVms } from "./external/outside-vms.js";
import { Guests } from "./guests.js";
import { holdOf } from "./hold.js";
import { HeartbeatRelay } from "./heartbeat-relay.js";
import { QemuDriver } from "./hypervisor/qemu.js";
import { RelayListener } from "./migration/relay-listener.js";
import { Urgency } from "./migration/urgency.js";
import { Migrations } from "./migrations.js";
import { Outbox } from "./outbox.js";
import { migrationFile, outsideRecord, vmRecord } from "./record-shapes.js";
import { nextRestartCounter, Records } from "./records.js";
import { ASK_LIMIT, Session } from "./session.js";
import { readToken } from "./token.js";
import { VmNetwork } from "./vm-network.js";

/** RFC 2003 §3.1: one IPv4 header. */
const TUNNEL_HEADER = 20;
/** In runDir; `careof port` knows the name too. */
const CONTROL_SOCKET = "control.sock";
const tunnelEnds = z.strictObject({ addresses: z.array(fields.ipv4) });

/**
 * Runs the host agent until `signal` says so; then guests, ports and tunnels are left as they are and the promise resolves. SIGHUP, which would end a process,
 * is answered in the log.
 * @throws CareofError `config-…`, `both-ends`, `not-ours`, `token-unreadable`, `record-unreadable`, `adopt-failed`, `unsupported`, `no-link`
 */
export async function runAgent(configFile: string, signal: AbortSignal): Promise<void> {
  const config = readAgentConfig(configFile);
  // Before anything is touched: routes to the VMs of a former life would take the place of a home agent's. And for as long as this runs, also while no tunnel is open yet.
  const claim = new EndClaim("host");
  try {
    requireNoLeftHome(config.uplink);
    await runOnClaimed(config, signal);
  } finally {
    claim.close();
  }
}

async function runOnClaimed(config: AgentConfig, signal: AbortSignal): Promise<void> {
  const log = createLogger("agent", config.log.level).child({ host: config.name });
  const hangUp = (): void => { log.warn("SIGHUP changes nothing: a host agent takes a changed configuration over when it is restarted, and its guests run on meanwhile"); };
  process.on("SIGHUP", hangUp);
  const clock = new SystemClock({ keepAlive: true });
  mkdirSync(config.runDir, { recursive: true, mode: 0o700 });
  const restartCounter = nextRestartCounter(config.stateDir, clock.now());
  const ends = new Records(join(config.stateDir, "home-agent"), tunnelEnds);
  const pathMtu = config.tunnel.pathMtu === 0 ? uplinkMtu(config.uplink) : config.tunnel.pathMtu;

  const driver = new QemuDriver({ binary: config.qemu.binary, accel: config.qemu.accel, probeKernel: config.qemu.probeKernel ?? null, directory: join(config.runDir, "guests"), clock, log });
  await driver.facts();
  const ports = new LinuxVmPorts({ uplink: config.uplink, gateway: config.gateway, table: config.ports.table, pathMtu });
  const network = new VmNetwork({ ports, queueLength: config.ports.queueLength, guestMtu: config.ports.mtu === 0 ? pathMtu - TUNNEL_HEADER : config.ports.mtu });
  // Its news begins before anything is set there, so that no loss of it is overlooked.
  const uplink = new UplinkMender({ uplink: config.uplink, news: new LinuxUplinkNews({ uplink: config.uplink, address: config.careOf }), clock, log, renew: () => network.renew() });
  const session: Session = new Session({
    url: config.homeAgent, host: config.name, token: readToken(config.tokenFile, log), clock, log, random: Math.random,
    register: () => agent.registration(),
    registered: (answer) => { agent.registered(answer); },
    lost: (error) => { agent.lost(error); },
    request: (body, answer) => { agent.request(body, answer); },
  });
  const outbox = new Outbox({ ask: (body) => session.ask(body, "decision", ASK_LIMIT), get registered() { return session.registered; } }, clock, log);
  const guests: Guests = new Guests({
    driver, network, clock, log, records: new Records(join(config.stateDir, "vms"), vmRecord), died: (resident, detail) => { agent.guestDied(resident, detail); },
    reached: (resident) => { agent.reached(resident); },
  });
  const relays = new RelayListener({
    ...relayEndpoint(config),
    onIntruder: (detail) => { log.warn({ reason: "bad-token", detail }, "somebody without a move's secret knocked at the relay"); },
  });
  const migrations = new Migrations({
    host: config.name, careOf: config.careOf, relays, runDir: config.runDir, driver, guests, network, outbox, clock, log,
    records: new Records(join(config.stateDir, "migrations"), migrationFile), say: (body) => { session.tell(body); },
    stragglers: new StragglerSocket(config.careOf), keepMovedDisks: config.disks.keepMoved, hold: holdOf(process.env["CAREOF_HOLD"], clock, log), urgency: new Urgency(log),
  });
  const { queueLength } = config.ports;
  const outside = new OutsideVms({
    host: config.name, locator: ipInIp(config.careOf, pathMtu), gatewayMac: config.gateway.mac, eyes: new LinuxEyes({ careOf: config.careOf, queueLength }), network, outbox,
    records: new Records(join(config.stateDir, "external"), outsideRecord), tell: (body) => { session.tell(body); }, queueLength, clock, log,
  });
  const heartbeats = new HeartbeatRelay({
    address: config.gateway.address, port: config.heartbeats.port, perVmPerSecond: config.heartbeats.perVmPerSecond, clock, log,
    owners: () => network.owners(), say: (body) => { session.tell(body); },
  });
  const paths = new PathMtus({
    wire: new LinuxPathWire(), clock, address: config.careOf, changed: (to, mtu) => { agent.pathChanged(to, mtu); },
    failed: (error) => { log.warn({ reason: error.code, detail: error.message }, "a path could not be probed"); },
  });
  const agent: HostAgent = new HostAgent({
    host: config.name, careOf: config.careOf, pathMtu, memoryBytes: totalmem(), restartCounter, driver, network, paths, guests, migrations, outbox, outside, session, heartbeats, clock, log,
    openTunnel: (homeAgents) => {
      const { tunnel, reason } = openHostTunnel(config.tunnel.dataPlane, {
        uplink: config.uplink, careOf: config.careOf, homeAgents, pathMtu, gateway: config.gateway, runDir: config.runDir, maxEntries: config.tunnel.maxEntries,
      });
      log.info({ dataPlane: tunnel.driver, reason, uplink: config.uplink, careOf: config.careOf, freeMemory: freemem() }, `data plane: ${tunnel.driver} (${reason})`);
      return tunnel;
    },
    knownTunnelEnds: ends.all().get("tunnel")?.addresses ?? config.homeAgents ?? addressOf(config),
    rememberTunnelEnds: (addresses) => { ends.write("tunnel", { addresses: [...addresses] }); },
  });
  try {
    await agent.start();
    uplink.start();
  } catch (thrown) {
    // What waits on another thread would keep the process for ever, and nobody would start it again.
    uplink.close();
    await Promise.allSettled([agent.close(), ports.close({ keep: true })]);
    process.off("SIGHUP", hangUp);
    throw thrown;
  }
  const control = await openControl(join(config.runDir, CONTROL_SOCKET), outside, log);
  await new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => { resolve(); }, { once: true });
  });
  log.info("host agent ends; guests and tunnels stay");
  uplink.close();
  await control.close();
  await agent.close();
  await ports.close({ keep: true });
  process.off("SIGHUP", hangUp);
}

/** The home agent's own address, where its URL has one: its tunnels end there unless it says otherwise. */
function addressOf(config: AgentConfig): readonly Ipv4[] {
  const { hostname } = new URL(config.homeAgent);
  return /^[0-9.]+$/.test(hostname) ? [ipv4(hostname)] : [];
}

/** @throws CareofError `not-ours` */
function requireNoLeftHome(uplink: string): void {
  const netlink = new Netlink();
  try {
    refuseLeftHome(netlink, uplink);
  } finally {
    netlink.close();
  }
}

/** By netlink, which sees the process's own network namespace; /sys may show another one. @throws CareofError `no-link` */
function uplinkMtu(uplink: string): number {
  const netlink = new Netlink();
  try {
    return requireLink(netlink, uplink).mtu;
  } finally {
    netlink.close();
  }
}
