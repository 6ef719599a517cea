import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { ipAddress, ipv4, mac } from "../../model/address.js";
import { PinnedMaps, withProgram } from "../../net/bpf/loader.js";
import { HoldDevice, type HeldFrame } from "../../net/hold.js";
import { encodeMarker, isMarker } from "../../net/marker.js";
import { Netlink } from "../../net/netlink/client.js";
import { deleteFilter, putFilter, type Filter } from "../../net/netlink/filters.js";
import { requireLink } from "../../net/netlink/links.js";
import { pings, SMALL } from "./lab/echo.js";
import { arrivesLarge, sendLarge } from "./lab/large.js";
import { arpRequest, encode, ETHERTYPE, frame, ICMP, IPIP, TEST_PROTOCOL, type Packet, type Sketch } from "./lab/packets.js";
import { bound, CORRESPONDENT, deliver, DRIVERS, GATEWAY, HOME_AGENT, MTU, Topology, type Guest } from "./lab/topology.js";
import { Wire } from "./lab/wire.js";

const topology = new Topology();
const { a, b, homeAgent } = topology;
const [one, two] = topology.guests as [Guest, Guest];
for (const host of [a, b]) {
  for (const guest of topology.guests) guest.on(host);
  await host.net.within(() => host.ports.set(topology.guests.map((guest) => topology.port(guest))));
}

/** What the correspondent, the guests and the router see. */
const lan = new Wire(topology.correspondent, "lan");
const oneOnA = new Wire(one.on(a), "eth0");
const oneOnB = new Wire(one.on(b), "eth0");
const twoOnA = new Wire(two.on(a), "eth0");
const twoOnB = new Wire(two.on(b), "eth0");
const towardsHome = new Wire(topology.router, "toh");
const towardsA = new Wire(topology.router, "toa");
const lanRouter = new Wire(homeAgent, "lan").mac;
const homeUplink = new Wire(homeAgent, "uplink").mac;
const uplinkOfA = new Wire(a.net, "uplink").mac;
t.teardown(() => topology.close());
t.setTimeout(120_000); // a busy machine
/** The most for which an outer header has a number, one more, and what an interface takes uncut (with 14 bytes more it is 65,535). */
const LARGE = [65_515, 65_516, 65_521];

/** `one` stands on A; B and `two` are as each test wants them. */
async function reset(): Promise<void> {
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  await b.net.within(() => b.tunnel.set([]));
  await homeAgent.within(() => topology.home.set([bound(one, a)]));
  for (const wire of [lan, oneOnA, oneOnB, twoOnA, twoOnB, towardsHome, towardsA]) wire.forget();
}
t.beforeEach(reset);

const payloadOf = (text: string): Buffer => Buffer.from(`${text} ${String(Math.random())}`);
const has = (payload: Buffer) => (packet: Packet): boolean => packet.payload.equals(payload);
const anyTest = (packet: Packet): boolean => packet.protocol === TEST_PROTOCOL;
const icmp = (type: number, code: number) => ({ payload, protocol }: Packet): boolean => protocol === ICMP && payload[0] === type && payload[1] === code;
const down = (sketch: Partial<Sketch>): void => { lan.sendIp(lanRouter, { source: CORRESPONDENT, destination: one.home, ...sketch }); };
const up = (sketch: Partial<Sketch>): void => { oneOnA.sendIp(GATEWAY.mac, { source: one.home, destination: CORRESPONDENT, ...sketch }); };
const droppedAt = (where: "home" | "a", home = one.home as ReturnType<typeof ipAddress>): Readonly<Record<string, number>> =>
  (where === "home" ? topology.home : a.tunnel).counters(home).dropped;

async function counts(t: Test, where: "home" | "a", reason: string, work: () => Promise<unknown>, home = one.home as ReturnType<typeof ipAddress>): Promise<void> {
  const before = droppedAt(where, home)[reason] ?? 0;
  await work();
  t.equal((droppedAt(where, home)[reason] ?? 0) - before, 1, `counted as ${reason}`);
}

