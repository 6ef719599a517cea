import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { mac } from "../../model/address.js";
import { pings, SMALL } from "../net/lab/echo.js";
import { macOf } from "../net/lab/home-segment.js";
import { bound, CORRESPONDENT, deliver, DRIVERS, HOME_AGENT, MTU, Topology, type Guest } from "../net/lab/topology.js";
import { exchanged, ready, received, sent, Worker } from "../net/lab/workers.js";
import { Wire } from "../net/lab/wire.js";

/* Two drivers, or our driver at one end and an ordinary `ip tunnel add … mode ipip` at the other. */

const BYTES = 4 * 1024 * 1024;
const PORT = 5001;
t.setTimeout(200_000); // a busy machine

async function traffic(t: Test, topology: Topology, guest: Guest): Promise<void> {
  const there = guest.on(topology.a);
  const server = new Worker(there, "tcp-serve", PORT);
  await server.line(ready);
  t.match(await new Worker(topology.correspondent, "tcp-exchange", guest.home, PORT, BYTES).line(exchanged), { same: true, received: BYTES }, "TCP in large segments");
  server.stop();
  await server.ended();
  const receiver = new Worker(there, "udp-receive", PORT);
  await receiver.line(ready);
  await new Worker(topology.correspondent, "udp-send", guest.home, PORT, 3, 0.1, "20000").line(sent);
  await sleep(200);
  receiver.stop();
  t.match(await receiver.line(received), { received: 3 }, "datagrams in fragments");
  await echoes(t, topology, guest);
}

/** Small and full-size, with DF: to the guest and from it. */
async function echoes(t: Test, topology: Topology, guest: Guest): Promise<void> {
  const [lan, eth0] = [new Wire(topology.correspondent, "lan"), new Wire(guest.on(topology.a), "eth0")];
  const [router, port] = [mac(macOf(topology.homeAgent, "lan")), mac(macOf(topology.a.net, guest.port))];
  for (const bytes of [SMALL, MTU]) {
    t.ok(await pings({ wire: lan, via: router, from: CORRESPONDENT, to: guest.home }, bytes), `ping down, ${String(bytes)} bytes`);
    t.ok(await pings({ wire: eth0, via: port, from: guest.home, to: CORRESPONDENT }, bytes), `ping up, ${String(bytes)} bytes`);
  }
  for (const wire of [lan, eth0]) wire.close();
}

if (DRIVERS.home !== DRIVERS.hosts) t.test(`home agent ${DRIVERS.home}, host ${DRIVERS.hosts}`, async (t) => {
  const topology = new Topology();
  t.teardown(() => topology.close());
  const { a, homeAgent } = topology;
  const [one] = topology.guests as [Guest];
  one.on(a);
  await a.net.within(() => a.ports.set([topology.port(one)]));
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  await homeAgent.within(() => topology.home.set([bound(one, a)]));
  await traffic(t, topology, one);
});

else t.test(`home agent ${DRIVERS.home}, host by hand`, async (t) => {
  const topology = new Topology();
  t.teardown(() => topology.close());
  const { a, homeAgent } = topology;
  const [one] = topology.guests as [Guest];
  one.on(a);
  a.net.ip(
    `tunnel add hand mode ipip local ${a.careOf} remote ${HOME_AGENT}`, "link set hand up", `route add ${one.home} dev ${one.port}`, `address add 169.254.1.1/32 dev ${one.port}`,
    `rule add iif ${one.port} lookup 77`, "route add default dev hand table 77",
  );
  for (const name of ["ip_forward", "conf.all.proxy_arp"]) a.net.sysctl(`net.ipv4.${name}`, "1");
  await homeAgent.within(() => topology.home.set([bound(one, a)]));
  await traffic(t, topology, one);
  t.equal(topology.home.counters(one.home).dropped["not-listed"], 0);
  t.ok(topology.home.counters(one.home).upPackets > 0);
});

if (DRIVERS.home === DRIVERS.hosts) t.test(`home agent by hand, host ${DRIVERS.hosts}`, async (t) => {
  const topology = new Topology();
  t.teardown(() => topology.close());
  const { a, homeAgent } = topology;
  const [one] = topology.guests as [Guest];
  one.on(a);
  await a.net.within(() => a.ports.set([topology.port(one)]));
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  homeAgent.ip(`tunnel add hand mode ipip local ${HOME_AGENT} remote ${a.careOf}`, "link set hand up", `route add ${one.home} dev hand mtu ${String(MTU)}`);
  homeAgent.sysctl("net.ipv4.ip_forward", "1");
  await traffic(t, topology, one);
  t.ok(a.tunnel.counters(one.home).downPackets > 0);
});
