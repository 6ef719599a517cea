import t from "tap";
import { ipv4, type Ipv4 } from "../../model/address.js";
import { SystemClock } from "../../model/clock.js";
import { LEAST_PATH_MTU } from "../../model/locator.js";
import { LinuxPathWire, PathMtus, type PathWire } from "../../net/path-mtu.js";
import { until } from "../home-agent/bench.js";
import { checksum, encode, ICMP, IPIP, TEST_PROTOCOL, type Packet } from "./lab/packets.js";
import { bound, CORRESPONDENT, deliver, GATEWAY, HOME_AGENT, MTU, Topology, type Guest, type Host } from "./lab/topology.js";
import { Wire } from "./lab/wire.js";

/** Real routers, real tunnels: what the path to B carries is less than the links at its ends, and nobody has said so in a configuration. */

const NARROW = 1400;
const LINK = 1500;
const topology = new Topology();
const { a, b, homeAgent, router } = topology;
const [one] = topology.guests as [Guest, Guest];
for (const host of [a, b]) {
  one.on(host);
  await host.net.within(() => host.ports.set([topology.port(one)]));
}
const lan = new Wire(topology.correspondent, "lan");
const oneOnB = new Wire(one.on(b), "eth0");
const towardsHome = new Wire(router, "toh");
const lanRouter = new Wire(homeAgent, "lan").mac;
const homeUplink = new Wire(homeAgent, "uplink").mac;
router.ip(
  "route replace 10.0.2.0/24 dev tob mtu 1400",
  "route add 192.0.2.0/24 dev toh mtu 1400 table 102",
  "rule add from 10.0.2.0/24 table 102",
);
/** An agent's timers keep its process alive; a test's wait does. */
const clock = new SystemClock({ keepAlive: true });
const failures: string[] = [];
const watch = (where: "home" | Host, changed: (to: Ipv4, mtu: number) => void): PathMtus => {
  const [net, address] = where === "home" ? [homeAgent, HOME_AGENT] : [where.net, where.careOf];
  return net.within(() => new PathMtus({ wire: new LinuxPathWire(), clock, address, changed, failed: (error) => { failures.push(error.message); } }));
};
t.teardown(() => topology.close());
t.setTimeout(120_000);

const fragNeeded = ({ payload, protocol }: Packet): boolean => protocol === ICMP && payload[0] === 3 && payload[1] === 4;
const ofSize = (bytes: number) => ({ payload, protocol }: Packet): boolean => protocol === TEST_PROTOCOL && payload.length === bytes - 20;
const down = (bytes: number): void => { lan.sendIp(lanRouter, { source: CORRESPONDENT, destination: one.home, payload: Buffer.alloc(bytes - 20, 7) }); };
const up = (bytes: number): void => { oneOnB.sendIp(GATEWAY.mac, { source: one.home, destination: CORRESPONDENT, payload: Buffer.alloc(bytes - 20, 7) }); };

t.test("down: a probe finds the narrow path before a packet of anybody's has to, and the first one too big is answered", async (t) => {
  await b.net.within(() => b.tunnel.set([deliver(one)]));
  await homeAgent.within(() => topology.home.set([bound(one, b)]));
  const paths = watch("home", (to, mtu) => {
    t.equal(to, b.careOf);
    homeAgent.within(() => { topology.home.put({ ...bound(one, b), mtu: mtu - 20 }); });
  });
  homeAgent.within(() => { paths.set(new Map([[a.careOf, LINK], [b.careOf, LINK]])); });
  await until("the router's word", () => paths.mtu(b.careOf) === NARROW);
  t.equal(paths.mtu(a.careOf), LINK, "the other path is as wide as it is");
  down(MTU);
  t.equal((await lan.packet(fragNeeded))?.payload.readUInt16BE(6), NARROW - 20);
  down(NARROW - 20);
  t.ok(await oneOnB.packet(ofSize(NARROW - 20)), "what fits passes");
  t.ok(await oneOnB.silent(ofSize(MTU)));
  paths.close();
});

t.test("down, without a probe: a VM's own packet finds it out, and the next one is answered", async (t) => {
  await homeAgent.within(() => topology.home.set([bound(one, b)]));
  lan.forget();
  const heard: number[] = [];
  const paths = watch("home", (_to, mtu) => {
    heard.push(mtu);
    homeAgent.within(() => { topology.home.put({ ...bound(one, b), mtu: mtu - 20 }); });
  });
  homeAgent.within(() => { paths.set(new Map([[b.careOf, LINK]])); });
  down(MTU);
  await until("the router's word about it", () => heard.length > 0);
  down(MTU);
  t.equal((await lan.packet(fragNeeded))?.payload.readUInt16BE(6), NARROW - 20);
  paths.close();
});

/** Nobody probes: what is learned is learned of a VM's own packets. */
const watchOnly = (where: "home" | Host, changed: (mtu: number) => void): PathMtus => {
  const [net, address] = where === "home" ? [homeAgent, HOME_AGENT] : [where.net, where.careOf];
  return net.within(() => {
    const wire = new LinuxPathWire();
    const silent: PathWire = { listen: (...given) => { wire.listen(...given); }, probe: () => undefined, close: () => { wire.close(); } };
    return new PathMtus({ wire: silent, clock, address, changed: (_to, mtu) => { changed(mtu); }, failed: (error) => { failures.push(error.message); } });
  });
};

