import { join } from "node:path";
import t from "tap";
import "../cli/start-up.test.js"; // what auto says when it takes ipip: not worth a boot of its own
import { ipv4, prefix } from "../../model/address.js";
import { openHomeTunnel, openHostTunnel } from "../../net/data-plane.js";
import { probeAuto, probeDataPlanes } from "../../net/probe-ipip.js";
import type { HomeTunnel, HostTunnel } from "../../net/tunnel.js";
import { bound, deliver, GATEWAY, HOME_AGENT, Topology, type Guest } from "../net/lab/topology.js";
import { exchanged, ready, Worker } from "../net/lab/workers.js";
import { uplinkComesBack } from "../net/uplink-again.js";

/* What only the ipip driver has: a device of which there is one per namespace. And the change from one driver to the other. */

t.setTimeout(200_000); // a busy machine
const topology = new Topology();
const { a, correspondent, homeAgent } = topology;
const [one] = topology.guests as [Guest];
one.on(a);
await a.net.within(() => a.ports.set([topology.port(one)]));
t.teardown(() => topology.close());

const home = { uplink: "uplink", address: HOME_AGENT, homePrefixes: [prefix("198.51.100.0/24")], runDir: join(topology.all.folder, "changed"), maxEntries: 100 };
const host = { uplink: "uplink", careOf: a.careOf, homeAgents: [HOME_AGENT], pathMtu: 0, gateway: GATEWAY, runDir: join(topology.all.folder, "changed-host"), maxEntries: 100 };
const seen = (net: typeof homeAgent): string => [net.exec("ip", "-d", "link", "show"), net.exec("tc", "filter", "show", "dev", "uplink", "ingress"), net.exec("tc", "filter", "show", "dev", "uplink", "egress")].join("\n");

t.test("the device, in the kernel's own words", async (t) => {
  await homeAgent.within(() => topology.home.set([bound(one, a), { home: ipv4("198.51.100.8"), active: null, accept: [], mtu: 1300 }]));
  t.match(homeAgent.exec("ip", "-d", "link", "show", "careof-ipip"), /<NOARP,UP,LOWER_UP> mtu 1480.*ipip external.*alias careof:home/s);
  const routes = homeAgent.exec("ip", "route", "show", "proto", "202");
  t.match(routes, new RegExp(`^${one.home} +encap ip id 0 src ${HOME_AGENT} dst ${a.careOf} ttl 64 tos 1.* dev careof-ipip scope link src ${HOME_AGENT} mtu 1480`, "m"));
  t.match(routes, /^198\.51\.100\.8 dev careof-ipip scope link src \S+ mtu 1300/m);
  t.match(homeAgent.exec("ip", "route", "show", "type", "unreachable"), /unreachable 198\.51\.100\.0\/24 proto 202 metric 60000/);
});

t.test("the uplink goes and comes back: the device stays, the routes do not always", (t) => uplinkComesBack(t, topology));

t.test("a device that is not ours", async (t) => {
  t.throws(() => homeAgent.within(() => openHostTunnel("ipip", { ...host, careOf: HOME_AGENT })), { code: "both-ends", message: /a home agent of careof runs/ });
  const former = correspondent.within(() => openHomeTunnel("ipip", { ...home, uplink: "lan", homePrefixes: [], runDir: join(topology.all.folder, "former") }).tunnel);
  await correspondent.within(() => former.close({ keep: true }));
  t.throws(() => correspondent.within(() => openHostTunnel("ipip", { ...host, uplink: "lan", runDir: join(topology.all.folder, "latter") })), { code: "not-ours", message: /careof:home.*ip link del careof-ipip/ }, "what an end has left");
  correspondent.ip("link del careof-ipip");
  topology.router.ip("link add foreign type ipip external");
  const there = { ...home, uplink: "toh", runDir: join(topology.all.folder, "foreign") };
  t.throws(() => topology.router.within(() => openHomeTunnel("ipip", there)), { code: "not-ours", message: /another program/ });
  t.equal(topology.router.within(() => openHomeTunnel("auto", there)).tunnel.driver, "bpf");
  t.match(topology.router.exec("ip", "link", "show"), / foreign/, "it stays");
});