t.test("down: the outer header, and what the guest gets", async (t) => {
  for (const dontFragment of [true, false]) {
    const payload = payloadOf("down");
    down({ payload, dontFragment, tos: 0xb9, id: 77 });
    const outer = await towardsHome.packet(({ protocol }) => protocol === IPIP);
    t.match(outer, { source: HOME_AGENT, destination: a.careOf, ttl: 64, tos: 0xb9, dontFragment: true, fragment: 0 });
    if (DRIVERS.home === "bpf") t.equal(outer?.id, 0, "what is never cut on its way needs no identification");
    t.same(outer?.payload, encode({ source: CORRESPONDENT, destination: one.home, payload, dontFragment, tos: 0xb9, id: 77, ttl: 63 }), "one hop less, else untouched");
    const seen = await oneOnA.frame((bytes) => (bytes.includes(payload) ? bytes : null));
    t.same(seen?.subarray(0, 14), frame(one.mac, GATEWAY.mac, ETHERTYPE.ipv4, Buffer.alloc(0)), "from the gateway's MAC to the VM's");
  }
});

t.test("up: the outer header, and what the correspondent gets", async (t) => {
  for (const dontFragment of [true, false]) {
    const payload = payloadOf("up");
    up({ payload, dontFragment, tos: 1, id: 9 });
    const outer = await towardsA.packet(({ protocol }) => protocol === IPIP);
    t.match(outer, { source: a.careOf, destination: HOME_AGENT, ttl: 64, tos: 1, dontFragment: true });
    t.match(await lan.packet(has(payload)), { source: one.home, ttl: 62, tos: 1, id: 9, dontFragment });
  }
});

t.test("ping, as small as usual and as large as fits, with DF: to the guest, from it, and from VM to VM", async (t) => {
  await b.net.within(() => b.tunnel.set([deliver(two)]));
  homeAgent.within(() => { topology.home.put(bound(two, b)); });
  for (const bytes of [SMALL, MTU]) {
    t.ok(await pings({ wire: lan, via: lanRouter, from: CORRESPONDENT, to: one.home }, bytes), `down, ${String(bytes)} bytes`);
    t.ok(await pings({ wire: oneOnA, via: GATEWAY.mac, from: one.home, to: CORRESPONDENT }, bytes), `up, ${String(bytes)} bytes`);
    t.ok(await pings({ wire: oneOnA, via: GATEWAY.mac, from: one.home, to: two.home }, bytes), `between two hosts, ${String(bytes)} bytes`);
    t.ok(await pings({ wire: oneOnA, via: GATEWAY.mac, from: one.home, to: HOME_AGENT }, bytes), `to the home agent itself, ${String(bytes)} bytes`);
  }
});

t.test("what a guest may not send", async (t) => {
  const stranger = mac("52:54:00:00:00:99");
  const packet = (source: string): Buffer => encode({ source: ipv4(source), destination: CORRESPONDENT, payload: payloadOf("bad") });
  const marker = encodeMarker({ outer: { source: one.home, destination: CORRESPONDENT }, inner: { source: one.home, destination: HOME_AGENT }, token: 5 }).subarray(20);
  const table: readonly [string, string, Buffer][] = [
    ["another VM's address", "spoofed", frame(GATEWAY.mac, one.mac, ETHERTYPE.ipv4, packet(two.home))],
    ["an address of nobody", "spoofed", frame(GATEWAY.mac, one.mac, ETHERTYPE.ipv4, packet("192.0.2.77"))],
    ["another MAC", "spoofed", frame(GATEWAY.mac, stranger, ETHERTYPE.ipv4, packet(one.home))],
    ["a marker", "spoofed", frame(GATEWAY.mac, one.mac, ETHERTYPE.ipv4, marker)],
    ["IPv6", "not-ipv4", frame(GATEWAY.mac, one.mac, ETHERTYPE.ipv6, Buffer.alloc(60))],
    ["RARP", "not-ipv4", frame(GATEWAY.mac, one.mac, ETHERTYPE.rarp, Buffer.alloc(60))],
    ["a tagged frame", "not-ipv4", frame(GATEWAY.mac, one.mac, ETHERTYPE.vlan, Buffer.concat([Buffer.from([0, 5, 8, 0]), packet(one.home)]))],
    ["multicast", "multicast", frame(GATEWAY.mac, one.mac, ETHERTYPE.ipv4, encode({ source: one.home, destination: ipv4("224.0.0.251"), payload: payloadOf("bad") }))],
    ["a length beyond the frame", "malformed", frame(GATEWAY.mac, one.mac, ETHERTYPE.ipv4, Buffer.concat([packet(one.home).subarray(0, 2), Buffer.from([5, 0]), packet(one.home).subarray(4)]))],
    ["a header of 16 bytes", "malformed", frame(GATEWAY.mac, one.mac, ETHERTYPE.ipv4, Buffer.concat([Buffer.from([0x44]), packet(one.home).subarray(1)]))],
  ];
  for (const [what, reason, bytes] of table) {
    await t.test(what, async (t) => {
      await counts(t, "a", reason, async () => {
        oneOnA.send(bytes);
        t.ok(await lan.silent(anyTest));
      });
    });
  }
});

