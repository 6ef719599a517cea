import { setTimeout as sleep } from "node:timers/promises";
import type { Test } from "tap";
import { ipv4, prefix } from "../../model/address.js";
import type { HomeEntry } from "../../net/tunnel.js";
import { pings, SMALL } from "./lab/echo.js";
import { strictFirewall } from "./lab/firewall.js";
import { arrivesLarge, sendLarge } from "./lab/large.js";
import type { Namespace } from "./lab/namespaces.js";
import { setChecksumOffload } from "./lab/offload.js";
import { decode, encode, ETHERTYPE, ICMP, IPIP, TEST_PROTOCOL, type Packet, type Sketch } from "./lab/packets.js";
import { bound, CORRESPONDENT, deliver, DRIVERS, GATEWAY, HOME_AGENT, MTU, type Guest, type Topology } from "./lab/topology.js";
import { Wire } from "./lab/wire.js";
import { exchanged, ready, Worker } from "./lab/workers.js";

/**
 * What two ends make of packets, whoever they are: careof's drivers as `DRIVERS` says, either of which may be an ordinary `ip tunnel add … mode ipip` instead. `one` stands on A and is bound there, `two`
 * on B, and B has ports for both. What only one driver can be asked (bytes of the outer header, what is counted how) is in packets.test.ts.
 */
export interface Ends {
  readonly topology: Topology;
  readonly peers: Peers;
  /** The end that somebody has made by hand. */
  readonly byHand: "home" | "a" | null;
}

const PORT = 5001;

/** What talks by real sockets: a process each, which takes seconds to start in user-mode-linux. */
export interface Peers {
  readonly correspondent: Worker;
  readonly oneOnA: Worker;
  readonly twoOnB: Worker;
  stop(): void;
}

export async function startPeers({ a, b, correspondent, guests }: Topology): Promise<Peers> {
  const [one, two] = guests as [Guest, Guest];
  const peers = [correspondent, one.on(a), two.on(b)].map((net) => new Worker(net, "peer", PORT)) as [Worker, Worker, Worker];
  await Promise.all(peers.map((peer) => peer.line(ready)));
  return { correspondent: peers[0], oneOnA: peers[1], twoOnB: peers[2], stop: () => { for (const peer of peers) peer.stop(); } };
}

const HOME_PREFIX = prefix("198.51.100.0/24");
const BYTES = 4 * 1024 * 1024;
/** In one packet, in some fragments, and the largest that there is. */
const DATAGRAMS = [1452, 9000, 65_507];
/** The most for which an outer header has a number, one more, and what an interface takes uncut (with 14 bytes more it is 65,535). */
const LARGE = [65_515, 65_516, 65_521];
/** Longer than a packet takes on a machine that is slow. */
const AWAY_MS = 400;

const anyTest = ({ protocol }: Packet): boolean => protocol === TEST_PROTOCOL;
const icmp = (type: number, code: number) => ({ payload, protocol }: Packet): boolean => protocol === ICMP && payload[0] === type && payload[1] === code;

