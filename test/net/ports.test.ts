import type { ChildProcessWithoutNullStreams } from "node:child_process";
import { once } from "node:events";
import { readSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { join } from "node:path";
import t from "tap";
import { ipv4, mac, prefix } from "../../model/address.js";
import { CareofError } from "../../model/errors.js";
import { careofObject, loadProgram, PinnedMaps } from "../../net/bpf/loader.js";
import { DATA_PLANES, openHomeTunnel, openHostTunnel, type DataPlane } from "../../net/data-plane.js";
import { Netlink } from "../../net/netlink/client.js";
import { requireLink } from "../../net/netlink/links.js";
import { deleteRoute, listRoutes, MAIN_TABLE, putRoute, type Route } from "../../net/netlink/routes.js";
import { probeForwarding, probeKernel, probeNetfilter, probeNetwork, probeReversePath, probeUplink, type Probe } from "../../net/probe.js";
import { probeAuto, probeDataPlanes, probeIpip } from "../../net/probe-ipip.js";
import { close, ioctl, open, requireInterface } from "../../net/syscall.js";
import { BpfHomeTunnel } from "../../net/tunnel-bpf-home.js";
import { LinuxVmPorts } from "../../net/vm-port-linux.js";
import type { VmPort } from "../../net/vm-port.js";
import { GATEWAY } from "./lab/topology.js";
import { kernelHasIpip, Namespaces } from "./lab/namespaces.js";

const TABLE = 77;
const all = new Namespaces();
const host = all.make("host");
const far = all.make("far");
all.connect(host, "uplink", far, "eth0");
all.connect(host, "ext0", far, "ext0");
host.ip("address add 10.0.1.1/24 dev uplink", "address add 192.168.9.1/24 dev ext0");
t.teardown(() => { all.destroy(); });
t.setTimeout(120_000); // a busy machine

const options = { uplink: "uplink", gateway: GATEWAY, table: TABLE, pathMtu: 1400 };
const ports = (): LinuxVmPorts => host.within(() => new LinuxVmPorts(options));
const TAP: VmPort = { name: "cotap1", kind: "tap", mac: mac("52:54:00:00:00:09"), homeAddresses: [ipv4("198.51.100.9"), ipv4("198.51.100.10")], queueLength: 300, mtu: 1380 };
const show = (...given: readonly string[]): string => host.exec("ip", ...given).split("\n").map((line) => line.replaceAll(/\s+/g, " ").trim()).sort().join("\n").trim();
const sysctl = (name: string): string => host.exec("sysctl", "-n", name).trim();

t.test("a TAP as it was wished, in the kernel's own words", async (t) => {
  const made = ports();
  await host.within(() => made.set([TAP]));
  const link = show("-d", "link", "show", TAP.name);
  for (const word of [/mtu 1380 /, /qlen 300/, /state (DOWN|UP|UNKNOWN)/, /<[^>]*UP/, /link\/ether 02:ca:4e:0f:00:01/, /alias careof:77/, /tun type tap pi off vnet_hdr on persist on/]) t.match(link, word);
  t.match(show("-4", "address", "show", "dev", TAP.name), /inet 169\.254\.1\.1\/32/);
  t.equal(show("neigh", "show", "dev", TAP.name), "198.51.100.10 lladdr 52:54:00:00:00:09 PERMANENT\n198.51.100.9 lladdr 52:54:00:00:00:09 PERMANENT");
  t.match(show("route", "show", "table", String(TABLE)), /default via 192\.0\.0\.8 dev uplink proto 203 onlink mtu 1380/);
  for (const table of ["main", String(TABLE)]) {
    for (const address of TAP.homeAddresses) t.match(show("route", "show", "table", table), new RegExp(`^${address.replaceAll(".", "\\.")} dev ${TAP.name} proto 203 scope link`, "m"));
  }
  t.match(show("rule"), /77: from all iif cotap1 lookup 77/);
  t.same(["conf.cotap1.proxy_arp", "conf.cotap1.rp_filter", "conf.cotap1.send_redirects", "conf.all.send_redirects", "conf.uplink.send_redirects", "neigh.cotap1.proxy_delay", "ip_forward"]
    .map((name) => sysctl(`net.ipv4.${name}`)), ["1", "1", "0", "0", "0", "0", "1"]);
  t.equal(sysctl("net.ipv6.conf.cotap1.disable_ipv6"), "1");
  t.equal(show("-6", "address", "show", "dev", TAP.name), "");

  // Without what the kernel goes on to change by itself for a second or two: carrier and the queue that comes with it, and whatever is IPv6.
  const links = (): string => show("-o", "-d", "link").replaceAll(/NO-CARRIER,|,LOWER_UP| qdisc \S+| state \S+/g, "");
  const state = (): string => [links(), show("-4", "-o", "address"), show("-4", "neigh"), show("-4", "route", "show", "table", "all"), show("rule")].join("\n");
  const before = state();
  await host.within(() => made.set([TAP]));
  t.equal(state(), before, "wishing it again changes nothing");
  const changed = { ...TAP, homeAddresses: [ipv4("198.51.100.11")], mac: mac("52:54:00:00:00:08"), queueLength: 301 };
  await host.within(() => made.put(changed));
  t.equal(show("neigh", "show", "dev", TAP.name), "198.51.100.11 lladdr 52:54:00:00:00:08 PERMANENT");
  t.notMatch(show("route", "show", "table", "all"), /198\.51\.100\.9 /);
  t.match(show("link", "show", TAP.name), /qlen 301/);
  await host.within(() => made.close({ keep: true }));

  const next = ports();
  t.same(next.list(), []);
  await host.within(() => next.set([TAP]));
  t.equal(state(), before, "a new process makes of what it finds what is wanted");
  await host.within(() => next.close({ keep: false }));
  t.equal(show("rule").includes("77:"), false);
  t.notMatch(show("link"), /cotap1/);
  t.notMatch(show("route", "show", "table", "all"), /proto 203/);
});

t.test("a port goes while others have their turn, and what is asked for meanwhile waits for that", async (t) => {
  const said = await finished(host.spawn(process.execPath, join(import.meta.dirname, "lab", "port-comes-back.js"), "uplink", String(TABLE)));
  t.match(JSON.parse(said), {
    others: true, order: ["one gone: not there", "back: there", "other gone: not there", "again: not there"], listed: ["cotap1"], refused: /no interface "nowhere0"/, left: [],
  }, said);
});

t.test("after a crash: ours goes, others' stays", async (t) => {
  const crashed = ports();
  await host.within(() => crashed.set([TAP, { ...TAP, name: "ext0", kind: "external", homeAddresses: [ipv4("198.51.100.12")] }]));
  host.ip("tuntap add mode tap name othertap", "tuntap add mode tap name stranger", "link set stranger alias careof:78", "rule add iif othertap lookup 50 priority 50");
  const next = ports();
  await host.within(() => next.set([]));
  const links = show("link");
  t.notMatch(links, /cotap1/);
  for (const name of ["othertap", "stranger", "ext0", "uplink"]) t.match(links, new RegExp(` ${name}[@:]`));
  t.match(show("rule"), /50: from all iif othertap/);
  t.notMatch(show("rule"), /lookup 77/);
  t.match(show("-4", "address", "show", "dev", "ext0"), /192\.168\.9\.1/, "an external port keeps its own address");
  t.notMatch(show("-4", "address", "show", "dev", "ext0"), /169\.254/);
  t.notMatch(show("neigh"), /198\.51\.100\.12/);
  await t.rejects(host.within(() => next.put({ ...TAP, name: "othertap" })), { code: "not-ours" });
  host.ip("link del othertap", "link del stranger", "rule del iif othertap lookup 50");
  await host.within(() => next.close({ keep: false }));
  await host.within(() => crashed.close({ keep: true }));
});

/** Opens a TAP that is there as QEMU does. The namespace counts in which it is opened. */
function readerOf(name: string): number {
  const reader = open("/dev/net/tun", 0o4002);
  const request = Buffer.alloc(40);
  request.write(name, 0);
  request.writeUInt16LE(0x0002 | 0x1000 | 0x4000, 16);
  ioctl(reader, 0x4004_54ca, request, "the TAP");
  return reader;
}

t.test("a TAP keeps as many frames as its queue is long while its reader is halted", async (t) => {
  const made = ports();
  await host.within(() => made.set([TAP]));
  const reader = host.within(() => readerOf(TAP.name));
  await sleep(50);
  const frame = Buffer.alloc(60);
  frame.writeUInt16BE(0x88b5, 12);
  let refused = 0;
  for (let sequence = 0; sequence < TAP.queueLength + 50; sequence++) {
    frame.writeUInt32BE(sequence, 20);
    try {
      host.within(() => { made.sendFrame(TAP.name, frame); });
    } catch (thrown) {
      t.match(thrown, { code: "kernel-refused", retryable: true });
      refused++;
    }
  }
  t.ok(refused <= 50);
  const header = 10;
  const seen: number[] = [];
  for (let bytes = readFrame(reader); bytes !== null; bytes = readFrame(reader)) {
    if (bytes.readUInt16BE(header + 12) === 0x88b5) seen.push(bytes.readUInt32BE(header + 20));
  }
  t.same(seen, Array.from({ length: seen.length }, (_, index) => index), "in order, from the first on");
  t.ok(seen.length >= TAP.queueLength - 5 && seen.length <= TAP.queueLength, `${String(seen.length)} of ${String(TAP.queueLength)}`);
  close(reader);
  await host.within(() => made.close({ keep: false }));
});

t.test("what waits in front of a TAP is seen through its reader's descriptor", async (t) => {
  const made = ports();
  await host.within(() => made.set([TAP]));
  const frame = Buffer.alloc(60);
  frame.writeUInt16BE(0x88b5, 12);
  t.throws(() => host.within(() => made.queue(TAP.name, process.pid)), { code: "no-reader" }, "nobody has it open");
  t.throws(() => host.within(() => made.queue(TAP.name, 0x3f_ffff)), { code: "no-reader" }, "no such process");

  const reader = host.within(() => readerOf(TAP.name));
  const queue = host.within(() => made.queue(TAP.name, process.pid));
  const buffer = Buffer.alloc(2048);
  await sleep(50);
  // What the kernel itself may have sent when the TAP came up.
  while (!queue.isEmpty()) readSync(reader, buffer);
  host.within(() => { made.sendFrame(TAP.name, frame); made.sendFrame(TAP.name, frame); });
  t.equal(queue.isEmpty(), false);
  readSync(reader, buffer);
  t.equal(queue.isEmpty(), false, "one of two was taken");
  readSync(reader, buffer);
  t.equal(queue.isEmpty(), true);

  const ip = Buffer.alloc(60);
  ip.writeUInt16BE(0x0800, 12);
  ip.writeUInt8(0x45, 14);
  host.within(() => { for (let n = 0; n < 5; n++) made.sendFrame(TAP.name, n === 1 ? frame : ip); });
  const taken = queue.take(3);
  t.same([taken.frames, taken.unfit, taken.packets], [3, 0, [ip.subarray(14), ip.subarray(14)]], "IPv4 only, without the headers in front of it");
  t.equal(queue.isEmpty(), false);
  t.match(queue.take(10), { frames: 2, unfit: 0 });
  t.same(queue.take(10), { frames: 0, packets: [], unfit: 0 });
  queue.close();
  queue.close();
  t.equal(queue.isEmpty(), true);
  close(reader);
  await host.within(() => made.set([]));
  await host.within(() => made.close({ keep: false }));
});

t.test("wishes that cannot be", async (t) => {
  for (const table of [0, -1, 1.5, 253, 254, 255, 32766]) t.throws(() => host.within(() => new LinuxVmPorts({ ...options, table })), { code: "malformed-table" }, String(table));
  const lost = host.within(() => new LinuxVmPorts({ ...options, uplink: "nowhere0" }));
  await t.rejects(host.within(() => lost.set([TAP])), { code: "no-link" });
  t.notMatch(show("link"), /cotap1/);
  await host.within(() => lost.close({ keep: true }));
  t.throws(() => host.within(() => requireInterface("nowhere0")), { code: "no-link", retryable: true });

  const netlink = host.within(() => new Netlink());
  const route: Route = { destination: { address: ipv4("198.51.100.50"), length: 32 }, table: MAIN_TABLE, protocol: 250, device: 9999, via: null, mtu: 0, metric: 0 };
  t.throws(() => { putRoute(netlink, route); }, { code: "kernel-refused", message: /route to 198\.51\.100\.50\/32.*ENODEV/, cause: { errno: 19 } });
  const many = Array.from({ length: 300 }, (_, index): Route => ({ ...route, destination: { address: ipv4(`10.77.${String(index >> 8)}.${String(index & 255)}`), length: 32 }, device: null }));
  for (const each of many) putRoute(netlink, each);
  t.equal(listRoutes(netlink, 250).length, 300);
  for (const each of many) deleteRoute(netlink, each);
  deleteRoute(netlink, route);
  t.equal(listRoutes(netlink, 250).length, 0);
  t.throws(() => requireLink(netlink, "nowhere0"), { code: "no-link" });
  netlink.close();
});

t.test("an uplink that disappears: what is left can still be taken down", async (t) => {
  all.connect(host, "brief", far, "brief");
  const tunnel = host.within(() => new BpfHomeTunnel({ uplink: "brief", address: ipv4("10.0.1.1"), homePrefixes: [prefix("198.51.100.0/24")], runDir: join(all.folder, "brief"), maxEntries: 10 }));
  const entry = { home: ipv4("198.51.100.7"), active: null, accept: [], mtu: 1480 };
  await host.within(() => tunnel.set([entry]));
  host.ip("link del brief");
  await t.rejects(host.within(() => tunnel.set([entry])), { code: "no-link", retryable: true });
  host.within(() => { tunnel.drop(entry.home); });
  t.same(tunnel.entries(), []);
  await host.within(() => tunnel.close({ keep: false }));
  t.notMatch(show("route"), /198\.51\.100/);
});

t.test("the data plane is chosen with a reason, or refused with one", async (t) => {
  const home = { uplink: "uplink", address: ipv4("10.0.1.1"), homePrefixes: [prefix("198.51.100.0/24")], runDir: join(all.folder, "choice"), maxEntries: 10 };
  const hosts = { uplink: "uplink", careOf: ipv4("10.0.1.1"), homeAgents: [ipv4("192.0.2.1")], pathMtu: 0, runDir: join(all.folder, "choice-host"), maxEntries: 10 };
  const hasIpip = kernelHasIpip(host);
  for (const wanted of DATA_PLANES) {
    if (wanted === "ipip" && !hasIpip) {
      t.throws(() => host.within(() => openHomeTunnel(wanted, home)), { code: "unsupported", message: /no ipip device/ });
      t.throws(() => host.within(() => openHostTunnel(wanted, hosts)), { code: "unsupported", message: /no ipip device/ });
      continue;
    }
    const { reason, tunnel } = host.within(() => openHomeTunnel(wanted, home));
    t.equal(tunnel.driver, wanted === "ipip" ? "ipip" : "bpf");
    t.match(reason, wanted === "auto" ? /takes the BPF programs/ : /^configured$/);
    await host.within(() => tunnel.close({ keep: false }));
    await host.within(() => tunnel.close({ keep: false }));
    const other = host.within(() => openHostTunnel(wanted, hosts));
    t.equal(other.tunnel.driver, tunnel.driver);
    await host.within(() => other.tunnel.close({ keep: false }));
  }
  t.throws(() => host.within(() => openHomeTunnel("auto", { ...home, uplink: "nowhere0" })), { code: "no-link" });
  t.throws(() => host.within(() => openHostTunnel("auto", { ...hosts, uplink: "lo" })), { code: "unsupported", message: /bpf: .*not an Ethernet.*ipip: / });
  if (hasIpip) {
    const { reason, tunnel } = host.within(() => openHomeTunnel("auto", { ...home, uplink: "lo" }));
    t.equal(tunnel.driver, "ipip", "a home agent's uplink of another kind");
    t.match(reason, /bpf does not work here: .*not an Ethernet/);
    await host.within(() => tunnel.close({ keep: false }));
  } else {
    t.throws(() => host.within(() => openHomeTunnel("auto", { ...home, uplink: "lo" })), { code: "unsupported", message: /bpf: .*not an Ethernet.*ipip: .*no ipip device/ });
  }
  t.notMatch(show("link"), /careof-ipip/);
  t.throws(() => host.within(() => openHostTunnel("bpf", { ...hosts, homeAgents: [] })), { code: "no-home-agent" });
  t.throws(() => host.within(() => openHostTunnel("bpf", { ...hosts, homeAgents: Array.from({ length: 9 }, () => ipv4("192.0.2.1")) })), { code: "too-many" });
});

t.test("a program that the verifier refuses says why; pins of another shape are replaced", (t) => {
  const maps = new PinnedMaps(join(all.folder, "shapes"), ["config", "counters", "homes", "ports"], 10);
  t.throws(() => loadProgram("home_egress", { get: () => maps.get("ports") }), { code: "kernel-refused", message: /home_egress.*BPF_PROG_LOAD/ });
  t.throws(() => loadProgram("nothing", maps), { code: "no-object" });
  t.throws(() => maps.get("nothing"), { code: "no-object" });
  const key = new Uint8Array(16).fill(1);
  maps.get("homes").update(key, new Uint8Array(4).fill(9));
  t.same(maps.get("homes").keys().length, 1);
  for (let n = 2; n < 11; n++) maps.get("homes").ensure(new Uint8Array(16).fill(n));
  t.throws(() => { maps.get("homes").ensure(new Uint8Array(16).fill(12)); }, CareofError);
  maps.close({ keep: true });
  const same = new PinnedMaps(join(all.folder, "shapes"), ["homes"], 10);
  t.equal(same.get("homes").lookup(key)?.[0], 9);
  same.close({ keep: true });
  const larger = new PinnedMaps(join(all.folder, "shapes"), ["config", "counters", "homes", "ports"], 20);
  t.equal(larger.get("homes").lookup(key), null);
  larger.close({ keep: false });
  t.end();
});

t.test("probes find what is wrong, and say how to mend it", async (t) => {
  const names = (await host.within(() => probeNetwork("uplink"))).map(({ name, ok }) => [name, ok]);
  t.same(names.slice(0, 4), [["bpf", true], ["tun", true], ["clsact", true], ["uplink", true]]);
  t.match(host.within(() => probeIpip()), { ok: true, found: kernelHasIpip(host) ? /has the ipip device/ : /no ipip device/ });
  const plane = (...given: Parameters<typeof probeDataPlanes>): Probe | undefined => host.within(() => probeDataPlanes(...given))[0];
  t.match(plane("auto", "host", "uplink"), { ok: true, found: /^bpf \(auto\): this kernel takes/ });
  t.match(plane("bpf", "home", "uplink"), { ok: true, found: "bpf, as configured" });
  t.match(plane("bpf", "home", "lo"), { ok: false, found: /does not work here: the uplink lo is not an Ethernet interface/, mend: /auto/ });
  t.match(plane("ipip", "home", "uplink"), kernelHasIpip(host) ? { ok: true, found: "ipip, as configured" } : { ok: false, found: /no ipip device/ });
  t.match(plane("auto", "home", "lo"), kernelHasIpip(host) ? { ok: true, found: /^ipip \(auto\): bpf does not work here: the uplink lo/ } : { ok: false, found: /bpf: the uplink lo.*ipip: this kernel/ });
  t.match(plane("auto", "host", "lo"), { ok: false, found: /bpf: the uplink lo.*ipip: the uplink lo/ });
  t.match(host.within(() => probeAuto()), [{ name: "data plane", ok: true, found: "bpf (auto): this kernel takes the BPF programs" }]);
  t.notMatch(show("link"), /coprobe|coipip/);
  // As if it were a trial's: whether or not this kernel has the device, who looks next removes what nobody is at any more.
  host.ip("link add coipip4194305 type veth peer name coipip1");
  plane("ipip", "home", "uplink");
  t.notMatch(show("link"), /coipip4194305/);
  host.ip("link add coipip1 type veth peer name far9");
  plane("ipip", "home", "uplink");
  t.match(show("link"), /coipip1@/, "one whose process is there is left alone");
  host.ip("link del coipip1");
  host.sysctl("net.ipv4.ip_forward", "0");
  t.match(host.within(() => probeForwarding()), { ok: "warn", mend: /ip_forward=1/ });
  host.sysctl("net.ipv4.ip_forward", "1");
  t.match(host.within(() => probeForwarding()), { ok: true });
  host.sysctl("net.ipv4.conf.uplink.rp_filter", "1");
  t.match(host.within(() => probeReversePath("uplink")), { ok: true, found: /strict/, mend: /loose/ });
  t.match(host.within(() => probeUplink("nowhere0")), { ok: false });
  t.match(host.within(() => probeUplink("lo")), { ok: false, found: /not Ethernet/ });
  host.ip("link set ext0 down");
  t.match(host.within(() => probeUplink("ext0")), { ok: false, mend: "ip link set ext0 up" });
  t.match(await host.within(() => probeNetfilter()), { ok: true });
  host.exec("nft", "add table ip careoftest; add chain ip careoftest fw1 { type filter hook forward priority 0; policy drop; }");
  t.match(await host.within(() => probeNetfilter()), { ok: "warn", found: /ip careoftest fw1/ });
  const script = `import(${JSON.stringify(new URL("../../net/probe.js", import.meta.url).href)}).then((probe) => { process.stdout.write(JSON.stringify(probe.probeKernel())); })`;
  const powerless = host.exec("setpriv", "--bounding-set=-all", "--inh-caps=-all", process.execPath, "-e", script);
  t.match(JSON.parse(powerless), [{ name: "bpf", ok: false, mend: /run as root/ }]);
});

/** As before Linux 5.10: every call of bpf_redirect_neigh, which that does not know, becomes one of what no kernel knows. Returns how to undo it. */
function withoutRedirectNeigh(): () => void {
  const [call, redirectNeigh, unknown] = [0x85, 152, 99_999];
  const changed: (() => void)[] = [];
  for (const { instructions } of careofObject().programs) {
    for (let at = 0; at < instructions.length; at += 8) {
      if (instructions.readUInt8(at) !== call || instructions.readUInt8(at + 1) !== 0 || instructions.readInt32LE(at + 4) !== redirectNeigh) continue;
      instructions.writeInt32LE(unknown, at + 4);
      changed.push(() => { instructions.writeInt32LE(redirectNeigh, at + 4); });
    }
  }
  return () => { for (const undo of changed) undo(); };
}

t.test("a kernel that takes BPF programs, but not those of the data plane bpf: doctor says what the agents do", async (t) => {
  const undo = withoutRedirectNeigh();
  t.teardown(undo);
  const runDir = join(all.folder, "old-kernel");
  const home = { uplink: "uplink", address: ipv4("192.0.2.1"), homePrefixes: [], runDir, maxEntries: 10 };
  const kernel = host.within(() => probeKernel());
  const plane = (wanted: DataPlane): Probe | undefined => host.within(() => probeDataPlanes(wanted, "home", "uplink"))[0];
  const unnamed = host.within(() => probeAuto())[0];
  t.match(unnamed, kernelHasIpip(host) ? { ok: true, found: /^ipip \(auto\): bpf does not work here: the kernel refused/ } : { ok: false, found: /bpf: the kernel refused.*ipip: this kernel/ }, "without a configuration too");
  t.match(kernel[0], { name: "bpf", ok: "warn", found: /not those of the data plane bpf: the kernel refused BPF program (home|host)_/ });
  for (const wanted of DATA_PLANES) {
    const said = plane(wanted);
    let took: string;
    try {
      const { tunnel, reason } = host.within(() => openHomeTunnel(wanted, home));
      took = wanted === "auto" ? `${tunnel.driver} (auto): ${reason.split(":")[0] ?? ""}` : `${tunnel.driver}, as configured`;
      await host.within(() => tunnel.close({ keep: false }));
    } catch (thrown) {
      took = thrown instanceof CareofError ? thrown.code : String(thrown);
    }
    if (wanted === "bpf" || !kernelHasIpip(host)) t.match([said?.ok, took], [false, wanted === "bpf" ? "kernel-refused" : "unsupported"], wanted);
    else t.match([said?.ok, said?.found], [true, new RegExp(`^${took.replace(/[()]/g, "\\$&")}`)], wanted);
  }
  undo();
  t.match(plane("auto"), { ok: true, found: /^bpf \(auto\)/ });
  t.match(host.within(() => probeKernel())[0], { ok: true });
  t.notMatch(show("link"), /coprobe|coipip|careof/);
});

/** What a process says until it ends by itself. */
async function finished(child: ChildProcessWithoutNullStreams): Promise<string> {
  let said = "";
  for (const output of [child.stdout, child.stderr]) output.on("data", (chunk: Buffer) => { said += chunk.toString(); });
  await once(child, "close");
  return said;
}

/** What the TAP has next, offload header first; `null` when its queue is empty. */
function readFrame(fd: number): Buffer | null {
  const bytes = Buffer.alloc(2000);
  try {
    return bytes.subarray(0, readSync(fd, bytes));
  } catch (thrown) {
    if (thrown instanceof Error && "code" in thrown && thrown.code === "EAGAIN") return null;
    throw thrown;
  }
}
