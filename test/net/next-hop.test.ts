import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { macBytes } from "../../model/address.js";
import { PinnedMaps } from "../../net/bpf/loader.js";
import { ETHERTYPE, frame, encode, IPIP, decode } from "./lab/packets.js";
import { bound, CORRESPONDENT, deliver, DRIVERS, GATEWAY, HOME_AGENT, Topology, type Guest } from "./lab/topology.js";
import { Wire } from "./lab/wire.js";

/*
 * The programs of bpf keep the Ethernet header of an outer destination for a few ticks (net/bpf/next-hop.h). What the kernel knows better must count soon, and the kernel must go on
 * asking whether its neighbour is still there.
 */
const topology = new Topology();
const { a, homeAgent, router } = topology;
const [one] = topology.guests as [Guest, Guest];
/** A neighbour is asked about in tenths of a second, not after half a minute. */
for (const [name, value] of [["base_reachable_time_ms", "100"], ["retrans_time_ms", "100"], ["delay_first_probe_time", "1"]] as const) homeAgent.sysctl(`net.ipv4.neigh.uplink.${name}`, value);
one.on(a);
await a.net.within(() => a.ports.set([topology.port(one)]));
await a.net.within(() => a.tunnel.set([deliver(one)]));
await homeAgent.within(() => topology.home.set([bound(one, a)]));
const lan = new Wire(topology.correspondent, "lan");
const inGuest = new Wire(one.on(a), "eth0");
const towardsHome = new Wire(router, "toh");
const lanRouter = new Wire(homeAgent, "lan").mac;
t.teardown(() => topology.close());
t.setTimeout(60_000); // a busy machine

/** Far more often than a header is kept for. */
const EVERY_MS = 2;
const GATEWAY_OF_HOME = "192.0.2.254";
const payload = Buffer.from("next hop");

/** One packet down after the other, until `seen` says so or the time is over. */
async function flow(seen: () => boolean, limitMs: number): Promise<boolean> {
  const end = performance.now() + limitMs;
  while (performance.now() < end) {
    lan.sendIp(lanRouter, { source: CORRESPONDENT, destination: one.home, payload });
    await sleep(EVERY_MS);
    if (seen()) return true;
  }
  return false;
}

/** Has a frame arrived of which `is` holds? */
function arrived(wire: Wire, is: (bytes: Buffer) => boolean): () => boolean {
  return () => {
    for (let bytes = wire.next(); bytes !== null; bytes = wire.next()) if (is(bytes)) return true;
    return false;
  };
}

const inTheGuest = arrived(inGuest, (bytes) => bytes.includes(payload));
const outer = (bytes: Buffer): boolean => bytes.readUInt16BE(12) === ETHERTYPE.ipv4 && decode(bytes.subarray(14))?.protocol === IPIP;
const to = (address: Uint8Array) => (bytes: Buffer): boolean => outer(bytes) && bytes.subarray(0, 6).equals(address);

t.test("the header that the kernel made is kept, by processor", { skip: DRIVERS.home === "ipip" }, async (t) => {
  t.ok(await flow(inTheGuest, 5_000));
  const maps = homeAgent.within(() => new PinnedMaps(join(topology.all.folder, "home"), ["hops"], 1000));
  const uplink = new Wire(homeAgent, "uplink");
  const expected = Buffer.concat([macBytes(towardsHome.mac), macBytes(uplink.mac), Buffer.from([8, 0])]);
  uplink.close();
  const kept = (): boolean => maps.get("hops").keys().some((key) => maps.get("hops").lookup(key)?.includes(expected) === true);
  t.ok(await flow(kept, 5_000), "destination, source and type");
  maps.close({ keep: true });
});

