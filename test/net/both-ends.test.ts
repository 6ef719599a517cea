import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import t, { type Test } from "tap";
import { ipv4, mac, prefix, type Ipv4 } from "../../model/address.js";
import { DATA_PLANES, openHomeTunnel, openHostTunnel } from "../../net/data-plane.js";
import { CLAIMS, EndClaim } from "../../net/end-claim.js";
import { probeDataPlanes } from "../../net/probe-ipip.js";
import type { HostTunnel } from "../../net/tunnel.js";
import { LinuxVmPorts } from "../../net/vm-port-linux.js";
import { Namespaces, type Namespace } from "./lab/namespaces.js";
import { CORRESPONDENT, GATEWAY, HOME_AGENT, MTU } from "./lab/topology.js";
import { Wire } from "./lab/wire.js";

/* A machine that is home agent and host at once: not in one network namespace, which is refused, but with one for the host agent beside the home agent's. */

const HOME_PREFIX = prefix("198.51.100.0/24");
const VM = { home: ipv4("198.51.100.7"), mac: mac("52:54:00:00:00:01"), port: "vm1" };
const NEAR = ipv4("192.0.2.9");
const FAR = ipv4("192.0.2.10");
const TABLE = 1234;
const HOLDER = join(import.meta.dirname, "lab", "holder.js");
const CLAIMANT = join(import.meta.dirname, "lab", "claimant.js");
const ROUNDS = 100;

interface Host {
  readonly net: Namespace;
  readonly careOf: Ipv4;
  readonly tunnel: HostTunnel;
  readonly ports: LinuxVmPorts;
  readonly guest: Wire;
}

const all = new Namespaces();
t.teardown(() => { all.destroy(); });
t.setTimeout(120_000); // a busy machine
let runs = 0;
const homeOptions = (uplink: string) => ({ uplink, address: HOME_AGENT, homePrefixes: [HOME_PREFIX], runDir: join(all.folder, `home${String(runs++)}`), maxEntries: 100 });
const hostOptions = (uplink: string, careOf: Ipv4) => ({ uplink, careOf, homeAgents: [HOME_AGENT], pathMtu: 0, runDir: join(all.folder, `host${String(runs++)}`), maxEntries: 100 });

