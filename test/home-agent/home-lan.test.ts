import { once } from "node:events";
import { openSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pino } from "pino";
import t from "tap";
import { readHomeAgentConfig } from "../../home-agent/config.js";
import { HomeAgent } from "../../home-agent/home-agent.js";
import { Journal } from "../../home-agent/store/journal.js";
import type { Ipv4 } from "../../model/address.js";
import { SystemClock } from "../../model/clock.js";
import { epoch, vmId } from "../../model/ids.js";
import { LinuxHomeLan } from "../../net/home-lan-linux.js";
import { LinuxPathWire } from "../../net/path-mtu.js";
import { setNetworkNamespace } from "../../net/syscall.js";
import { believes, HomeSegment, macOf, type Neighbour } from "../net/lab/home-segment.js";
import type { Namespace } from "../net/lab/namespaces.js";
import { arpRequest, ETHERTYPE } from "../net/lab/packets.js";
import { deliver, Topology, type Guest } from "../net/lab/topology.js";
import { Wire } from "../net/lab/wire.js";
import { configFile, temporary, tokenHash, until } from "./bench.js";
import { ScriptedAgent } from "./scripted-agent.js";

/**
 * A whole home agent between a bridged home LAN and a host, real neighbours with real caches: the VM leaves the LAN, is reached through the home agent, comes back.
 */

t.setTimeout(240_000); // a busy machine
const PATIENCE_MS = 20_000;

const topology = new Topology();
const { a, homeAgent: machine } = topology;
const [vm, outside] = topology.guests as [Guest, Guest];
const segment = new HomeSegment(topology.all, machine);
const [near, later] = segment.neighbours as [Neighbour, Neighbour];
const away = vm.on(a);
const atHome = segment.atHome(vm);
await a.net.within(() => a.ports.set([topology.port(vm)]));
await a.net.within(() => a.tunnel.set([deliver(vm)]));
const us = macOf(machine, "home0");
t.teardown(() => topology.close());
// All that follows, sockets and threads included, is on the home agent's machine.
setNetworkNamespace(openSync(machine.path, "r"));

const directory = temporary(t);
const config = readHomeAgentConfig(configFile(directory, {
  tunnel: { uplink: "uplink", address: "192.0.2.1" },
  home: { prefixes: ["198.51.100.0/24"], mode: "proxy-arp", interface: "home0" },
  hosts: [{ name: "host-a", careOf: [a.careOf], tokenHash: tokenHash("token-host-a") }],
  vms: [
    { name: "web1", homeAddresses: [vm.home], mac: vm.mac, keyFile: "web1.key", hosts: ["host-a"] },
    { name: "ext1", homeAddresses: [outside.home], mac: outside.mac, keyFile: "web1.key", hosts: ["host-a"], driver: "external", external: { port: "tap*" } },
  ],
}));
const files = join(import.meta.dirname, "..", "net", "lab", "worker.js");

interface Running {
  readonly home: HomeAgent;
  readonly agent: ScriptedAgent;
  readonly api: number;
  readonly close: () => Promise<void>;
}

let tunnel: Topology["home"] | null = topology.home;

async function start(running: boolean): Promise<Running> {
  const [ours, store] = [tunnel ?? topology.homeTunnel(), await Journal.open({ directory: join(directory, "state") })];
  tunnel = null;
  const homeLan = new LinuxHomeLan({ interface: "home0", maxEntries: 100, runDir: directory });
  const home = await HomeAgent.open({ config, readConfig: () => config, clock: new SystemClock(), log: pino({ level: process.env["CAREOF_TEST_LOG"] ?? "silent" }), tunnel: ours, pathWire: new LinuxPathWire(), homeLan, store, version: "test" });
  const { agents, api } = await home.start();
  const agent = new ScriptedAgent({ name: "host-a", token: "token-host-a", careOf: a.careOf, port: agents.port });
  if (running) agent.runs.set(vmId("web1"), epoch(1));
  await agent.connect();
  return {
    home, agent, api: api.port,
    close: async () => {
      await agent.disconnect();
      await home.close();
    },
  };
}