t.test("a header that was learned at another uplink is not used", { skip: DRIVERS.home === "ipip" }, async (t) => {
  const maps = homeAgent.within(() => new PinnedMaps(join(topology.all.folder, "home"), ["hops"], 1000));
  const hops = maps.get("hops");
  const router = macBytes(towardsHome.mac);
  const stranger = Buffer.from([0x02, 0, 0, 0, 0, 0x66]);
  const isStrangers = arrived(towardsHome, to(stranger));
  let [changed, seen] = [0, false];
  for (let round = 0; round < 100; round++) {
    await flow(() => true, 1_000);
    for (const key of hops.keys()) {
      const slot = hops.lookup(key);
      if (slot === null) continue;
      // Of each processor: which header, and the uplink's index behind it (net/bpf/next-hop.h).
      for (let at = slot.indexOf(router); at >= 0; at = slot.indexOf(router, at)) {
        slot.set(stranger, at);
        slot.writeUInt32LE(slot.readUInt32LE(at + 14) + 1, at + 14);
        changed++;
      }
      if (slot.includes(stranger)) hops.update(key, slot);
    }
    seen ||= await flow(isStrangers, EVERY_MS);
  }
  maps.close({ keep: true });
  t.ok(changed > 0);
  t.notOk(seen, "though it is as new as can be");
});

t.test("a neighbour that is stated anew counts at once", async (t) => {
  t.ok(await flow(inTheGuest, 5_000));
  towardsHome.forget();
  const other = Buffer.from([0x02, 0, 0, 0, 0, 0x99]);
  homeAgent.ip(`neigh replace ${GATEWAY_OF_HOME} lladdr 02:00:00:00:00:99 nud permanent dev uplink`);
  t.ok(await flow(arrived(towardsHome, to(other)), 1_000), "frames go to the new address");
  towardsHome.forget();
  t.notOk(await flow(arrived(towardsHome, to(macBytes(towardsHome.mac))), 100), "and to the new one only");
  homeAgent.ip(`neigh del ${GATEWAY_OF_HOME} dev uplink`);
  t.ok(await flow(inTheGuest, 5_000), "once it is forgotten, the kernel asks and finds the right one");
});

t.test("a route that changes counts at once", async (t) => {
  homeAgent.ip("neigh replace 192.0.2.77 lladdr 02:00:00:00:00:77 nud permanent dev uplink", `route add ${a.careOf}/32 via 192.0.2.77 dev uplink`);
  t.ok(await flow(arrived(towardsHome, to(Buffer.from([0x02, 0, 0, 0, 0, 0x77]))), 1_000), "another gateway");
  homeAgent.ip(`route del ${a.careOf}/32`);
  t.ok(await flow(inTheGuest, 1_000), "and back");
});

t.test("a gateway that is another machine now, and says nothing, is found under traffic", async (t) => {
  t.ok(await flow(inTheGuest, 5_000));
  router.ip("link set toh address 02:00:00:00:00:55");
  t.ok(await flow(arrived(towardsHome, to(Buffer.from([0x02, 0, 0, 0, 0, 0x55]))), 10_000), "the kernel asked who it is");
  t.ok(await flow(inTheGuest, 1_000));
});

t.test("up as well", async (t) => {
  const towardsA = new Wire(router, "toa");
  const up = (): void => { inGuest.send(frame(GATEWAY.mac, one.mac, ETHERTYPE.ipv4, encode({ source: one.home, destination: CORRESPONDENT, payload }))); };
  const home = arrived(lan, (bytes) => bytes.includes(payload));
  let seen = false;
  for (let n = 0; n < 500 && !seen; n++) {
    up();
    await sleep(EVERY_MS);
    seen = home();
  }
  t.ok(seen);
  a.net.ip("neigh replace 10.0.1.254 lladdr 02:00:00:00:00:99 nud permanent dev uplink");
  const isNew = arrived(towardsA, to(Buffer.from([0x02, 0, 0, 0, 0, 0x99])));
  seen = false;
  for (let n = 0; n < 500 && !seen; n++) {
    up();
    await sleep(EVERY_MS);
    seen = isNew();
  }
  t.ok(seen, `towards ${HOME_AGENT}`);
});