t.test("what a tunnel's mouth refuses", async (t) => {
  const inner = encode({ source: one.home, destination: CORRESPONDENT, payload: payloadOf("bad") });
  const innerDown = encode({ source: CORRESPONDENT, destination: one.home, payload: payloadOf("bad") });
  const nobody = ipAddress("::");
  const stranger = ipv4("10.0.9.9");
  const toHome = (outer: Partial<Sketch>): void => { towardsHome.sendIp(homeUplink, { source: a.careOf, destination: HOME_AGENT, protocol: IPIP, payload: inner, ...outer }); };
  const toA = (outer: Partial<Sketch>): void => { towardsA.sendIp(uplinkOfA, { source: HOME_AGENT, destination: a.careOf, protocol: IPIP, payload: innerDown, ...outer }); };
  // `null`: the kernel's device drops it before careof could count it; `ip -s link` counts it there.
  const table: readonly [string, "home" | "a", string | null, ReturnType<typeof ipAddress>, () => void][] = [
    ["home agent: an outer source that is not listed", "home", "not-listed", one.home, () => { toHome({ source: stranger }); }],
    ["home agent: an inner source without a binding", "home", "no-binding", nobody, () => { toHome({ payload: encode({ source: two.home, destination: CORRESPONDENT }) }); }],
    ["home agent: an outer fragment", "home", DRIVERS.home === "ipip" ? null : "fragment", nobody, () => { toHome({ dontFragment: false, fragment: 0x2000 }); }],
    ["home agent: no IPv4 inside", "home", "malformed", nobody, () => { toHome({ payload: Buffer.alloc(40, 0x60) }); }],
    ["home agent: nothing inside", "home", DRIVERS.home === "ipip" ? null : "malformed", nobody, () => { toHome({ payload: Buffer.alloc(0) }); }],
    ["home agent: an inner length that lies", "home", "malformed", nobody, () => { toHome({ payload: Buffer.concat([inner.subarray(0, 2), Buffer.from([1, 0]), inner.subarray(4)]) }); }],
    ["host: an outer source that is no home agent", "a", "not-listed", one.home, () => { toA({ source: stranger }); }],
    ["host: another host, not listed", "a", "not-listed", one.home, () => { toA({ source: b.careOf }); }],
    ["host: a VM that is not here", "a", "no-binding", nobody, () => { toA({ payload: encode({ source: CORRESPONDENT, destination: two.home }) }); }],
    ["host: congestion on a packet that cannot say so", "a", DRIVERS.hosts === "ipip" ? null : "refused", one.home, () => { toA({ tos: 3 }); }],
  ];
  for (const [what, where, reason, home, send] of table) {
    await t.test(what, async (t) => {
      const work = async (): Promise<void> => {
        send();
        t.ok(await (where === "home" ? lan : oneOnA).silent(anyTest));
      };
      if (reason === null) await work();
      else await counts(t, where, reason, work, home);
    });
  }
  await t.test("protocol 4 for somebody else passes", async (t) => {
    const payload = encode({ source: CORRESPONDENT, destination: one.home });
    towardsA.sendIp(uplinkOfA, { source: HOME_AGENT, destination: ipv4("10.0.1.77"), protocol: IPIP, payload });
    t.equal(await oneOnA.silent(anyTest), true);
    t.equal(droppedAt("a", nobody)["malformed"], 0);
  });
});

