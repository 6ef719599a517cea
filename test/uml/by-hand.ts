import t from "tap";
import "../net/decap.test.js"; // of this kernel: not worth a boot of its own
import { bound, deliver, DRIVERS, HOME_AGENT, MTU, Topology, type Guest } from "../net/lab/topology.js";
import { onTheWire, startPeers } from "../net/on-the-wire.js";

/* Our driver at one end and an ordinary `ip tunnel add … mode ipip` at the other. */

t.setTimeout(200_000); // a busy machine
const topology = new Topology();
t.teardown(() => topology.close());
const { a, b, homeAgent } = topology;
const [one, two] = topology.guests as [Guest, Guest];
one.on(a);
for (const guest of [one, two]) guest.on(b);
await b.net.within(() => b.ports.set([one, two].map((guest) => topology.port(guest))));
await b.net.within(() => b.tunnel.set([deliver(two)]));
const peers = await startPeers(topology);
t.teardown(() => { peers.stop(); });

t.test(`home agent ${DRIVERS.home}, a host by hand`, async (t) => {
  a.net.ip(
    `tunnel add hand mode ipip local ${a.careOf} remote ${HOME_AGENT} ttl 64`, "link set hand up", `route add ${one.home} dev ${one.port}`, `address add 169.254.1.1/32 dev ${one.port}`,
    `rule add iif ${one.port} lookup 77`, "route add default dev hand table 77",
  );
  for (const name of ["ip_forward", "conf.all.proxy_arp"]) a.net.sysctl(`net.ipv4.${name}`, "1");
  await homeAgent.within(() => topology.home.set([bound(one, a), bound(two, b)]));
  await onTheWire(t, { topology, peers, byHand: "a" });
  t.ok(topology.home.counters(one.home).upPackets > 0);
  a.net.ip("tunnel del hand", `rule del iif ${one.port} lookup 77`, `route del ${one.home} dev ${one.port}`, `address del 169.254.1.1/32 dev ${one.port}`);
  a.net.sysctl("net.ipv4.conf.all.proxy_arp", "0");
});

t.test(`home agent by hand, hosts ${DRIVERS.hosts}`, async (t) => {
  await homeAgent.within(() => topology.home.close({ keep: false }));
  homeAgent.sysctl("net.ipv4.ip_forward", "1");
  for (const [guest, host] of [[one, a], [two, b]] as const) {
    homeAgent.ip(`tunnel add hand-${guest.port} mode ipip local ${HOME_AGENT} remote ${host.careOf} ttl 64`, `link set hand-${guest.port} up`, `route add ${guest.home} dev hand-${guest.port} mtu ${String(MTU)}`);
  }
  await a.net.within(() => a.ports.set([topology.port(one)]));
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  await onTheWire(t, { topology, peers, byHand: "home" });
  t.ok(a.tunnel.counters(one.home).downPackets > 0);
});