async function post({ api }: Running, what: "start" | "stop"): Promise<number> {
  const body = what === "start" ? { host: "host-a" } : {};
  return (await fetch(`http://127.0.0.1:${String(api)}/v1/vms/web1/${what}`, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } })).status;
}

/** Some kilobytes there and back over TCP, from a neighbour to the VM. */
async function talks({ net }: Neighbour): Promise<boolean> {
  const child = net.spawn(process.execPath, files, "tcp-exchange", vm.home, "5001", "65536");
  const limit = setTimeout(() => { child.kill("SIGKILL"); }, PATIENCE_MS);
  const [line] = (await Promise.race([once(createInterface({ input: child.stdout }), "line"), once(child, "exit")])) as [unknown];
  clearTimeout(limit);
  return typeof line === "string" && line.includes('"same":true');
}

async function serve(net: Namespace): Promise<void> {
  const child = net.spawn(process.execPath, files, "tcp-serve", "5001");
  t.teardown(() => { child.kill("SIGKILL"); });
  await once(createInterface({ input: child.stdout }), "line");
}

interface Heard {
  readonly answers: string[];
  readonly announced: { readonly owner: string; readonly from: string }[];
}

/** Whoever answers when a neighbour asks, and the gratuitous ARPs meanwhile; not longer than until it is `enough`. */
async function listen(wire: Wire, ms: number, wanted = vm, enough: (heard: Heard) => boolean = () => false): Promise<Heard> {
  const heard: Heard = { answers: [], announced: [] };
  const { answers, announced } = heard;
  const home = (bytes: Buffer, at: number): boolean => [...bytes.subarray(at, at + 4)].join(".") === wanted.home;
  await wire.frame((bytes) => {
    if (bytes.readUInt16BE(12) !== ETHERTYPE.arp || !home(bytes, 28)) return null;
    if (bytes.readUInt16BE(20) === 2) answers.push(hex(bytes, 22));
    else if (home(bytes, 38)) announced.push({ owner: hex(bytes, 22), from: hex(bytes, 6) });
    return enough(heard) ? heard : null;
  }, ms);
  return heard;
}

async function asks(wire: Wire, from: Ipv4, ms = 300, wanted = vm): Promise<readonly string[]> {
  wire.forget();
  wire.send(arpRequest({ mac: wire.mac, address: from }, wanted.home));
  return (await listen(wire, ms, wanted)).answers;
}

const three = ({ announced }: Heard): boolean => announced.length === 3;