t.test("a marker cannot come from a correspondent", async (t) => {
  const marker = encodeMarker({ outer: { source: CORRESPONDENT, destination: one.home }, inner: { source: CORRESPONDENT, destination: one.home }, token: 5 });
  await counts(t, "home", "spoofed", async () => {
    lan.send(frame(lanRouter, lan.mac, ETHERTYPE.ipv4, marker.subarray(20)));
    t.ok(await oneOnA.silent(({ protocol }) => protocol === 253));
  });
  t.equal(a.tunnel.stamps(one.home).marker, null);
});

t.test("too big, down: the correspondent hears it, or it is fragmented", async (t) => {
  down({ payload: Buffer.alloc(MTU - 20, 1) });
  t.ok(await oneOnA.packet(({ payload }) => payload.length === MTU - 20), "what just fits passes");
  down({ payload: Buffer.alloc(MTU - 19, 2) });
  const heard = await lan.packet(icmp(3, 4));
  t.equal(heard?.payload.readUInt16BE(6), MTU, "with the MTU of the path");
  homeAgent.within(() => { topology.home.put({ ...bound(one, a), mtu: 1300 }); });
  down({ payload: Buffer.alloc(1281, 3) });
  t.equal((await lan.packet(icmp(3, 4)))?.payload.readUInt16BE(6), 1300, "also a new one");
  const payload = Buffer.alloc(1480, 4);
  down({ payload, dontFragment: false, id: 5 });
  const first = await oneOnA.packet(({ fragment }) => fragment === 0x2000);
  const second = await oneOnA.packet(({ fragment }) => fragment !== 0 && fragment !== 0x2000);
  t.equal((first?.payload.length ?? 0) + (second?.payload.length ?? 0), 1480);
});

t.test("too big, up: the guest hears it from its gateway, or it is fragmented", async (t) => {
  one.on(a).ip("link set eth0 mtu 1600");
  a.net.ip(`link set ${one.port} mtu 1600`);
  up({ payload: Buffer.alloc(MTU - 19, 2) });
  const heard = await oneOnA.packet(icmp(3, 4));
  t.match(heard, { source: GATEWAY.address });
  t.equal(heard?.payload.readUInt16BE(6), MTU);
  up({ payload: Buffer.alloc(1480, 4), dontFragment: false, id: 6 });
  const first = await lan.packet(({ fragment }) => fragment === 0x2000);
  const second = await lan.packet(({ fragment }) => fragment !== 0 && fragment !== 0x2000);
  t.equal((first?.payload.length ?? 0) + (second?.payload.length ?? 0), 1480);
});

t.test("what is to be cut, up to what the kernel joins and an outer header has no number for, arrives whole, down and up", async (t) => {
  const packets = { down: { from: lan.mac, source: CORRESPONDENT, to: lanRouter, destination: one.home }, up: { from: one.mac, source: one.home, to: GATEWAY.mac, destination: CORRESPONDENT } };
  for (const bytes of LARGE) {
    sendLarge(topology.correspondent, "lan", packets.down, bytes);
    t.equal(await arrivesLarge(oneOnA, CORRESPONDENT, bytes), bytes, `down, ${String(bytes)} bytes`);
    sendLarge(one.on(a), "eth0", packets.up, bytes);
    t.equal(await arrivesLarge(lan, one.home, bytes), bytes, `up, ${String(bytes)} bytes`);
  }
  t.same([droppedAt("home")["too-big"], droppedAt("a")["too-big"]], [0, 0]);
});

t.test("a used-up TTL is answered on the way", async (t) => {
  up({ ttl: 1 });
  t.match(await oneOnA.packet(icmp(11, 0)), { source: GATEWAY.address });
  up({ ttl: 2 });
  t.match(await oneOnA.packet(icmp(11, 0)), { source: HOME_AGENT });
  down({ ttl: 1 });
  t.ok(await lan.packet(icmp(11, 0)));
});

