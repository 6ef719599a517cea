import { join } from "node:path";
import t from "tap";
import { addressFromBytes, ipv4, isV4, prefix, type Ipv4 } from "../../model/address.js";
import { Netlink } from "../../net/netlink/client.js";
import { HOME_AGENT_PROTOCOL, listRoutes, type Route } from "../../net/netlink/routes.js";
import { BpfHomeTunnel } from "../../net/tunnel-bpf-home.js";
import type { HomeEntry } from "../../net/tunnel.js";
import { Namespaces } from "./lab/namespaces.js";

/** More than one batch of every kind, and not a multiple of any. */
const MANY = 9_999;
const CARE_OF = [ipv4("10.0.1.1"), ipv4("10.0.2.1")] as const;

const all = new Namespaces();
t.teardown(() => { all.destroy(); });
const net = all.make("many");
net.ip("link add uplink type veth peer name peer", "link set uplink up", "link set peer up", "address add 192.0.2.1/24 dev uplink");

const homes = Array.from({ length: MANY + 1 }, (_, index): Ipv4 => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(0xc6120001 + index);
  const address = addressFromBytes(bytes);
  return isV4(address) ? address : ipv4("0.0.0.0");
});
const entries = homes.slice(0, MANY).map((home, index): HomeEntry => {
  const careOf = CARE_OF[index % 2 === 0 ? 0 : 1];
  return { home, active: careOf, accept: [careOf], mtu: index % 3 === 0 ? 1400 : 1480 };
});

function open(): BpfHomeTunnel {
  const options = { uplink: "uplink", address: ipv4("192.0.2.1"), homePrefixes: [prefix("198.18.0.0/15")], runDir: join(all.folder, "many"), maxEntries: MANY };
  return net.within(() => new BpfHomeTunnel(options));
}

function routes(): Map<string, number> {
  return net.within(() => {
    const netlink = new Netlink();
    try {
      return new Map(listRoutes(netlink, HOME_AGENT_PROTOCOL).map((route: Route) => [`${route.destination.address}/${String(route.destination.length)}`, route.mtu]));
    } finally {
      netlink.close();
    }
  });
}

function byHome(some: readonly HomeEntry[]): Map<string, HomeEntry> {
  return new Map(some.map((entry) => [entry.home, entry]));
}

t.test("as many bindings as the instance holds: all of them, with a route each", async (t) => {
  let tunnel = open();
  await net.within(() => tunnel.set(entries));
  t.same(byHome(tunnel.entries()), byHome(entries));
  t.same(routes(), new Map([["198.18.0.0/15", 0], ...entries.map(({ home, mtu }): [string, number] => [`${home}/32`, mtu])]));
  await t.rejects(net.within(() => tunnel.set([...entries, { home: homes[MANY] ?? CARE_OF[0], active: null, accept: [], mtu: 1480 }])), { code: "too-many" });

  await net.within(() => tunnel.close({ keep: true }));
  tunnel = open();
  await net.within(() => tunnel.set(entries));
  t.same(byHome(tunnel.entries()), byHome(entries), "a process that comes back finds them and changes nothing");

  const fewer = entries.filter((_, index) => index % 5 !== 0).map((entry, index) => (index % 7 === 0 ? { ...entry, active: null, mtu: 1300 } : entry));
  await net.within(() => tunnel.set(fewer));
  t.same(byHome(tunnel.entries()), byHome(fewer), "some go, some change");
  t.same(routes(), new Map([["198.18.0.0/15", 0], ...fewer.map(({ home, mtu }): [string, number] => [`${home}/32`, mtu])]));

  await net.within(() => tunnel.set(entries));
  t.same(byHome(tunnel.entries()), byHome(entries), "and come back");
  await net.within(() => tunnel.close({ keep: false }));
  t.equal(routes().size, 0);
});

t.test("what the kernel refuses of many requests is told, and the others are done", (t) => {
  net.within(() => {
    const netlink = new Netlink();
    const device = (index: number): { type: number; flags: number; body: Uint8Array; what: string } => {
      // RTM_NEWADDR 127.A.B.1/32 on the loopback, index 1, or on an interface that there is not.
      const body = Buffer.from([2, 32, 0, 0, index === 700 ? 99 : 1, 0, 0, 0, 8, 0, 2, 0, 127, index >> 8, index & 255, 1, 8, 0, 1, 0, 127, index >> 8, index & 255, 1]);
      return { type: 20, flags: 0x400, body, what: `address ${String(index)}` };
    };
    t.throws(() => { netlink.requestAll(Array.from({ length: 1200 }, (_, index) => device(index + 1))); }, { code: "kernel-refused", message: /address 700/ });
    netlink.close();
  });
  const found = net.exec("ip", "-o", "-4", "address", "show", "dev", "lo").split("\n").filter((line) => line.includes("127."));
  t.equal(found.length, 1200, "all but one, and the loopback's own");
  t.end();
});