t.test("what may be cut teaches it too, both ways: it is lost once, and then comes in pieces that fit", async (t) => {
  await b.net.within(() => b.tunnel.set([deliver(one)]));
  await homeAgent.within(() => topology.home.set([bound(one, b)]));
  const mayBeCut = { payload: Buffer.alloc(MTU - 20, 9), dontFragment: false, id: 11 };
  const toGuest = { wire: oneOnB, send: (): void => { lan.sendIp(lanRouter, { source: CORRESPONDENT, destination: one.home, ...mayBeCut }); } };
  const toLan = { wire: lan, send: (): void => { oneOnB.sendIp(GATEWAY.mac, { source: one.home, destination: CORRESPONDENT, ...mayBeCut }); } };
  const atHome = (mtu: number): void => { homeAgent.within(() => { topology.home.put({ ...bound(one, b), mtu: mtu - 20 }); }); };
  const atHost = (mtu: number): void => {
    b.net.within(() => {
      b.ports.usePathMtu(mtu);
      b.tunnel.usePathMtu(mtu);
    });
  };
  for (const [what, where, far, { send, wire }, use] of [["down", "home", b.careOf, toGuest, atHome], ["up", b, HOME_AGENT, toLan, atHost]] as const) {
    const paths = watchOnly(where, use);
    paths.set(new Map([[far, LINK]]));
    wire.forget();
    send();
    await until(`${what}: the router's word about it`, () => paths.mtu(far) === NARROW);
    t.equal(wire.next(), null, `${what}: nothing of it came`);
    send();
    let bytes = 0;
    await wire.packet(({ fragment, payload, protocol }) => {
      if (protocol === TEST_PROTOCOL && fragment !== 0) bytes += payload.length;
      return bytes >= MTU - 20;
    });
    t.equal(bytes, MTU - 20, `${what}: the next one does`);
    paths.close();
  }
  atHost(0);
});

t.test("up: the host finds it in the same way, and the guest hears it from its gateway", async (t) => {
  await b.net.within(() => b.tunnel.set([deliver(one)]));
  await homeAgent.within(() => topology.home.set([{ ...bound(one, b), mtu: NARROW - 20 }]));
  up(MTU);
  t.ok(await lan.silent(ofSize(MTU)), "it gets lost while nobody knows");
  const paths = watch(b, (to, mtu) => {
    t.equal(to, HOME_AGENT);
    b.net.within(() => {
      b.ports.usePathMtu(mtu);
      b.tunnel.usePathMtu(mtu);
    });
  });
  b.net.within(() => { paths.set(new Map([[HOME_AGENT, LINK]])); });
  await until("the router's word", () => paths.mtu(HOME_AGENT) === NARROW);
  oneOnB.forget();
  up(MTU);
  const heard = await oneOnB.packet(fragNeeded);
  t.match(heard, { source: GATEWAY.address });
  t.equal(heard?.payload.readUInt16BE(6), NARROW - 20);
  up(NARROW - 20);
  t.ok(await lan.packet(ofSize(NARROW - 20)));
  b.net.within(() => {
    b.ports.usePathMtu(0);
    b.tunnel.usePathMtu(0);
  });
  paths.close();
});

t.test("a path that became wider carries a larger probe, whatever the kernel itself has learned", async (t) => {
  await homeAgent.within(() => topology.home.set([bound(one, b)]));
  const wire = homeAgent.within(() => new LinuxPathWire());
  const uplink = new Wire(b.net, "uplink");
  const outer = (bytes: number) => ({ payload, protocol }: Packet): boolean => protocol === IPIP && payload.length === bytes - 20;
  wire.probe(HOME_AGENT, b.careOf, LINK);
  t.ok(await uplink.silent(outer(LINK)));
  router.ip("route replace 10.0.2.0/24 dev tob");
  wire.probe(HOME_AGENT, b.careOf, LINK);
  t.ok(await uplink.packet(outer(LINK)));
  wire.close();
});

t.test("forged: of an address that no tunnel goes to, of a packet that we did not send, and below the floor", async (t) => {
  const changes: number[] = [];
  const paths = watch("home", (_to, mtu) => { changes.push(mtu); });
  homeAgent.within(() => { paths.set(new Map([[a.careOf, LINK]])); });
  const forge = (quoted: Parameters<typeof encode>[0], mtu: number): void => {
    const payload = Buffer.concat([Buffer.alloc(8), encode(quoted).subarray(0, 48)]);
    payload.writeUInt16BE(0x0304, 0);
    payload.writeUInt16BE(mtu, 6);
    payload.writeUInt16BE(checksum(payload), 2);
    towardsHome.sendIp(homeUplink, { source: ipv4("192.0.2.254"), destination: HOME_AGENT, protocol: ICMP, payload });
  };
  const ours = { source: HOME_AGENT, destination: a.careOf, protocol: IPIP, payload: Buffer.alloc(LINK - 20, 69) };
  forge({ ...ours, destination: ipv4("10.66.6.6") }, 1000);
  forge({ ...ours, source: a.careOf }, 1000);
  forge({ ...ours, protocol: 17 }, 1000);
  forge({ ...ours, payload: Buffer.alloc(LINK) }, 1000);
  forge({ ...ours, dontFragment: false }, 1000);
  forge(ours, 40);
  await until("the last one", () => changes.length > 0);
  t.same(changes, [LEAST_PATH_MTU], "and nothing of the ones before");
  paths.close();
  t.same(failures, []);
});