t.test("an address without a binding is unreachable, one without a host silent", async (t) => {
  down({ destination: ipv4("198.51.100.99") });
  t.ok(await lan.packet(icmp(3, 1)));
  homeAgent.within(() => { topology.home.put({ ...bound(one, a), active: null }); });
  await counts(t, "home", "no-binding", async () => {
    down({});
    t.ok(await lan.silent(({ protocol }) => protocol === ICMP));
  });
  t.ok(await towardsHome.silent(anyTest), "and nothing leaves unencapsulated");
});

t.test("congestion on the way is passed to the guest (RFC 6040)", async (t) => {
  const payload = encode({ source: CORRESPONDENT, destination: one.home, tos: 2, payload: payloadOf("ecn") });
  towardsA.sendIp(uplinkOfA, { source: HOME_AGENT, destination: a.careOf, protocol: IPIP, payload, tos: 3 });
  t.match(await oneOnA.packet(anyTest), { tos: 3 }, "with a right checksum");
});

t.test("the gateway answers for every address but the guest's own", async (t) => {
  const answered = async (wanted: ReturnType<typeof ipv4>): Promise<string | null> => {
    oneOnA.send(arpRequest({ mac: one.mac, address: one.home }, wanted));
    return oneOnA.frame((bytes) => (bytes.readUInt16BE(12) === ETHERTYPE.arp && bytes.readUInt16BE(20) === 2 ? bytes.toString("hex", 22, 28) : null), 200);
  };
  const gateway = GATEWAY.mac.replaceAll(":", "");
  t.equal(await answered(GATEWAY.address), gateway);
  t.equal(await answered(ipv4("198.51.100.1")), gateway);
  t.equal(await answered(two.home), gateway);
  t.equal(await answered(one.home), null);
  const probe = ipv4("0.0.0.0");
  oneOnA.send(arpRequest({ mac: one.mac, address: probe }, one.home));
  t.equal(await oneOnA.frame((bytes) => (bytes.readUInt16BE(12) === ETHERTYPE.arp ? bytes : null), 100), null, "nor its address probe");
});

t.test("VMs on one host talk locally, on two through the home agent", async (t) => {
  await a.net.within(() => a.tunnel.set([deliver(one), deliver(two)]));
  await homeAgent.within(() => topology.home.set([bound(one, a), bound(two, a)]));
  const before = topology.home.counters(one.home).upPackets;
  const local = payloadOf("local");
  up({ destination: two.home, payload: local });
  t.match(await twoOnA.packet(has(local)), { ttl: 63, source: one.home });
  t.equal(topology.home.counters(one.home).upPackets, before, "not by the home agent");

  a.net.within(() => { a.tunnel.put({ role: "forward", home: two.home, to: b.careOf }); });
  b.net.within(() => { b.tunnel.put(deliver(two)); });
  homeAgent.within(() => { topology.home.put(bound(two, b)); });
  const far = payloadOf("far");
  up({ destination: two.home, payload: far });
  t.match(await twoOnB.packet(has(far)), { ttl: 62, source: one.home });
  up({ destination: two.home, ttl: 2 });
  t.match(await oneOnA.packet(icmp(11, 0)), { source: HOME_AGENT });
  homeAgent.within(() => { topology.home.put({ ...bound(two, b), mtu: 1000 }); });
  up({ destination: two.home, payload: Buffer.alloc(1200) });
  t.equal((await oneOnA.packet(icmp(3, 4)))?.payload.readUInt16BE(6), 1000, "frag needed from the home agent when the second tunnel is smaller");
});

t.test("a straggler keeps the old host's outer source and loses a hop", async (t) => {
  a.net.within(() => { a.tunnel.put({ role: "forward", home: one.home, to: b.careOf }); });
  b.net.within(() => { b.tunnel.put({ ...deliver(one), stragglersFrom: [a.careOf] }); });
  const payload = payloadOf("late");
  down({ payload });
  const outer = await towardsA.packet(({ protocol }) => protocol === IPIP);
  t.match(outer, { source: a.careOf, destination: b.careOf, ttl: 62 }, "64, less the router's hop and ours");
  t.match(await oneOnB.packet(has(payload)), { ttl: 63 });
  up({});
  t.ok(await lan.silent(anyTest), "what a VM that has left sends goes nowhere");
});

