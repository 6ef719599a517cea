import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { ipv4, prefix } from "../../model/address.js";
import { probeNetfilter } from "../../net/probe.js";
import type { Namespace } from "./lab/namespaces.js";
import { ICMP, TEST_PROTOCOL, type Packet } from "./lab/packets.js";
import { bound, CORRESPONDENT, deliver, GATEWAY, HOME_AGENT, MTU, Topology, type Guest } from "./lab/topology.js";
import { Wire } from "./lab/wire.js";

/**
 * What rules of a firewall see of the BPF data plane, and what doctor says of them: the home agent's forward hook sees what is inside, both ways; nothing sees the
 * tunnel itself, and nothing on a host sees the VMs.
 */

const topology = new Topology();
const { a, b, homeAgent, correspondent } = topology;
const [one, two] = topology.guests as [Guest, Guest];
for (const host of [a, b]) {
  for (const guest of topology.guests) guest.on(host);
  await host.net.within(() => host.ports.set(topology.guests.map((guest) => topology.port(guest))));
}
await a.net.within(() => a.tunnel.set([deliver(one)]));
await b.net.within(() => b.tunnel.set([deliver(two)]));
await homeAgent.within(() => topology.home.set([bound(one, a), bound(two, b)]));
const lan = new Wire(correspondent, "lan");
const oneOnA = new Wire(one.on(a), "eth0");
const twoOnA = new Wire(two.on(a), "eth0");
const twoOnB = new Wire(two.on(b), "eth0");
const router = new Wire(homeAgent, "lan").mac;
t.teardown(() => topology.close());
t.setTimeout(240_000); // a busy machine
t.beforeEach(() => {
  for (const { net } of [{ net: homeAgent }, a, b]) net.exec("nft", "flush", "ruleset");
  // What earlier tests sent fills their buffers.
  for (const wire of [lan, oneOnA, twoOnA, twoOnB]) wire.forget();
});

const HOME = [prefix("198.51.100.0/24")];
const AWAY_MS = 400;
const PATIENCE_MS = 60_000;
const MEGABYTE = 1024 * 1024;
const UDP = 17;
const worker = join(import.meta.dirname, "lab", "worker.js");
const payloadOf = (text: string): Buffer => Buffer.from(`${text} ${String(Math.random())}`);
const has = (payload: Buffer) => (packet: Packet): boolean => packet.protocol === TEST_PROTOCOL && packet.payload.equals(payload);

/** Does one packet get through? */
async function through(sender: Wire, to: Parameters<Wire["sendIp"]>[0], sketch: Parameters<Wire["sendIp"]>[1], receiver: Wire): Promise<boolean> {
  const payload = payloadOf("x");
  sender.sendIp(to, { ...sketch, payload });
  return (await receiver.packet(has(payload), AWAY_MS)) !== null;
}
const down = (): Promise<boolean> => through(lan, router, { source: CORRESPONDENT, destination: one.home }, oneOnA);
const up = (): Promise<boolean> => through(oneOnA, GATEWAY.mac, { source: one.home, destination: CORRESPONDENT }, lan);
/** From a VM on one host to a VM on the other, and on the same one. */
const across = (): Promise<boolean> => through(oneOnA, GATEWAY.mac, { source: one.home, destination: two.home }, twoOnB);
const beside = (): Promise<boolean> => through(oneOnA, GATEWAY.mac, { source: one.home, destination: two.home }, twoOnA);

function rules(net: Namespace, ...lines: readonly string[]): void {
  net.exec("nft", lines.join("\n"));
}
const table = (...chains: readonly string[]): string => `table ip fw {\n${chains.join("\n")}\n}`;
const chain = (hook: string, ...lines: readonly string[]): string => `chain ${hook} { type filter hook ${hook} priority 0; policy drop;\n${lines.join("\n")}\n}`;
const counted = (net: Namespace, comment: string): number => Number(new RegExp(`counter packets (\\d+).*comment "${comment}"`).exec(net.exec("nft", "list", "ruleset"))?.[1]);

t.test("a forward chain that drops by policy swallows the VMs' traffic, both ways; doctor names it", async (t) => {
  t.same([await down(), await up()], [true, true]);
  rules(homeAgent, table(chain("forward")));
  const { downPackets, upPackets } = topology.home.counters(one.home);
  t.same([await down(), await up()], [false, false]);
  t.equal(topology.home.counters(one.home).downPackets, downPackets, "down: it does not even come to the tunnel");
  t.equal(topology.home.counters(one.home).upPackets, upPackets + 1, "up: it has passed the tunnel's check before");
  t.match(await homeAgent.within(() => probeNetfilter(HOME)), { ok: "warn", found: /ip fw forward drops forwarded packets by policy/, mend: /accept traffic from and to 198\.51\.100\.0\/24/ });
});

t.test("two rules for the home prefix are enough; doctor sees them", async (t) => {
  rules(homeAgent, table(chain("forward", "ip daddr 198.51.100.0/24 accept", "ip saddr 198.51.100.0/24 accept")));
  t.same([await down(), await up()], [true, true]);
  t.match(await homeAgent.within(() => probeNetfilter(HOME)), { ok: true, found: /ip fw forward.*accepts the home prefixes/ });
  rules(homeAgent, "flush ruleset", table(chain("forward", "ip daddr 198.51.100.0/24 accept")));
  t.same([await down(), await up()], [true, false], "one is not");
  t.match(await homeAgent.within(() => probeNetfilter(HOME)), { ok: "warn" });
});

