import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { ipAddress, ipv4, mac, type IpAddress } from "../../model/address.js";
import { SystemClock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { FakeWire } from "../../net/tunnel-fake-wire.js";
import { FakeHomeTunnel, FakeHostTunnel } from "../../net/tunnel-fake.js";
import type { HomeTunnel, HostEntry, HostTunnel } from "../../net/tunnel.js";
import { FakeVmPorts } from "../../net/vm-port-fake.js";
import type { VmPort, VmPorts } from "../../net/vm-port.js";
import { TEST_PROTOCOL } from "./lab/packets.js";
import { bound, CORRESPONDENT, deliver, DRIVERS, GATEWAY, HOME_AGENT, MTU, Topology, type Guest, type Host } from "./lab/topology.js";
import { whichHas, Wire } from "./lab/wire.js";
import { onTheWire, startPeers } from "./on-the-wire.js";

/** Both ends on two hosts, and packets through them, whatever they are made of. */
interface Ends {
  readonly driver: string;
  readonly home: HomeTunnel;
  readonly hosts: readonly { readonly careOf: IpAddress; readonly tunnel: HostTunnel; readonly within: <T>(work: () => T) => T }[];
  readonly inHome: <T>(work: () => T) => T;
  /** Sends one packet from the correspondent to the guest; the host where it came out, `null` for none. */
  readonly down: (guest: Guest) => Promise<number | null>;
  /** Sends one packet from the guest on that host to the correspondent; did it arrive? */
  readonly up: (guest: Guest, host: number) => Promise<boolean>;
}

/** Longer than a packet takes on a machine that is slow: what has not come by then does not come. */
const AWAY_MS = 600;
/** For a marker that comes. */
const COMES_MS = 10_000;

async function comes(is: () => boolean): Promise<void> {
  for (const end = performance.now() + COMES_MS; !is() && performance.now() < end;) await sleep(2);
}

const GUESTS = [1, 2].map((n): Guest => ({
  home: ipv4(`198.51.100.${String(6 + n)}`), mac: mac(`52:54:00:00:00:0${String(n)}`), port: `vm${String(n)}`, on: () => { throw new Error("a fake guest is nowhere"); },
}));

function fakes(): { ends: Ends; guests: readonly Guest[]; close: () => Promise<void> } {
  const wire = new FakeWire();
  const clock = new SystemClock();
  const home = new FakeHomeTunnel({ address: HOME_AGENT, clock, wire });
  const hosts = ["10.0.1.1", "10.0.2.1"].map((text) => {
    const careOf = ipv4(text);
    return { careOf, tunnel: new FakeHostTunnel({ careOf, homeAgents: [HOME_AGENT], clock, wire, hasPort: (name) => name.startsWith("vm") }), within: <T>(work: () => T): T => work() };
  });
  const ends: Ends = {
    driver: "fake", home, hosts, inHome: (work) => work(),
    down: (guest) => {
      const fate = home.fromCorrespondent(CORRESPONDENT, guest.home);
      const at = hosts.findIndex(({ careOf }) => "at" in fate && fate.at === careOf);
      return Promise.resolve(at < 0 ? null : at);
    },
    up: (guest, host) => {
      const fate = hosts[host]?.tunnel.fromGuest(guest.port, guest.home, CORRESPONDENT) ?? { dropped: "no such host" };
      return Promise.resolve("at" in fate && fate.at === HOME_AGENT);
    },
  };
  return { ends, guests: GUESTS, close: () => Promise.resolve() };
}

async function real(topology: Topology): Promise<{ ends: Ends; guests: readonly Guest[] }> {
  const { correspondent, guests } = topology;
  const placed: readonly Host[] = [topology.a, topology.b];
  const wires = placed.map((host) => guests.map((guest) => new Wire(guest.on(host), "eth0")));
  for (const host of placed) await host.net.within(() => host.ports.set(guests.map((guest) => topology.port(guest))));
  const lan = new Wire(correspondent, "lan");
  const router = new Wire(topology.homeAgent, "lan").mac;
  let sequence = 0;
  const ends: Ends = {
    driver: DRIVERS.home,
    home: topology.home,
    hosts: placed.map(({ careOf, net, tunnel }) => ({ careOf, tunnel, within: (work) => net.within(work) })),
    inHome: (work) => topology.homeAgent.within(work),
    down: async (guest) => {
      const payload = Buffer.from(`down ${String(sequence++)}`);
      lan.sendIp(router, { source: CORRESPONDENT, destination: guest.home, payload });
      const at = await whichHas(wires.flatMap((onHost) => onHost[guests.indexOf(guest)] ?? []), (packet) => packet.payload.equals(payload), AWAY_MS);
      return at < 0 ? null : at;
    },
    up: async (guest, host) => {
      const payload = Buffer.from(`up ${String(sequence++)}`);
      wires[host]?.[guests.indexOf(guest)]?.sendIp(GATEWAY.mac, { source: guest.home, destination: CORRESPONDENT, payload });
      return (await lan.packet((packet) => packet.protocol === TEST_PROTOCOL && packet.payload.equals(payload), AWAY_MS)) !== null;
    },
  };
  return { ends, guests };
}

async function tunnels(t: Test, { ends, guests }: { readonly ends: Ends; readonly guests: readonly Guest[] }): Promise<void> {
  const { down, home, hosts, inHome, up } = ends;
  const [a, b] = hosts;
  const [one, two] = guests;
  if (a === undefined || b === undefined || one === undefined || two === undefined) throw new Error("two hosts and two guests are needed");
  const at = (guest: Guest, host: typeof a, mtu = MTU) => ({ home: guest.home, active: host.careOf, accept: [host.careOf], mtu });

  t.equal(home.driver, ends.driver);
  t.same(home.entries(), []);
  t.equal(await down(one), null, "nothing is set, nothing comes through");

  await a.within(() => a.tunnel.set([deliver(one)]));
  await b.within(() => b.tunnel.set([deliver(one)]));
  const wanted = [at(one, a), { home: two.home, active: null, accept: [], mtu: 1400 }];
  await inHome(() => home.set(wanted));
  await inHome(() => home.set(wanted));
  t.same(home.entries(), wanted, "what was set is set, once or twice");
  t.same(a.within(() => a.tunnel.entries()), [deliver(one)]);
  t.equal(await down(one), 0);
  t.equal(await up(one, 0), true);
  t.equal(await down(two), null, "an entry without active is silent");
  t.equal(await up(one, 1), false, "a host that is not accepted cannot send for the VM");

  inHome(() => { home.put({ ...at(one, a), accept: [a.careOf, b.careOf] }); });
  t.equal(await down(one), 0);
  t.equal(await up(one, 1), true, "an accepted one can");
  inHome(() => { home.put(at(one, b)); });
  t.equal(await down(one), 1, "the next packet goes the new way");
  t.equal(await up(one, 0), false);

  const counted = home.counters(one.home);
  t.ok(counted.downPackets >= 3 && counted.upPackets >= 2 && counted.downBytes > 0 && counted.upBytes > 0);
  t.equal(counted.dropped["not-listed"], 2);
  t.equal(home.counters(two.home).dropped["no-binding"], 1);
  t.equal(home.counters(ipv4("198.51.100.99")).downPackets, 0, "zeros for an address without an entry");

  t.equal(await up(two, 0), false, "a guest without an entry cannot send");
  const refused = a.tunnel.counters(ipAddress("::")).dropped["spoofed"] ?? 0;
  t.equal(refused, 1, "what belongs to no entry is counted under ::");

  a.within(() => { a.tunnel.put({ role: "forward", home: one.home, to: b.careOf }); });
  b.within(() => { b.tunnel.put({ ...deliver(one), stragglersFrom: [a.careOf] }); });
  inHome(() => { home.put(at(one, a)); });
  t.equal(await down(one), 1, "a straggler is passed on");
  t.equal(a.tunnel.counters(one.home).forwardedPackets, 1);
  t.not(a.tunnel.stamps(one.home).firstForwarded, null);
  b.within(() => { b.tunnel.put(deliver(one)); });
  t.equal(await down(one), null, "not from a host that is not listed");
  t.equal(b.tunnel.counters(one.home).dropped["not-listed"], 1);
  b.within(() => { b.tunnel.put({ role: "forward", home: one.home, to: a.careOf }); });
  t.equal(await down(one), null, "a straggler is never passed on twice");
  t.equal(b.tunnel.counters(one.home).dropped["loop"], 1);

  await markersGoOn(t, ends, one);

  a.within(() => { a.tunnel.put(deliver(one)); });
  const clock = new SystemClock();
  a.tunnel.clearStamps(one.home);
  t.same(a.tunnel.stamps(one.home), { marker: null, passedMarker: null, firstPacket: null, behindMarker: null, firstForwarded: null });
  const before = clock.monotonic();
  t.equal(await down(one), 0);
  t.equal(await down(one), 0);
  inHome(() => { home.sendMarker(one.home, a.careOf, 4_000_000_000); });
  await comes(() => a.tunnel.stamps(one.home).marker !== null);
  const { behindMarker, firstPacket, marker } = a.tunnel.stamps(one.home);
  t.equal(marker?.token, 4_000_000_000);
  t.ok(firstPacket !== null && marker !== null && before <= firstPacket && firstPacket < marker.at && marker.at <= clock.monotonic());
  t.equal(behindMarker, null, "nothing came behind it");
  t.equal(await down(one), 0);
  t.equal(await down(one), 0);
  const behind = a.tunnel.stamps(one.home);
  t.ok(behind.behindMarker !== null && marker !== null && marker.at < behind.behindMarker && behind.behindMarker <= clock.monotonic());
  t.equal(behind.firstPacket, firstPacket);
  home.clearStamps(one.home);
  a.within(() => { a.tunnel.sendMarker(one.home, 7); });
  await comes(() => home.stamps(one.home).marker !== null);
  t.equal(home.stamps(one.home).marker?.token, 7, "and the other way");
  b.within(() => { b.tunnel.sendMarker(one.home, 8); });
  await sleep(20);
  t.equal(home.stamps(one.home).marker?.token, 7, "but not from a host that is not accepted");
  t.throws(() => { inHome(() => { home.sendMarker(one.home, a.careOf, 0); }); }, { code: "malformed-marker" });

  const six = ipAddress("2001:db8::7");
  const entries = home.entries();
  await t.rejects(inHome(() => home.set([at(two, a), { ...at(one, b), home: six }])), { code: "unsupported-address" });
  await t.rejects(inHome(() => home.set([at(one, a), at(one, b)])), { code: "malformed-entries" });
  t.throws(() => { inHome(() => { home.put({ ...at(one, a), active: six }); }); }, { code: "unsupported-address" });
  t.same(home.entries(), entries, "bad input changes nothing");
  const guestEntries = a.within(() => a.tunnel.entries());
  t.throws(() => { a.within(() => { a.tunnel.put({ ...deliver(one), port: "nowhere0" }); }); }, { code: "no-link" });
  await t.rejects(a.within(() => a.tunnel.set([deliver(one), { ...deliver(two), port: "nowhere0" }])), { code: "no-link" });
  t.same(a.within(() => a.tunnel.entries()), guestEntries);

  a.within(() => { a.tunnel.drop(one.home); });
  await t.rejects(a.within(() => a.tunnel.renew([{ ...deliver(two), port: "nowhere0" }, deliver(one)])), { code: "no-link" });
  t.same(a.within(() => a.tunnel.entries()), [deliver(one)], "renewed, one that cannot be keeps no other one from it");
  await t.rejects(a.within(() => a.tunnel.renew([deliver(two), deliver(one), deliver(one)])), { code: "malformed-entries" });
  await a.within(() => a.tunnel.renew([]));
  t.same(a.within(() => a.tunnel.entries()), [deliver(one)], "and nothing is taken away");

  inHome(() => { home.drop(one.home); });
  inHome(() => { home.drop(one.home); });
  t.same(home.entries().map((entry) => entry.home), [two.home]);
  t.equal(home.counters(one.home).downPackets, 0);
  t.equal(await down(one), null);
  holdsEnd(t, a, one);
  a.within(() => { a.tunnel.drop(one.home); });
  a.within(() => { a.tunnel.drop(one.home); });
  t.same(a.within(() => a.tunnel.entries()), []);
}

/** What waited is sent on before the next packet goes its way, and where that fails it goes on waiting. */
function holdsEnd(t: Test, { tunnel, within }: Ends["hosts"][number], one: Guest): void {
  const held: HostEntry = { ...deliver(one), hold: { device: one.port, from: "all" } };
  const there = (): HostEntry | undefined => tunnel.entries().find(({ home }) => home === one.home);
  const seen: (HostEntry | undefined)[] = [];
  within(() => {
    tunnel.put(held);
    t.throws(() => { tunnel.put(deliver(one), () => { throw new CareofError("kernel-refused", "a port that is gone"); }); }, { code: "kernel-refused" });
    t.same(there(), held, "the hold is as it was");
    tunnel.put(deliver(one), () => {
      seen.push(there());
      return { directly: 0, straggler: 0 };
    });
    t.same(seen[0], held, "what waits is sent on before the switch");
    t.same(there(), deliver(one));
  });
}

/** Where the VM's packets are passed on, a marker goes with them, and ends at the next host. */
async function markersGoOn(t: Test, { down, home, hosts, inHome }: Ends, one: Guest): Promise<void> {
  const [a, b] = hosts;
  if (a === undefined || b === undefined) throw new Error("two hosts are needed");
  const mark = async (token: number, arrived: () => boolean): Promise<void> => {
    inHome(() => { home.sendMarker(one.home, a.careOf, token); });
    await comes(arrived);
  };
  for (const { tunnel } of hosts) tunnel.clearStamps(one.home);
  const [before, there] = [a.tunnel.counters(one.home), b.tunnel.counters(one.home)];
  a.within(() => { a.tunnel.put({ role: "forward", home: one.home, to: b.careOf }); });
  b.within(() => { b.tunnel.put({ ...deliver(one), stragglersFrom: [a.careOf] }); });
  await mark(11, () => b.tunnel.stamps(one.home).passedMarker === 11);
  t.match(a.tunnel.stamps(one.home), { marker: { token: 11 }, passedMarker: null, firstForwarded: null });
  t.same(b.tunnel.stamps(one.home), { marker: null, passedMarker: 11, firstPacket: null, behindMarker: null, firstForwarded: null }, "by the old host, and no guest has it");
  t.equal(a.tunnel.counters(one.home).forwardedPackets, before.forwardedPackets, "nor does it count");
  t.equal(b.tunnel.counters(one.home).downPackets, there.downPackets);
  b.within(() => { b.tunnel.put({ role: "forward", home: one.home, to: a.careOf, hold: { device: one.port, stragglersFrom: [a.careOf], mac: one.mac } }); });
  await mark(12, () => b.tunnel.stamps(one.home).passedMarker === 12);
  t.match(b.tunnel.stamps(one.home), { marker: null, passedMarker: 12 });
  t.match(a.tunnel.stamps(one.home), { marker: { token: 12 }, passedMarker: null }, "it is not passed on again");

  b.within(() => { b.tunnel.put({ role: "forward", home: one.home, to: a.careOf }); });
  const refused = (why: string): number => b.tunnel.counters(one.home).dropped[why] ?? 0;
  await mark(13, () => refused("loop") > (there.dropped["loop"] ?? 0));
  b.within(() => { b.tunnel.put(deliver(one)); });
  await mark(14, () => refused("not-listed") > (there.dropped["not-listed"] ?? 0));
  t.equal(b.tunnel.stamps(one.home).passedMarker, 12, "not by a host that is not listed");
  t.equal(b.tunnel.counters(one.home).dropped["loop"], (there.dropped["loop"] ?? 0) + 1);
  t.equal(b.tunnel.counters(one.home).dropped["not-listed"], (there.dropped["not-listed"] ?? 0) + 1);
  a.within(() => { a.tunnel.put({ role: "forward", home: one.home, to: b.careOf }); });
  b.within(() => { b.tunnel.put({ ...deliver(one), stragglersFrom: [a.careOf] }); });
  t.equal(await down(one), 1, "and packets as ever");
  t.equal(b.tunnel.counters(one.home).downPackets, there.downPackets + 1);
}

async function ports(t: Test, make: { readonly ports: VmPorts; readonly within: <T>(work: () => T) => T; readonly tap: VmPort; readonly external: VmPort }): Promise<void> {
  const { external, ports: made, tap, within } = make;
  t.same(made.list(), []);
  await within(() => made.set([tap, external]));
  await within(() => made.set([external, tap]));
  const names = [external, tap].map(({ name }) => name).sort();
  t.same(made.list().map(({ name }) => name), names);
  within(() => { made.sendFrame(tap.name, Buffer.alloc(60)); });
  t.throws(() => { within(() => { made.sendFrame("nowhere0", Buffer.alloc(60)); }); }, { code: "no-link" });
  await t.rejects(within(() => made.put({ ...external, name: "nowhere0" })), { code: "no-link" });
  await t.rejects(within(() => made.put({ ...tap, name: external.name })), { code: "not-ours" });
  await t.rejects(within(() => made.put({ ...tap, name: "much-too-long-a-name" })), { code: "malformed-port" });
  await t.rejects(within(() => made.put({ ...tap, homeAddresses: [ipAddress("2001:db8::1")] })), { code: "unsupported-address" });
  await t.rejects(within(() => made.set([tap, tap])), { code: "malformed-port" });
  t.same(made.list().map(({ name }) => name), names, "bad input changes nothing");
  await within(() => made.drop(tap.name));
  await t.rejects(within(() => made.renew([{ ...external, name: "nowhere0" }, tap])), { code: "no-link" });
  t.same(made.list().map(({ name }) => name), names, "renewed, one that cannot be keeps no other one from it");
  await t.rejects(within(() => made.renew([tap, tap])), { code: "malformed-port" });
  await within(() => made.renew([]));
  t.same(made.list().map(({ name }) => name), names, "and nothing is taken away");
  await within(() => made.put({ ...tap, queueLength: 50 }));
  t.equal(made.list().find(({ name }) => name === tap.name)?.queueLength, 50);
  await within(() => made.drop(tap.name));
  await within(() => made.drop(tap.name));
  t.same(made.list(), [external]);
  await within(() => made.put(tap));
  await within(() => made.giveAway(tap.name));
  await within(() => made.giveAway(tap.name));
  t.same(made.list(), [external]);
  await t.rejects(within(() => made.put(tap)), { code: "not-ours" }, "given away it is somebody else's");
  await within(() => made.put({ ...tap, kind: "external" }));
  await within(() => made.set([]));
  t.same(made.list(), []);
  await within(() => made.put({ ...tap, kind: "external" }));
  t.equal(made.list().length, 1, "and stays");
  await within(() => made.drop(tap.name));
}

const TAP: VmPort = { name: "cotap1", kind: "tap", mac: mac("52:54:00:00:00:09"), homeAddresses: [ipv4("198.51.100.9")], queueLength: 500, mtu: MTU };

t.setTimeout(120_000); // a busy machine

/** Once is enough: where the drivers are chosen, the rest has been tested. */
const ELSEWHERE = process.env["CAREOF_TEST_DRIVERS"] !== undefined;

if (!ELSEWHERE) t.test("tunnels: the fake", async (t) => {
  const made = fakes();
  await tunnels(t, made);
  await made.close();
});

t.test(`tunnels: home agent ${DRIVERS.home}, hosts ${DRIVERS.hosts}, in network namespaces`, async (t) => {
  const topology = new Topology();
  t.teardown(() => topology.close());
  const { a, b, homeAgent } = topology;
  await tunnels(t, await real(topology));
  const [one, two] = topology.guests as [Guest, Guest];
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  await b.net.within(() => b.tunnel.set([deliver(two)]));
  await homeAgent.within(() => topology.home.set([bound(one, a), bound(two, b)]));
  const peers = await startPeers(topology);
  t.teardown(() => { peers.stop(); });
  await t.test("on the wire", (t) => onTheWire(t, { topology, peers, byHand: null }));
});

if (!ELSEWHERE) t.test("ports: the fake", async (t) => {
  const made = new FakeVmPorts();
  made.external.add("vm1");
  await ports(t, { ports: made, within: (work) => work(), tap: TAP, external: { ...TAP, name: "vm1", kind: "external" } });
});

if (!ELSEWHERE) t.test("ports: Linux", async (t) => {
  const topology = new Topology();
  t.teardown(() => topology.close());
  const [guest] = topology.guests;
  if (guest === undefined) throw new Error("a guest is needed");
  guest.on(topology.a);
  await ports(t, { ports: topology.a.ports, within: (work) => topology.a.net.within(work), tap: TAP, external: topology.port(guest) });
});
