import t from "tap";
import { limitAggregates } from "../../net/aggregates.js";
import { Netlink } from "../../net/netlink/client.js";
import { changeLink, requireLink, type Link } from "../../net/netlink/links.js";
import { setChecksumOffload, setReceiveOffload } from "./lab/offload.js";
import { bound, CORRESPONDENT, deliver, Topology, type Guest } from "./lab/topology.js";
import type { Namespace } from "./lab/namespaces.js";
import { exchanged, ready, Worker } from "./lab/workers.js";

/* What the kernel joins on its way into a tunnel leaves room for an outer header. */

const LIMIT = 65_516;
const BYTES = 8 * 1024 * 1024;
const PORT = 5001;
/** 48 segments with timestamps are 65,524 bytes. */
const MSS = 1376;

t.setTimeout(120_000); // a busy machine
const topology = new Topology();
const { a, correspondent, homeAgent } = topology;
const [one] = topology.guests as [Guest];
one.on(a);
t.teardown(() => topology.close());

function linkOf(net: Namespace, name: string): Link {
  return net.within(() => {
    const netlink = new Netlink();
    try {
      return requireLink(netlink, name);
    } finally {
      netlink.close();
    }
  });
}

/** Which of the two limits counts for IPv4 here; null on a kernel that has neither. */
const limitOf = (link: Link): number | null => link.groIpv4MaxSize ?? link.groMaxSize;

const known = limitOf(linkOf(homeAgent, "lan")) !== null;

t.test("interfaces by which packets come that go into a tunnel are limited; what is smaller stays", { skip: known ? false : "this kernel has no such limit" }, async (t) => {
  homeAgent.ip("link set uplink gro_max_size 30000");
  await homeAgent.within(() => topology.home.set([bound(one, a)]));
  await a.net.within(() => a.ports.set([topology.port(one)]));
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  t.equal(limitOf(linkOf(homeAgent, "lan")), LIMIT, "correspondents come by it");
  t.equal(limitOf(linkOf(homeAgent, "uplink")), 30_000, "smaller already");
  t.equal(limitOf(linkOf(a.net, one.port)), LIMIT, "a VM's port");
  t.equal(limitOf(linkOf(a.net, "uplink")), 65_536, "what comes by a host's uplink is in a tunnel already");
  homeAgent.ip("link set uplink gro_max_size 65536");

  const netlink = homeAgent.within(() => new Netlink());
  const lan = requireLink(netlink, "lan");
  if (lan.groIpv4MaxSize !== null) {
    changeLink(netlink, lan, { groMaxSize: 100_000, groIpv4MaxSize: 100_000 });
    limitAggregates(netlink, [requireLink(netlink, "lan")]);
    t.match(requireLink(netlink, "lan"), { groMaxSize: 100_000, groIpv4MaxSize: LIMIT }, "IPv6 has a limit of its own");
  }
  limitAggregates(netlink, [{ ...lan, index: 9999, groIpv4MaxSize: null, groMaxSize: 65_536 }]);
  t.ok(true, "one that has gone is no matter");
  netlink.close();
});

t.test("TCP whose segments would be joined to 65,524 bytes: none is too big, down and up", async (t) => {
  await a.net.within(() => a.ports.set([topology.port(one)]));
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  await homeAgent.within(() => topology.home.set([bound(one, a)]));
  for (const [net, name] of [[correspondent, "lan"], [one.on(a), "eth0"]] as const) setChecksumOffload(net, name, false);
  for (const [net, name] of [[homeAgent, "lan"], [a.net, one.port]] as const) setReceiveOffload(net, name, true);
  correspondent.ip(`route add ${one.home} via 203.0.113.1 advmss ${String(MSS)}`);
  one.on(a).ip(`route add ${CORRESPONDENT} via 169.254.1.1 dev eth0 onlink advmss ${String(MSS)}`);
  const server = new Worker(one.on(a), "tcp-serve", PORT);
  await server.line(ready);
  t.match(await new Worker(correspondent, "tcp-exchange", one.home, PORT, BYTES).line(exchanged), { sent: BYTES, received: BYTES, same: true });
  server.stop();
  await server.ended();
  const [home, host] = [topology.home.counters(one.home), a.tunnel.counters(one.home)];
  t.same([home.dropped["too-big"], host.dropped["too-big"]], [0, 0]);
});