t.test("one network namespace is one end: the other is refused while that lives, also as doctor says", async (t) => {
  const [machine, other] = [all.make("one"), all.make("other")];
  all.connect(machine, "uplink", other, "uplink");
  machine.ip(`address add ${HOME_AGENT}/24 dev uplink`);
  const openHome = (net: Namespace, wanted: (typeof DATA_PLANES)[number] = "auto") => net.within(() => openHomeTunnel(wanted, homeOptions("uplink")).tunnel);
  const openHost = (net: Namespace, wanted: (typeof DATA_PLANES)[number] = "auto") => net.within(() => openHostTunnel(wanted, hostOptions("uplink", NEAR)).tunnel);
  const doctor = (end: "home" | "host") => machine.within(() => probeDataPlanes("auto", end, "uplink"));

  const home = openHome(machine);
  for (const wanted of DATA_PLANES) t.throws(() => openHost(machine, wanted), { code: "both-ends", message: /a home agent of careof runs in this network namespace/ }, wanted);
  t.match(doctor("host"), [{ ok: false, found: /a home agent of careof runs/, mend: /namespace of its own/ }]);
  t.match(doctor("home"), [{ ok: true }], "its own");
  await openHost(other).close({ keep: false });
  await machine.within(() => home.close({ keep: true }));

  const host = openHost(machine);
  const second = openHost(machine);
  await machine.within(() => host.close({ keep: true }));
  for (const wanted of DATA_PLANES) t.throws(() => openHome(machine, wanted), { code: "both-ends", message: /a host agent of careof runs/ }, `${wanted}: one of two is enough`);
  t.match(doctor("home"), [{ ok: false, found: /a host agent of careof runs/ }]);
  await machine.within(() => second.close({ keep: false }));

  const killed = machine.spawn(process.execPath, HOLDER, "home", "bpf", join(all.folder, "killed"), HOME_AGENT, "[]");
  await once(killed.stdout, "data");
  t.throws(() => openHost(machine), { code: "both-ends" }, "of another process");
  killed.kill("SIGKILL");
  await once(killed, "exit");
  t.match(doctor("host"), [{ ok: false, found: /a home agent's, which does not run now/ }], "what has died is no end, but has left something");
  clearLeft(machine);
  t.match(doctor("host"), [{ ok: true }]);
  await machine.within(() => openHost(machine).close({ keep: false }));
});

/** As an operator does by what doctor says. */
function clearLeft(machine: Namespace): void {
  const [row] = machine.within(() => probeDataPlanes("auto", "host", "uplink"));
  machine.exec("sh", "-c", /"(.*)"/.exec(row?.found ?? "")?.[1] ?? "exit 1");
}

/** What stands in the folder of claims for that namespace, and the name that its claim of `end` has. */
function claimsOf(net: Namespace): { readonly found: () => readonly string[]; readonly path: (end: "home" | "host") => string } {
  const number = String(net.within(() => statSync("/proc/thread-self/ns/net").ino));
  return { found: () => readdirSync(CLAIMS).filter((name) => name.startsWith(number)), path: (end) => join(CLAIMS, `${number}-${end}`) };
}

t.test("of two that start at once one is refused, and never both have what each claims", async (t) => {
  const net = all.make("race");
  const processes = [net.spawn(process.execPath, CLAIMANT), net.spawn(process.execPath, CLAIMANT)];
  const answers = processes.map(({ stdout }) => createInterface({ input: stdout })[Symbol.asyncIterator]());
  const say = async (...words: readonly string[]): Promise<readonly unknown[]> => {
    processes.forEach(({ stdin }, index) => { stdin.write(`${words[index] ?? "none"}\n`); });
    return Promise.all(answers.map(async (answer) => (await answer.next()).value as unknown));
  };
  const outcomes = new Set<string>();
  for (let round = 0; round < ROUNDS; round++) {
    outcomes.add((await say("home", "host")).map(String).sort().join());
    await say("none", "none");
  }
  t.same([...outcomes], ["both-ends,claimed"]);
  t.same(await say("home", "home"), ["claimed", "claimed"], "the same end, of two processes");
  await say("none", "none");
  t.same(await say("none", "host"), ["none", "claimed"], "the other end after both have let go");
  await say("none", "none");
  t.same(claimsOf(net).found(), [], "nothing is left");
  for (const process of processes) process.stdin.end();
  await Promise.all(processes.map((process) => once(process, "exit")));
});

t.test("a claim is nobody's but root's, and a file without a process is no claim", (t) => {
  const net = all.make("mine");
  const { found, path } = claimsOf(net);
  mkdirSync(CLAIMS, { recursive: true });
  writeFileSync(path("home"), ""); // as a process leaves it that was killed
  const claim = net.within(() => new EndClaim("host"));
  t.throws(() => net.within(() => new EndClaim("home")), { code: "both-ends" });
  t.equal(found().length, 1, "and it is tidied up");
  t.equal(statSync(CLAIMS).mode & 0o777, 0o700);
  const stranger = spawnSync("ls", [path("host")], { uid: 65_534, gid: 65_534, encoding: "utf8" });
  t.match(stranger, { status: 2, stderr: /ermission denied/ }, "what cannot be opened cannot be locked");
  claim.close();
  t.same(found(), []);
  t.end();
});

t.test("what a home agent has left on the uplink is in a host's way, and it says how to be rid of it", async (t) => {
  const [machine, other] = [all.make("former"), all.make("peer")];
  all.connect(machine, "uplink", other, "uplink");
  machine.ip(`address add ${HOME_AGENT}/24 dev uplink`);
  const { tunnel } = machine.within(() => openHomeTunnel("bpf", homeOptions("uplink")));
  await machine.within(() => tunnel.set([{ home: VM.home, active: NEAR, accept: [NEAR], mtu: MTU }]));
  await machine.within(() => tunnel.close({ keep: true }));
  for (const wanted of DATA_PLANES) {
    t.throws(() => machine.within(() => openHostTunnel(wanted, hostOptions("uplink", HOME_AGENT))), { code: "not-ours", message: /a home agent's.*"tc filter del dev uplink ingress .*egress .*shall not run here again/ }, wanted);
  }
  t.match(machine.within(() => probeDataPlanes("auto", "host", "uplink")), [{ ok: false, found: /a home agent's/, mend: /the commands stand there/ }]);
  clearLeft(machine);
  t.equal(machine.exec("ip", "route", "show", "proto", "202"), "");
  t.match(machine.within(() => probeDataPlanes("auto", "host", "uplink")), [{ ok: true }]);
  await machine.within(() => openHostTunnel("bpf", hostOptions("uplink", HOME_AGENT)).tunnel.close({ keep: false }));
});

t.test("a host agent in a namespace of its own, on a bridge with the home agent's uplink: a VM here and elsewhere", async (t) => {
  const [correspondent, machine, near, far] = ["c", "m", "n", "f"].map((name) => all.make(name)) as [Namespace, Namespace, Namespace, Namespace];
  all.connect(correspondent, "lan", machine, "lan");
  correspondent.ip(`address add ${CORRESPONDENT}/24 dev lan`, "route add default via 203.0.113.1");
  all.connect(far, "uplink", machine, "cable");
  all.connect(near, "uplink", machine, "host");
  machine.ip("link add br0 type bridge", "link set cable master br0", "link set host master br0", "link set br0 up", `address add ${HOME_AGENT}/24 dev br0`, "address add 203.0.113.1/24 dev lan");
  const home = machine.within(() => openHomeTunnel("bpf", homeOptions("br0")).tunnel);
  const hosts = await Promise.all(([[near, NEAR, "near"], [far, FAR, "far"]] as const).map(async ([net, careOf, label]): Promise<Host> => {
    net.ip(`address add ${careOf}/24 dev uplink`);
    const inside = all.make(`vm-${label}`);
    all.connect(net, VM.port, inside, "eth0");
    inside.ip(`link set eth0 address ${VM.mac} mtu ${String(MTU)}`, `address add ${VM.home}/32 dev eth0`, "route add default via 169.254.1.1 dev eth0 onlink");
    const tunnel = net.within(() => openHostTunnel("bpf", hostOptions("uplink", careOf)).tunnel);
    const ports = net.within(() => new LinuxVmPorts({ uplink: "uplink", gateway: GATEWAY, table: TABLE, pathMtu: 0 }));
    await net.within(() => ports.set([{ name: VM.port, kind: "external", mac: VM.mac, homeAddresses: [VM.home], queueLength: 1000, mtu: MTU }]));
    return { net, careOf, tunnel, ports, guest: new Wire(inside, "eth0") };
  }));
  const [here, there] = hosts as [Host, Host];
  const lan = new Wire(correspondent, "lan");
  const lanRouter = new Wire(machine, "lan").mac;
  const carries = async (t: Test, { guest }: Host, what: string): Promise<void> => {
    const [down, up, cut] = [Buffer.from(`down ${what}`), Buffer.from(`up ${what}`), Buffer.alloc(1480, 7)];
    lan.sendIp(lanRouter, { source: CORRESPONDENT, destination: VM.home, payload: down });
    t.ok(await guest.packet(({ payload }) => payload.equals(down)), `${what}: down`);
    guest.sendIp(GATEWAY.mac, { source: VM.home, destination: CORRESPONDENT, payload: up });
    t.ok(await lan.packet(({ payload }) => payload.equals(up)), `${what}: up`);
    lan.sendIp(lanRouter, { source: CORRESPONDENT, destination: VM.home, payload: cut, dontFragment: false, id: 9 });
    let bytes = 0;
    await guest.packet(({ fragment, payload }) => (bytes += fragment === 0 ? 0 : payload.length) >= cut.length);
    t.equal(bytes, cut.length, `${what}: what has to be cut`);
  };
  for (const [at, other, what] of [[here, there, "here"], [there, here, "away"], [here, there, "back"]] as const) {
    await at.net.within(() => at.tunnel.set([{ role: "deliver", home: VM.home, port: VM.port, mac: VM.mac, stragglersFrom: [other.careOf] }]));
    if (what !== "here") other.net.within(() => { other.tunnel.put({ role: "forward", home: VM.home, to: at.careOf }); });
    await machine.within(() => home.set([{ home: VM.home, active: at.careOf, accept: [at.careOf], mtu: MTU }]));
    await carries(t, at, what);
  }
  await machine.within(() => home.close({ keep: false }));
  for (const { net, ports, tunnel } of hosts) {
    await net.within(() => tunnel.close({ keep: false }));
    await net.within(() => ports.close({ keep: false }));
  }
});