export async function onTheWire(t: Test, { byHand, peers, topology }: Ends): Promise<void> {
  const { a, b, correspondent, homeAgent, router } = topology;
  const [one, two] = topology.guests as [Guest, Guest];
  const ours = { home: byHand !== "home", a: byHand !== "a" };
  /** Does netfilter's input see the outer packets there? */
  const visible = { home: !ours.home || DRIVERS.home === "ipip", a: !ours.a || DRIVERS.hosts === "ipip" };
  const lan = new Wire(correspondent, "lan");
  const [oneOnA, oneOnB, twoOnB] = [new Wire(one.on(a), "eth0"), new Wire(one.on(b), "eth0"), new Wire(two.on(b), "eth0")];
  const [towardsHome, towardsA] = [new Wire(router, "toh"), new Wire(router, "toa")];
  const [homeLan, homeUplink, portOfA, uplinkOfA] = ([[homeAgent, "lan"], [homeAgent, "uplink"], [a.net, one.port], [a.net, "uplink"]] as const).map(([net, name]) => new Wire(net, name)) as [Wire, Wire, Wire, Wire];
  const all = [lan, oneOnA, oneOnB, twoOnB, towardsHome, towardsA, homeLan, homeUplink, portOfA, uplinkOfA];
  t.teardown(() => { for (const wire of all) wire.close(); });
  const down = (sketch: Partial<Sketch> = {}): void => { lan.sendIp(homeLan.mac, { source: CORRESPONDENT, destination: one.home, ...sketch }); };
  const up = (sketch: Partial<Sketch> = {}): void => { oneOnA.sendIp(portOfA.mac, { source: one.home, destination: CORRESPONDENT, ...sketch }); };
  const across = (sketch: Partial<Sketch> = {}): void => { up({ destination: two.home, ...sketch }); };
  const check = (name: string, work: (t: Test) => Promise<void>): Promise<unknown> => t.test(name, async (t) => {
    for (const wire of all) wire.forget();
    await work(t);
  });
  const exchange = (peer: Worker, bytes: number, sizes: readonly number[]): Promise<unknown> => {
    peer.ask(`${one.home} ${String(bytes)} ${sizes.join(",")}`);
    return peer.line(exchanged);
  };

  await check("ping, small and as large as fits, with DF: down, up, and from VM to VM", async (t) => {
    for (const bytes of [SMALL, MTU]) {
      t.ok(await pings({ wire: lan, via: homeLan.mac, from: CORRESPONDENT, to: one.home }, bytes), `down, ${String(bytes)} bytes`);
      t.ok(await pings({ wire: oneOnA, via: portOfA.mac, from: one.home, to: CORRESPONDENT }, bytes), `up, ${String(bytes)} bytes`);
      t.ok(await pings({ wire: oneOnA, via: portOfA.mac, from: one.home, to: two.home }, bytes), `between two hosts, ${String(bytes)} bytes`);
    }
  });

  await check("TCP in large segments both ways; datagrams in fragments, up to 64 KiB, both ways", async (t) => {
    const ends = [homeAgent, a.net].map((net) => ({ net, before: buffers(net) }));
    t.match(await exchange(peers.correspondent, BYTES, DATAGRAMS), { same: true, received: BYTES, datagrams: DATAGRAMS });
    for (const [index, { before, net }] of ends.entries()) {
      const sent = buffers(net) - before;
      t.ok(sent < BYTES / MTU / 2, `${index === 0 ? "down" : "up"}: ${String(sent)} buffers`);
    }
  });

  await check("what is to be cut arrives whole, also where an outer header has no number for it", async (t) => {
    const packets = { down: { from: lan.mac, source: CORRESPONDENT, to: homeLan.mac, destination: one.home }, up: { from: one.mac, source: one.home, to: portOfA.mac, destination: CORRESPONDENT } };
    for (const bytes of LARGE) {
      sendLarge(correspondent, "lan", packets.down, bytes);
      t.equal(await arrivesLarge(oneOnA, CORRESPONDENT, bytes), bytes, `down, ${String(bytes)} bytes`);
      sendLarge(one.on(a), "eth0", packets.up, bytes);
      t.equal(await arrivesLarge(lan, one.home, bytes), bytes, `up, ${String(bytes)} bytes`);
    }
  });

  await check("too big: the sender hears \"frag needed\", or it comes in fragments", async (t) => {
    const pieces = async (wire: Wire): Promise<number> => {
      let sum = 0;
      await wire.packet(({ fragment, payload, protocol }) => {
        if (protocol === TEST_PROTOCOL && fragment !== 0) sum += payload.length;
        return sum >= 1480;
      });
      return sum;
    };
    const wide = (mtu: number): void => {
      one.on(a).change("eth0", { mtu });
      a.net.change(one.port, { mtu });
    };
    wide(1600);
    for (const [send, from, to, what] of [[down, lan, oneOnA, "down"], [up, oneOnA, lan, "up"]] as const) {
      send({ payload: Buffer.alloc(MTU - 19, 2) });
      t.equal((await from.packet(icmp(3, 4)))?.payload.readUInt16BE(6), MTU, `${what}: with the MTU of the path`);
      send({ payload: Buffer.alloc(1480, 4), dontFragment: false, id: 7 });
      t.equal(await pieces(to), 1480, `${what}: whole`);
    }
    wide(MTU);
  });

  await check("TTL: one hop less at each end that routes, and used up it is answered on the way", async (t) => {
    down();
    t.equal((await oneOnA.packet(anyTest))?.ttl, ours.a ? 63 : 62, "down");
    up();
    t.equal((await lan.packet(anyTest))?.ttl, 62, "up");
    across();
    t.equal((await twoOnB.packet(anyTest))?.ttl, 62, "from VM to VM");
    down({ ttl: 1 });
    t.ok(await lan.packet(icmp(11, 0)), "by the home agent, down");
    for (const ttl of [1, 2]) {
      for (const [send, what] of [[up, "up"], [across, "from VM to VM"]] as const) {
        oneOnA.forget();
        send({ ttl });
        t.ok(await oneOnA.packet(icmp(11, 0)), `by the ${ttl === 1 ? "host" : "home agent"}, ${what}`);
      }
    }
  });

  await check("a guest that lies about its address gets nothing through", async (t) => {
    const counted = ours.a ? () => a.tunnel.counters(one.home).dropped["spoofed"] : () => topology.home.counters(two.home).dropped["not-listed"];
    await counts(t, counted, async () => {
      up({ source: two.home });
      t.ok(await lan.silent(anyTest), "another VM's");
    });
    up({ source: ipv4("192.0.2.77") });
    t.ok(await lan.silent(anyTest), "an address of nobody");
  });

  await check("protocol 4 from an outer source that is not registered", async (t) => {
    const outside = { source: ipv4("10.0.9.9"), protocol: IPIP };
    if (ours.home) await counts(t, () => topology.home.counters(one.home).dropped["not-listed"], async () => {
      towardsHome.sendIp(homeUplink.mac, { ...outside, destination: HOME_AGENT, payload: encode({ source: one.home, destination: CORRESPONDENT }) });
      t.ok(await lan.silent(anyTest));
    });
    if (ours.a) await counts(t, () => a.tunnel.counters(one.home).dropped["not-listed"], async () => {
      towardsA.sendIp(uplinkOfA.mac, { ...outside, destination: a.careOf, payload: encode({ source: CORRESPONDENT, destination: one.home }) });
      t.ok(await oneOnA.silent(anyTest));
    });
  });

  if (ours.home) await check("bindings added, moved and removed under load: each packet arrives, and once", async (t) => {
    await b.net.within(() => b.tunnel.set([deliver(one), deliver(two)]));
    const count = 200;
    const seen: number[] = [];
    const collect = (): void => {
      for (const wire of [oneOnA, oneOnB]) {
        for (let bytes = wire.next(); bytes !== null; bytes = wire.next()) {
          const packet = bytes.readUInt16BE(12) === ETHERTYPE.ipv4 ? decode(bytes.subarray(14)) : null;
          if (packet?.protocol === TEST_PROTOCOL) seen.push(packet.payload.readUInt32BE(0));
        }
      }
    };
    for (let n = 0; n < count; n++) {
      const payload = Buffer.alloc(8);
      payload.writeUInt32BE(n);
      down({ payload });
      const here = bound(one, n % 2 === 0 ? b : a);
      const home = ipv4(`198.51.100.${String(20 + (n % 50))}`);
      homeAgent.within(() => {
        topology.home.put(here);
        topology.home.put({ home, active: a.careOf, accept: [a.careOf], mtu: MTU });
        topology.home.put({ home, active: b.careOf, accept: [b.careOf], mtu: 1400 });
        topology.home.drop(home);
      });
      if (n % 25 === 0) await homeAgent.within(() => topology.home.set([here, bound(two, b)]));
      if (n % 10 !== 9) continue;
      await sleep(1);
      collect();
    }
    for (const end = performance.now() + 5_000; seen.length < count && performance.now() < end;) {
      await sleep(5);
      collect();
    }
    t.same(seen.sort((x, y) => x - y), Array.from({ length: count }, (_, n) => n));
    await stand(homeAgent, topology, [bound(one, a), bound(two, b)]);
  });

  if (ours.home) await check("VMs on one host talk there, without the home agent", async (t) => {
    await b.net.within(() => b.tunnel.set([deliver(one), deliver(two)]));
    await stand(homeAgent, topology, [bound(one, b), bound(two, b)]);
    const before = topology.home.counters(one.home).upPackets;
    t.ok(await pings({ wire: oneOnB, via: GATEWAY.mac, from: one.home, to: two.home }, MTU));
    t.equal(topology.home.counters(one.home).upPackets, before);
    await b.net.within(() => b.tunnel.set([deliver(two)]));
    await stand(homeAgent, topology, [bound(one, a), bound(two, b)]);
  });

  /** Which ways packets get through. */
  const open = async (): Promise<string> => {
    const ways = [["down", down, oneOnA], ["up", up, lan], ["across", across, twoOnB]] as const;
    for (const wire of all) wire.forget();
    for (const [, send] of ways) send();
    const through = await Promise.all(ways.map(async ([name, , wire]) => ((await wire.packet(anyTest, AWAY_MS)) === null ? "" : name)));
    return through.filter((name) => name !== "").join(" ");
  };

  await check("firewalls that drop what they do not know and `ct state invalid`, and what their hooks see", async (t) => {
    const offload = (on: boolean): void => { for (const [net, name] of [[one.on(a), "eth0"], [correspondent, "lan"]] as const) setChecksumOffload(net, name, on); };
    const [atHome, atA] = [[homeAgent, HOME_PREFIX], [a.net, ours.a ? null : HOME_PREFIX]] as const;
    const walls = [strictFirewall(...atHome), strictFirewall(...atA), strictFirewall(b.net, null)];
    t.equal(await open(), "down up across");
    offload(false);
    t.match(await exchange(peers.correspondent, BYTES / 4, [9000]), { same: true, datagrams: [9000] }, "where the home prefix is accepted, with checksums that the senders make themselves");
    offload(true);
    t.match(await exchange(peers.twoOnB, BYTES / 4, []), { same: true }, "from VM to VM");
    strictFirewall(homeAgent, null);
    t.equal(await open(), ours.home && DRIVERS.home === "bpf" ? "across" : "", "the home agent's FORWARD drops by policy: it sees what is inside, with bpf but from VM to VM");
    strictFirewall(...atHome, { tunnels: false });
    strictFirewall(...atA, { tunnels: false });
    t.equal(await open(), [visible.a ? "" : "down", visible.home ? "" : "up across"].filter((ways) => ways !== "").join(" "), "INPUT takes no protocol 4: it sees the tunnels that the kernel's device ends");
    for (const remove of walls) remove();
    t.equal(await open(), "down up across");
  });
}

/** Buffers that have left by the uplink: segments that are cut later, or by nobody, are one. */
function buffers(net: Namespace): number {
  return Number(/"tx":\{"bytes":\d+,"packets":(\d+)/.exec(net.exec("ip", "-s", "-j", "link", "show", "uplink").replaceAll(" ", ""))?.[1]);
}

async function stand(homeAgent: Namespace, topology: Topology, entries: readonly HomeEntry[]): Promise<void> {
  await homeAgent.within(() => topology.home.set(entries));
}

async function counts(t: Test, counter: () => number | undefined, work: () => Promise<void>): Promise<void> {
  const before = counter() ?? 0;
  await work();
  t.equal((counter() ?? 0) - before, 1, "and it is counted");
}