/** What it holds, as soon as that is so many frames; what there is, when they do not come. */
async function heldBy(hold: HoldDevice, count: number): Promise<readonly HeldFrame[]> {
  const found: HeldFrame[] = [];
  for (let n = 0; n < 1000 && found.length < count; n++) found.push(...await sleep(5).then(() => a.net.within(() => hold.read())));
  return found;
}

t.test("a marker keeps its place among packets that wait, and is seen by no guest where none do", async (t) => {
  const hold = a.net.within(() => new HoldDevice("co-hold", 100));
  t.teardown(() => { a.net.within(() => { hold.close(); }); });
  const mark = (token: number): void => { homeAgent.within(() => { topology.home.sendMarker(one.home, a.careOf, token); }); };
  for (const from of ["home-agents", "all"] as const) {
    const before = a.tunnel.counters(one.home).downPackets;
    a.tunnel.clearStamps(one.home);
    a.net.within(() => { a.tunnel.put({ ...deliver(one), hold: { device: hold.name, from } }); });
    const [first, second] = [payloadOf("first"), payloadOf("second")];
    down({ payload: first });
    const frames = [...await heldBy(hold, 1)];
    mark(21);
    frames.push(...await heldBy(hold, 1));
    down({ payload: second });
    frames.push(...await heldBy(hold, 1));
    t.same(frames.map(({ came, frame: bytes }) => ({ came, marker: isMarker(bytes.subarray(14)) })), [false, true, false].map((marker) => ({ came: "directly", marker })), from);
    t.ok(frames[0]?.frame.includes(first) === true && frames[2]?.frame.includes(second) === true);
    t.equal(a.tunnel.stamps(one.home).marker?.token, 21);
    t.equal(a.tunnel.counters(one.home).downPackets, before + 2);
  }
  a.net.within(() => { a.tunnel.put(deliver(one)); });
  mark(22);
  t.ok(await oneOnA.silent(({ protocol }) => protocol === 253));
  t.same(a.net.within(() => hold.read()), []);
  t.equal(a.tunnel.stamps(one.home).marker?.token, 22);
});

t.test("what the port does not take waits: no carrier, down, gone; what it takes does not", async (t) => {
  const hold = a.net.within(() => new HoldDevice("co-hold", 100));
  t.teardown(() => { a.net.within(() => { hold.close(); }); });
  const kept = { ...deliver(one), hold: { device: hold.name, from: "port" as const } };
  a.net.within(() => { a.tunnel.put(kept); });
  t.same(a.net.within(() => a.tunnel.entries()), [kept]);
  const taken = [payloadOf("small"), Buffer.concat([payloadOf("full size "), Buffer.alloc(1300)])];
  for (const payload of taken) {
    down({ payload });
    t.match(await oneOnA.packet(has(payload)), { ttl: 63, source: CORRESPONDENT });
  }
  t.same(a.net.within(() => hold.read()), [], "the port has them");
  homeAgent.within(() => { topology.home.sendMarker(one.home, a.careOf, 31); });
  for (let n = 0; n < 200 && a.tunnel.stamps(one.home).marker?.token !== 31; n++) await sleep(10);
  t.equal(a.tunnel.stamps(one.home).marker?.token, 31);
  t.same(a.net.within(() => hold.read()), [], "a marker goes nowhere");

  a.net.ip("link add spare type veth peer name far", "link set spare up", "link set far up", "tuntap add dead mode tap", "link set dead up");
  t.teardown(() => { a.net.ip("link del dead"); });
  // The kernel first drops what a port without a carrier is given, then puts a queue in its place that says "congestion".
  for (const [name, port, change, ways] of [
    ["pulled at the other end", "spare", "link set far down", ["refused", "doubtful"]], ["down", "spare", "link set spare down", ["refused", "doubtful"]],
    ["gone", "spare", "link del spare", ["refused"]], ["a TAP that nobody reads", "dead", "link set dead up", ["refused", "doubtful"]],
  ] as const) {
    a.net.within(() => { a.tunnel.put({ ...kept, port }); });
    a.net.ip(change);
    const payloads = [1, 2, 3].map((n) => payloadOf(`${name} ${String(n)}`));
    for (const payload of payloads) down({ payload });
    const found = await heldBy(hold, payloads.length);
    t.same(found.map(({ home, frame: bytes }) => [home, payloads.findIndex((payload) => bytes.includes(payload))]), payloads.map((_, n) => [one.home, n]), name);
    t.same(found.filter(({ came }) => !ways.some((way) => way === came)), [], `${name}: ${found.map(({ came }) => came).join(" ")}`);
  }
});

