import { setTimeout as sleep } from "node:timers/promises";
import type { Test } from "tap";
import { SystemClock } from "../../model/clock.js";
import { createLogger } from "../../model/log.js";
import { Netlink } from "../../net/netlink/client.js";
import { changeLink, requireLink } from "../../net/netlink/links.js";
import { UplinkMender } from "../../net/uplink-mender.js";
import { LinuxUplinkNews, type UplinkLoss } from "../../net/uplink-news.js";
import type { Namespace } from "./lab/namespaces.js";
import { ICMP, TEST_PROTOCOL, type Packet } from "./lab/packets.js";
import { bound, CORRESPONDENT, deliver, DRIVERS, GATEWAY, HOME_AGENT, MTU, type Topology } from "./lab/topology.js";
import { Wire } from "./lab/wire.js";

/** Far longer than it takes on a busy machine, and than the pause between two attempts. */
const BACK_MS = 30_000;
/** In bytes: what the uplink takes, and the tunnel does not. */
const TOO_BIG = 1500;
/** Type 3, code 4. */
const FRAG_NEEDED = 0x0304;
/** More news than a socket keeps. */
const FLOOD = 500;

/** One end of the tunnels, and what its administrator does to its uplink. */
interface End {
  readonly name: string;
  readonly net: Namespace;
  readonly address: string;
  /** The router's end of the cable. */
  readonly far: { readonly name: string; readonly address: string };
  readonly renew: () => Promise<void>;
}