t.test("what is left of a trial whose process was killed keeps nobody from having the device", async (t) => {
  const { correspondent: net } = topology;
  // The largest number that the kernel gives to processes, and one more: nobody's.
  const [dead, alive] = ["coipip4194305", "coipip1"];
  const options = { ...home, uplink: "lan", runDir: join(topology.all.folder, "left") };
  net.ip(`link add ${alive} type ipip external`);
  t.throws(() => net.within(() => openHomeTunnel("ipip", options)), { code: "not-ours" }, "one that is in the midst of a trial is left alone");
  net.ip(`link set ${alive} name ${dead}`);
  t.match(net.within(() => probeDataPlanes("ipip", "home", "lan")), [{ ok: true }]);
  net.ip(`link add ${dead} type ipip external`);
  const { tunnel } = net.within(() => openHomeTunnel("ipip", options));
  await net.within(() => tunnel.close({ keep: false }));
  t.notMatch(net.exec("ip", "link", "show"), /careof|coipip/);
});

t.test("auto: bpf, and ipip where a home agent's uplink is of another kind", async (t) => {
  const { correspondent: net } = topology;
  for (const [uplink, driver, why] of [["lan", "bpf", /takes the BPF programs/], ["lo", "ipip", /bpf does not work here: .*not an Ethernet/]] as const) {
    const { reason, tunnel } = net.within(() => openHomeTunnel("auto", { ...home, uplink, runDir: join(topology.all.folder, `auto-${uplink}`) }));
    t.equal(tunnel.driver, driver);
    t.match(reason, why);
    await net.within(() => tunnel.close({ keep: false }));
  }
  t.match(net.within(() => probeDataPlanes("auto", "home", "lo")), [{ ok: true, found: /^ipip \(auto\): bpf does not work here: the uplink lo is not an Ethernet interface/ }], "as doctor says before");
  t.match(net.within(() => probeDataPlanes("ipip", "host", "lan")), [{ ok: true, found: "ipip, as configured" }]);
  t.match(net.within(() => probeAuto()), [{ ok: true, found: "bpf (auto): this kernel takes the BPF programs" }]);
  t.match(homeAgent.within(() => probeDataPlanes("ipip", "host", "uplink")), [{ ok: false, found: /a home agent of careof runs/ }]);
  t.match(topology.router.within(() => probeDataPlanes("ipip", "home", "toh")), [{ ok: false, found: /another program/ }]);
  t.notMatch(net.exec("ip", "link", "show"), /careof|coipip/);
  t.throws(() => net.within(() => openHostTunnel("auto", { ...host, uplink: "lo" })), { code: "unsupported", message: /bpf: .*not an Ethernet.*ipip: / });
});

t.test("from bpf to ipip and back: traffic flows, and the other driver's things go", async (t) => {
  await homeAgent.within(() => topology.home.close({ keep: false }));
  t.notMatch(seen(homeAgent), /careof/, "a closed one leaves nothing");
  await a.net.within(() => a.tunnel.close({ keep: false }));
  let last: readonly [HomeTunnel, HostTunnel] | null = null;
  for (const driver of ["bpf", "ipip", "bpf", "ipip"] as const) {
    const far = homeAgent.within(() => openHomeTunnel(driver, home)).tunnel;
    await homeAgent.within(() => far.set([bound(one, a)]));
    const near = a.net.within(() => openHostTunnel(driver, host)).tunnel;
    await a.net.within(() => near.set([deliver(one)]));
    const server = new Worker(one.on(a), "tcp-serve", 5001);
    await server.line(ready);
    t.match(await new Worker(correspondent, "tcp-exchange", one.home, 5001, 1024 * 1024).line(exchanged), { same: true }, driver);
    server.stop();
    await server.ended();
    for (const net of [homeAgent, a.net]) {
      if (driver === "bpf") t.notMatch(seen(net), /ipip external/);
      else t.notMatch(seen(net), /careof_(home|host)_/);
    }
    const hop = /^192\.0\.0\.8 /m;
    if (driver === "bpf") t.match(homeAgent.exec("ip", "neigh", "show", "dev", "uplink", "nud", "permanent"), hop);
    else t.notMatch(homeAgent.exec("ip", "neigh", "show", "dev", "uplink", "nud", "permanent"), hop, "nor is the hop that does not exist left");
    if (last !== null) for (const each of last) await each.close({ keep: true });
    last = [far, near];
  }
  if (last === null) throw new Error("nothing was opened");
  await homeAgent.within(() => last[0].close({ keep: false }));
  await a.net.within(() => last[1].close({ keep: false }));
  for (const net of [homeAgent, a.net]) t.notMatch(seen(net), /careof/);
  t.equal(homeAgent.exec("ip", "route", "show", "proto", "202"), "");
});