t.test("connection tracking sees whole flows: `ct state invalid drop` takes nothing, through moves and from the middle of a session", async (t) => {
  await serve(one.on(a));
  await serve(correspondent);
  const firewall = table(
    "chain seen { type filter hook prerouting priority -200; ct state invalid counter comment \"invalid\"; }",
    chain("forward",
      "ct state invalid drop", "ct state established,related counter accept comment \"established\"",
      "iifname lan ip daddr 198.51.100.0/24 counter accept comment \"new in\"", "iifname uplink ip saddr 198.51.100.0/24 counter accept comment \"new out\""),
  );
  // Begun before there was any rule: it is tracked from somewhere in its middle.
  const early = exchange(correspondent, one.home, 64 * MEGABYTE);
  const before = topology.home.counters(one.home).downPackets;
  for (const end = Date.now() + PATIENCE_MS; topology.home.counters(one.home).downPackets < before + 50 && Date.now() < end;) await sleep(5);
  rules(homeAgent, firewall);
  t.equal(await early, true, "the session that was there");
  t.equal(await exchange(correspondent, one.home, MEGABYTE), true, "from outside");
  t.equal(await exchange(one.on(a), CORRESPONDENT, MEGABYTE), true, "from the VM");
  t.equal(counted(homeAgent, "invalid"), 0);
  for (const what of ["established", "new in", "new out"]) t.ok(counted(homeAgent, what) > 0, what);
  t.match(await homeAgent.within(() => probeNetfilter(HOME)), { ok: "warn" }, "that it fits is more than doctor can see: it says what to look at");
});

t.test("nothing sees the tunnels: what drops at input and output is of no account, but what the home agent itself has to say", async (t) => {
  rules(homeAgent, table(chain("input"), chain("output")));
  t.same([await down(), await up(), await across()], [true, true, true]);
  lan.sendIp(router, { source: CORRESPONDENT, destination: one.home, payload: Buffer.alloc(MTU, 7) });
  t.ok(await lan.packet(fragNeeded, AWAY_MS) === null, "\"frag needed\" is its own, and is dropped");
  rules(homeAgent, "flush ruleset", table(chain("input")));
  lan.sendIp(router, { source: CORRESPONDENT, destination: one.home, payload: Buffer.alloc(MTU, 7) });
  t.ok(await lan.packet(fragNeeded), "without the rule it is heard");
});

t.test("between VMs on two hosts the home agent's forward hook sees nothing: such rules do not keep them apart", async (t) => {
  rules(homeAgent, table(chain("forward")));
  t.equal(await across(), true);
});

t.test("on a host no rule sees the VMs, but for what the kernel has to answer or to fragment", async (t) => {
  rules(a.net, table(chain("forward"), chain("input"), chain("output")));
  t.same([await down(), await up(), await across()], [true, true, true]);
  await a.net.within(() => a.tunnel.set([deliver(one), deliver(two)]));
  t.equal(await beside(), true, "from VM to VM");
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  oneOnA.sendIp(GATEWAY.mac, { source: one.home, destination: CORRESPONDENT, ttl: 1, payload: payloadOf("ttl") });
  t.equal(await oneOnA.packet(({ protocol, payload }) => protocol === ICMP && payload[0] === 11, AWAY_MS), null);
  rules(a.net, "flush ruleset", table(chain("forward")));
  oneOnA.sendIp(GATEWAY.mac, { source: one.home, destination: CORRESPONDENT, ttl: 1, payload: payloadOf("ttl") });
  t.match(await oneOnA.packet(({ protocol, payload }) => protocol === ICMP && payload[0] === 11), { source: GATEWAY.address }, "its answers leave by output");
  t.match(await a.net.within(() => probeNetfilter()), { ok: "warn", mend: /on a host nothing of the VMs passes there/ });
});

t.test("masquerading on the uplink reaches into the tunnels: the guest sees the home agent instead of the correspondent", async (t) => {
  rules(homeAgent, "table ip nat {\nchain postrouting { type nat hook postrouting priority 100; oifname uplink masquerade; }\n}");
  const payload = payloadOf("masked");
  lan.sendIp(router, { source: CORRESPONDENT, destination: one.home, protocol: UDP, payload: udp(payload) });
  t.match(await oneOnA.packet((packet) => packet.payload.includes(payload)), { source: HOME_AGENT });
  rules(homeAgent, "flush ruleset", "table ip nat {\nchain postrouting { type nat hook postrouting priority 100; oifname uplink ip daddr != 198.51.100.0/24 masquerade; }\n}");
  const plain = payloadOf("plain");
  lan.sendIp(router, { source: ipv4("203.0.113.9"), destination: one.home, protocol: UDP, payload: udp(plain) });
  t.match(await oneOnA.packet((packet) => packet.payload.includes(plain)), { source: "203.0.113.9" }, "with the home prefix left out");
});

function fragNeeded({ protocol, payload }: Packet): boolean {
  return protocol === ICMP && payload[0] === 3 && payload[1] === 4;
}

/** From port 4000 to 4001, without a checksum. */
function udp(payload: Buffer): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt16BE(4000, 0);
  header.writeUInt16BE(4001, 2);
  header.writeUInt16BE(8 + payload.length, 4);
  return Buffer.concat([header, payload]);
}

async function serve(net: Namespace): Promise<void> {
  const child = net.spawn(process.execPath, worker, "tcp-serve", "5001");
  t.teardown(() => { child.kill("SIGKILL"); });
  await once(createInterface({ input: child.stdout }), "line");
}

async function exchange(net: Namespace, to: string, bytes: number): Promise<boolean> {
  const child = net.spawn(process.execPath, worker, "tcp-exchange", to, "5001", String(bytes));
  const limit = setTimeout(() => { child.kill("SIGKILL"); }, PATIENCE_MS);
  const [line] = (await Promise.race([once(createInterface({ input: child.stdout }), "line"), once(child, "exit")])) as [unknown];
  clearTimeout(limit);
  return typeof line === "string" && line.includes('"same":true');
}