/** The uplink of either end goes and comes back in every way, and traffic with it. The first guest is on host a; what both ends want is set here. */
export async function uplinkComesBack(t: Test, topology: Topology): Promise<void> {
  const { a, correspondent, homeAgent, router } = topology;
  const [one] = topology.guests;
  if (one === undefined) throw new Error("a guest is needed");
  const inGuest = new Wire(one.on(a), "eth0");
  const lan = new Wire(correspondent, "lan");
  const lanRouter = new Wire(homeAgent, "lan").mac;
  const ends: readonly End[] = [
    {
      name: "home agent", net: homeAgent, address: HOME_AGENT, far: { name: "toh", address: "192.0.2.254" },
      renew: () => homeAgent.within(() => topology.home.set([bound(one, a)])),
    },
    {
      name: "host", net: a.net, address: a.careOf, far: { name: "toa", address: "10.0.1.254" },
      renew: async () => {
        await a.net.within(() => a.ports.set([topology.port(one)]));
        await a.net.within(() => a.tunnel.set([deliver(one)]));
      },
    },
  ];
  for (const { renew } of ends) await renew();
  one.on(a).ip(`link set eth0 mtu ${String(TOO_BIG)}`);
  // The answers are asked for more often than a kernel gives them.
  a.net.sysctl("net.ipv4.icmp_ratelimit", "0");

  let sequence = 0;
  /** A packet each way, and one that is too big for the tunnel, which the host's stack answers by the policy route over the uplink. */
  const passes = async (): Promise<boolean> => {
    const number = sequence++;
    const payload = Buffer.from(`again ${String(number)}`);
    const ours = (packet: Packet): boolean => packet.protocol === TEST_PROTOCOL && packet.payload.equals(payload);
    lan.sendIp(lanRouter, { source: CORRESPONDENT, destination: one.home, payload });
    inGuest.sendIp(GATEWAY.mac, { source: one.home, destination: CORRESPONDENT, payload });
    const came = await Promise.all([inGuest, lan].map((wire) => wire.packet(ours, 100)));
    if (came.includes(null)) return false;
    const large = Buffer.alloc(TOO_BIG - 20);
    large.writeUInt32BE(number);
    inGuest.sendIp(GATEWAY.mac, { source: one.home, destination: CORRESPONDENT, payload: large, dontFragment: true });
    // It quotes the beginning of what it is about: one that was late is not taken for this one's.
    const refusal = await inGuest.packet((packet) => packet.protocol === ICMP && packet.payload.readUInt16BE(0) === FRAG_NEEDED && packet.payload.readUInt32BE(8 + 20) === number, 100);
    return refusal?.payload.readUInt16BE(6) === MTU;
  };
  const comesBack = async (): Promise<number | null> => {
    const begun = performance.now();
    while (performance.now() - begun < BACK_MS) if (await passes()) return performance.now() - begun;
    return null;
  };

  for (const end of ends) {
    const { address, far, name, net, renew } = end;
    const defaultRoute = `route replace default via ${far.address}`;
    const down = (): void => { net.ip("link set uplink down"); };
    const up = (): void => { net.ip("link set uplink up", defaultRoute); };
    const remove = (): void => { net.ip("link del uplink"); };
    const make = (): void => {
      topology.all.connect(net, "uplink", router, far.name);
      router.ip(`address add ${far.address}/24 dev ${far.name}`);
      net.ip(`address add ${address}/24 dev uplink`, defaultRoute);
    };
    /** Of all that may happen what loses something with either driver. */
    const swapAddress = (): void => { net.ip(`address del ${address}/24 dev uplink`, `address add ${address}/24 dev uplink`, defaultRoute); };
    t.ok(await comesBack(), `${name}: traffic flows`);
    swapAddress();
    // A host with ipip gives these answers without its policy route, too (Linux 6.1).
    if (net !== a.net || DRIVERS.hosts === "bpf") t.equal(await passes(), false, `${name}: who does not look has lost it`);

    const mended: UplinkLoss[] = [];
    const log = createLogger("test", "silent");
    const mender = new UplinkMender({
      uplink: "uplink", news: net.within(() => new LinuxUplinkNews({ uplink: "uplink", address: HOME_AGENT })), clock: new SystemClock(), log, renew, mended: (why) => { mended.push(why); },
    });
    t.teardown(() => { mender.close(); });
    await renew();
    const mends = async (what: string, reason: UplinkLoss): Promise<void> => {
      const took = await comesBack();
      t.not(took, null, `${name}: traffic flows after ${what}`);
      t.comment(`${name}: ${what}: back after ${(took ?? 0).toFixed(0)} ms`);
      for (const limit = performance.now() + BACK_MS; mended.length === 0 && performance.now() < limit;) await sleep(10);
      t.equal(mended[0], reason, `${name}: and it is said why`);
      // What belongs to the same loss comes soon after, if at all.
      await sleep(300);
      mended.length = 0;
    };

    down();
    up();
    mender.start();
    await mends("what happened before anybody listened", "uplink-down");
    down();
    up();
    await mends("down and up in one moment", "uplink-down");
    down();
    await sleep(300);
    t.same(mended, [], "nothing can be set on what is down");
    up();
    await mends("down for a while", "uplink-down");
    remove();
    make();
    await mends("another one of the same name", "uplink-gone");
    remove();
    await sleep(300);
    t.same(mended, [], "nor on what is not there");
    make();
    await mends("gone for a while", "uplink-gone");
    swapAddress();
    await mends("its address gone and back in one moment", "address-gone");
    net.ip(`address del ${address}/24 dev uplink`);
    await sleep(300);
    net.ip(`address add ${address}/24 dev uplink`, defaultRoute);
    await mends("its address gone for a while", "address-gone");
    net.ip("link set uplink down", "link set uplink name renamed");
    await sleep(300);
    net.ip("link set renamed name uplink", "link set uplink up", defaultRoute);
    await mends("its name given to no interface for a while", "uplink-gone");
    flood(net);
    down();
    up();
    await mends("more news than the kernel keeps", "news-missed");

    // Nothing of what was set is a loss itself: the second look is over by now.
    await sleep(4000);
    t.same(mended, [], `${name}: no renewal leads to another`);
    // The host's uplink does not have the address that the news is asked for: there it is the last one that counts.
    net.ip("link set uplink mtu 1400", "link set uplink mtu 1500", "address add 192.0.2.99/32 dev lo", "address del 192.0.2.99/32 dev lo", "address add 192.0.2.99/32 dev uplink", "address del 192.0.2.99/32 dev uplink");
    await sleep(300);
    t.same(mended, [], `${name}: nor does what is no loss`);
    mender.close();
    mender.close();
  }
  for (const wire of [inGuest, lan]) wire.close();
}

/** News of the uplink that means nothing, faster than this process, which does it, can read. */
export function flood(net: Namespace): void {
  net.within(() => {
    const netlink = new Netlink();
    for (let n = 0; n < FLOOD; n++) changeLink(netlink, requireLink(netlink, "uplink"), { alias: `test ${String(n)}` });
    netlink.close();
  });
}
