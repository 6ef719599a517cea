import t, { type Test } from "tap";
import { addressBytes } from "../../model/address.js";
import { encodeMarker } from "../../net/marker.js";
import { close, sendTo, socket } from "../../net/syscall.js";
import { TUNNEL_HOP } from "../../net/tunnel-hop.js";
import { encode, ETHERTYPE, frame, IPIP, TEST_PROTOCOL, type Packet, type Sketch } from "./lab/packets.js";
import { bound, CORRESPONDENT, deliver, GATEWAY, HOME_AGENT, MTU, Topology, type Guest } from "./lab/topology.js";
import { Wire } from "./lab/wire.js";

/* A host's slow path: what a VM's port passes to the stack comes back by the uplink's egress and is encapsulated there; what else leaves that way is not. */

const MARKER_PROTOCOL = 253;
const TOKEN = 0x5eed;
const SOCK_RAW_CLOEXEC = 3 | 0o2000000;
const IPPROTO_RAW = 255;
const AF_INET = 2;

const topology = new Topology();
const { a, all, b, homeAgent } = topology;
const [one] = topology.guests as [Guest];
t.teardown(() => topology.close());
t.setTimeout(120_000); // a busy machine

one.on(a).ip("link set eth0 mtu 1600");
a.net.ip(`link set ${one.port} mtu 1600`);
await a.net.within(() => a.ports.set([topology.port(one)]));
const box = all.make("box");
all.connect(a.net, "box", box, "eth0");
// A router for its containers, as on most machines that run any.
a.net.sysctl("net.ipv4.conf.all.rp_filter", "0");
a.net.sysctl("net.ipv4.conf.box.rp_filter", "0");
a.net.sysctl("net.ipv4.conf.box.forwarding", "1");

const lan = new Wire(topology.correspondent, "lan");
const guest = new Wire(one.on(a), "eth0");
const inBox = new Wire(box, "eth0");
const boxPort = new Wire(a.net, "box").mac;
const hostUplink = new Wire(a.net, "uplink");
const towardsA = new Wire(topology.router, "toa");

t.beforeEach(async () => {
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  await homeAgent.within(() => topology.home.set([bound(one, a)]));
  topology.home.clearStamps(one.home);
  for (const wire of [lan, guest, inBox, hostUplink, towardsA]) wire.forget();
});

const large = Buffer.alloc(1480, 4);
const up = (sketch: Partial<Sketch>): void => { guest.sendIp(GATEWAY.mac, { source: one.home, destination: CORRESPONDENT, ...sketch }); };
const marker = encodeMarker({ outer: { source: one.home, destination: CORRESPONDENT }, inner: { source: one.home, destination: HOME_AGENT }, token: TOKEN }).subarray(20);
const payloadOf = (text: string): Buffer => Buffer.from(`${text} ${String(Math.random())}`);

/** By a process on the host, with whatever source address. */
function fromProcess(packet: Buffer): void {
  a.net.within(() => {
    const fd = socket(AF_INET, SOCK_RAW_CLOEXEC, IPPROTO_RAW);
    const address = Buffer.alloc(16);
    address.writeUInt16LE(AF_INET);
    address.set(addressBytes(CORRESPONDENT), 4);
    sendTo(fd, packet, address);
    close(fd);
  });
}

async function arrivesCut(t: Test, what: string): Promise<void> {
  up({ payload: large, dontFragment: false, id: 6 });
  const pieces = [await lan.packet(({ fragment }) => fragment === 0x2000), await lan.packet(({ fragment }) => fragment !== 0 && fragment !== 0x2000)];
  t.equal(pieces.reduce((sum, piece) => sum + (piece?.payload.length ?? 0), 0), large.length, what);
}

t.test("what has to be cut arrives, of a VM that is here and of one that has left and still sends", async (t) => {
  await arrivesCut(t, "here");
  const sender = { port: one.port, mac: one.mac };
  a.net.within(() => { a.tunnel.put({ role: "forward", home: one.home, to: b.careOf, sender }); });
  const payload = payloadOf("small");
  up({ payload });
  t.ok(await lan.packet((packet) => packet.payload.equals(payload)), "by the fast path");
  const before = a.tunnel.counters(one.home);
  await arrivesCut(t, "by the slow one");
  t.same(a.tunnel.counters(one.home).dropped, before.dropped);
  t.equal(a.tunnel.counters(one.home).upPackets, before.upPackets + 2);
});

t.test("what the host's own processes and containers send with a VM's address is no business of the tunnel's", async (t) => {
  const counted = topology.home.counters(one.home).upPackets;
  const ways: readonly (readonly [string, (packet: Buffer) => void])[] = [
    ["a process", fromProcess],
    ["a container", (packet) => { inBox.send(frame(boxPort, inBox.mac, ETHERTYPE.ipv4, packet)); }],
  ];
  for (const [who, send] of ways) {
    const payload = payloadOf(who);
    send(encode({ source: one.home, destination: CORRESPONDENT, payload }));
    const seen = await towardsA.packet((packet) => packet.protocol === IPIP || packet.payload.equals(payload));
    t.match(seen, { protocol: TEST_PROTOCOL, source: one.home }, `${who}: leaves as it is, for the network to judge`);
    t.ok(await lan.silent((packet) => packet.payload.equals(payload)), who);
    send(marker);
    t.ok(await towardsA.silent(({ protocol }) => protocol === IPIP), `${who}: nor a marker`);
  }
  t.equal(topology.home.counters(one.home).upPackets, counted);
  t.equal(topology.home.stamps(one.home).marker, null);
});

t.test("a frame to the hop that does not exist, by somebody else than the VM's port", async (t) => {
  const spoofed = a.tunnel.counters(one.home).dropped["spoofed"] ?? 0;
  for (const role of ["here", "forward"] as const) {
    if (role === "forward") a.net.within(() => { a.tunnel.put({ role, home: one.home, to: b.careOf }); });
    const packet = encode({ source: one.home, destination: CORRESPONDENT, payload: payloadOf(role) });
    t.throws(() => { hostUplink.send(frame(TUNNEL_HOP.mac, hostUplink.mac, ETHERTYPE.ipv4, packet)); }, { cause: { code: "ENOBUFS" } }, "dropped before it left");
    t.ok(await towardsA.silent(({ protocol, source }) => protocol === IPIP || source === one.home), role);
  }
  t.equal(a.tunnel.counters(one.home).dropped["spoofed"], spoofed + 2);
});

t.test("a guest cannot make a marker by having a packet cut", async (t) => {
  const firstPiece = Math.floor((MTU - 20) / 8) * 8;
  const isMarkerPiece = ({ payload, protocol }: Packet): boolean => protocol === IPIP && payload[9] === MARKER_PROTOCOL;
  up({ protocol: MARKER_PROTOCOL, payload: Buffer.concat([Buffer.alloc(firstPiece), marker.subarray(20), Buffer.alloc(64)]), dontFragment: false, id: 7 });
  t.ok(await towardsA.packet(isMarkerPiece), "the first piece");
  t.ok(await towardsA.silent(isMarkerPiece), "the second one looks like a marker");
  t.equal(topology.home.stamps(one.home).marker, null);
  up({});
  t.ok(await lan.packet(({ protocol }) => protocol === TEST_PROTOCOL));
});