t.test("a VM leaves its LAN, and comes home", async (t) => {
  const wire = new Wire(later.net, "eth0");
  const lanOfVm = new Wire(atHome, "eth0");
  await serve(away);
  await serve(atHome);
  let running = await start(false);

  t.ok(await talks(near), "at home, the neighbour reaches the VM itself");
  t.equal(believes(near, vm.home), vm.mac);
  t.same(await asks(wire, later.address), [vm.mac], "the home agent is silent");

  atHome.ip("link set eth0 down");
  wire.forget();
  t.equal(await post(running, "start"), 200);
  await until("the neighbour that knew the VM is corrected without asking", () => believes(near, vm.home) === us, PATIENCE_MS);
  t.ok(await talks(near), "and reaches it where it is");
  t.ok(await talks(later), "as does one that has to ask");
  t.equal(believes(later, vm.home), us);
  const { announced } = await listen(wire, PATIENCE_MS, vm, three);
  t.same(announced, Array.from({ length: 3 }, () => ({ owner: us, from: us })), "three gratuitous ARPs");

  await running.close();
  later.net.ip(`neigh flush to ${vm.home} dev eth0`);
  t.ok(await talks(later), "while the home agent is away the kernel answers");
  wire.forget();
  running = await start(true);
  await until("it knows the VM again", () => running.home.cache.state(vmId("web1"))?.binding.phase === "bound", PATIENCE_MS);
  t.same((await listen(wire, 500)).announced, [], "nothing is said anew");
  t.same(await asks(wire, later.address), [us]);

  machine.ip("link set home0 down", "link set home0 up");
  // The first may come before the bridge passes anything on.
  const anew = await listen(wire, PATIENCE_MS, vm, ({ announced: said }) => said.length === 2);
  t.match(anew, { announced: [{ owner: us }, { owner: us }] }, "an interface that was down: the kernel had forgotten");
  t.same(await asks(wire, later.address), [us]);

  wire.forget();
  t.equal(await post(running, "stop"), 200);
  t.same(await asks(wire, later.address, 100), [], "stopped: nobody answers");
  t.same(machine.exec("ip", "neigh", "show", "proxy").trim(), "");
  atHome.ip("link set eth0 up");
  lanOfVm.send(arpRequest({ mac: lanOfVm.mac, address: vm.home }, vm.home));
  await until("the VM's own announcement holds", () => believes(near, vm.home) === vm.mac, PATIENCE_MS);
  const after = await listen(wire, PATIENCE_MS, vm, ({ announced: said }) => said.some(({ from }) => from === us));
  t.ok(after.announced.every(({ owner }) => owner === vm.mac), "from now on all say the same");
  t.ok(after.announced.some(({ from }) => from === us), "the home agent too, and no bridge learns the VM's address from it");
  t.same(await asks(wire, later.address), [vm.mac], "only the VM answers");
  t.ok(await talks(near));
  t.equal(believes(near, vm.home), vm.mac);
  machine.exec("bash", "-c", `exec 3<>/dev/tcp/${vm.home}/5001`);
  t.match(machine.exec("ip", "neigh", "show", "to", vm.home, "dev", "home0"), vm.mac, "the home agent itself finds it on the LAN");

  const metrics = async (): Promise<string> => (await fetch(`http://127.0.0.1:${String(running.api)}/metrics`)).text();
  await until("all are sent", async () => (await metrics()).includes('careof_gratuitous_arps_sent_total{what="home"} 3'), PATIENCE_MS);
  t.match(await metrics(), /careof_gratuitous_arps_sent_total\{what="away"\} [23][\s\S]*careof_proxied_addresses 0/);
  await running.close();
  for (const each of [wire, lanOfVm]) each.close();
});

t.test("a VM that something else moves comes home while it is bound: its own announcement ends that", async (t) => {
  const wire = new Wire(later.net, "eth0");
  const here = segment.atHome(outside);
  here.ip("link set eth0 down");
  const running = await start(false);
  t.teardown(() => running.close());
  const phase = (): string | undefined => running.home.cache.state(vmId("ext1"))?.binding.phase;
  t.equal((await running.agent.report("ext1", "runs", 0)).reason, "accepted");
  t.same(await asks(wire, later.address, 300, outside), [us]);

  near.net.exec("bash", "-c", `exec 3<>/dev/udp/${outside.home}/9; echo x >&3`);
  await until("a neighbour takes the home agent for it", () => believes(near, outside.home) === us, PATIENCE_MS);
  here.ip("link set eth0 up");
  const lanOfVm = new Wire(here, "eth0");
  lanOfVm.send(arpRequest({ mac: lanOfVm.mac, address: outside.home }, outside.home));
  await until("the binding ends", () => phase() === "none", PATIENCE_MS);
  t.equal(await lanOfVm.frame((bytes) => (bytes.readUInt16BE(12) === ETHERTYPE.arp && bytes.readUInt16BE(20) === 2 ? true : null), 300), null, "the VM hears nobody who has its address");
  await until("the neighbour knows the VM itself", () => believes(near, outside.home) === outside.mac, PATIENCE_MS);
  t.same(await asks(wire, later.address, 300, outside), [outside.mac], "only the VM answers");
  for (const each of [wire, lanOfVm]) each.close();
});

function hex(bytes: Buffer, at: number): string {
  return [...bytes.subarray(at, at + 6)].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}