t.test("a port whose queue is full drops another packet and keeps this one: that is not refused", async (t) => {
  const hold = a.net.within(() => new HoldDevice("co-hold", 100));
  t.teardown(() => { a.net.within(() => { hold.close(); }); });
  // One packet leaves at once and half a second lies between the others, of which two have room.
  a.net.exec("tc", "qdisc", "add", "dev", one.port, "root", "handle", "1:", "tbf", "rate", "8kbit", "burst", "600", "limit", "10000");
  a.net.exec("tc", "qdisc", "add", "dev", one.port, "parent", "1:1", "pfifo_head_drop", "limit", "2");
  t.teardown(() => { a.net.exec("tc", "qdisc", "del", "dev", one.port, "root"); });
  a.net.within(() => { a.tunnel.put({ ...deliver(one), hold: { device: hold.name, from: "port" } }); });
  const payloads = Array.from({ length: 8 }, (_, n) => Buffer.concat([payloadOf(`queued ${String(n)} `), Buffer.alloc(480)]).subarray(0, 480));
  for (const payload of payloads) down({ payload });
  const last = payloads.at(-1) ?? Buffer.alloc(0);
  t.ok(await oneOnA.packet(has(last), 20_000), "the last one is in the queue, whatever was said of it");
  const found = a.net.within(() => hold.read());
  t.ok(found.some(({ frame: bytes }) => bytes.includes(last)), "it was said of that one too");
  t.same([...new Set(found.map(({ came }) => came))], ["doubtful"]);
});

t.test("other people's filters stay, and the end of the tunnel leaves nothing", async (t) => {
  const maps = a.net.within(() => new PinnedMaps(join(topology.all.folder, "a"), ["config", "counters", "stamps", "hops", "guests"], 1000));
  const netlink = a.net.within(() => new Netlink());
  const foreign: Filter = { device: requireLink(netlink, "uplink").index, direction: "ingress", preference: 500, name: "somebody_elses" };
  withProgram("host_egress", maps, (program) => { putFilter(netlink, foreign, program); });
  maps.close({ keep: true });
  const payload = payloadOf("still");
  down({ payload });
  t.ok(await oneOnA.packet(has(payload)));
  await a.net.within(() => a.tunnel.close({ keep: true }));
  const kept = payloadOf("kept");
  down({ payload: kept });
  t.ok(await oneOnA.packet(has(kept)), "traffic flows on while the process is away");

  const again = a.net.within(() => topology.hostTunnel("a", a.careOf));
  t.same(a.net.within(() => again.entries()), [deliver(one)], "the next process finds what is set");
  await a.net.within(() => again.set([deliver(one)]));
  t.ok(again.counters(one.home).downPackets > 0, "and what was counted");
  await a.net.within(() => again.close({ keep: false }));
  t.match(a.net.exec("tc", "filter", "show", "dev", "uplink", "ingress"), /somebody_elses/);
  t.notMatch(a.net.exec("tc", "filter", "show", "dev", "uplink", "ingress"), /careof/);
  t.equal(a.net.exec("tc", "filter", "show", "dev", one.port, "ingress"), "");
  t.notMatch(a.net.exec("ip", "neigh"), /192\.0\.0\.8/);
  deleteFilter(netlink, foreign);
  t.notMatch(a.net.exec("tc", "qdisc", "show", "dev", "uplink"), /clsact/, "the queueing discipline goes with the last filter");
  netlink.close();
});
