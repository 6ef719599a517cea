import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { ipv4, mac } from "../../model/address.js";
import { SystemClock } from "../../model/clock.js";
import { createLogger } from "../../model/log.js";
import { UplinkMender } from "../../net/uplink-mender.js";
import { LinuxUplinkNews } from "../../net/uplink-news.js";
import type { VmPort } from "../../net/vm-port.js";
import { TEST_PROTOCOL } from "./lab/packets.js";
import { bound, CORRESPONDENT, deliver, GATEWAY, MTU, Topology, type Guest } from "./lab/topology.js";
import { Wire } from "./lab/wire.js";

/** Far longer than it takes on a busy machine. */
const LIMIT_MS = 60_000;
const TAP: VmPort = { name: "cotap3", kind: "tap", mac: mac("52:54:00:00:00:03"), homeAddresses: [ipv4("198.51.100.9")], queueLength: 100, mtu: MTU };

t.test("one VM's port is gone, and another's is not ours any more: the uplink is mended for the third", { timeout: 240_000 }, async (t) => {
  const topology = new Topology();
  t.teardown(() => topology.close());
  const { a, all, correspondent, homeAgent, router } = topology;
  const [one, two] = topology.guests;
  if (one === undefined || two === undefined) throw new Error("two guests are needed");
  for (const guest of [one, two]) guest.on(a);
  await homeAgent.within(() => topology.home.set([bound(one, a), bound(two, a)]));
  // The one whose port goes comes first.
  const ports = [TAP, topology.port(two), topology.port(one)];
  const entries = [{ ...deliver(two), home: ipv4("198.51.100.9"), port: TAP.name, mac: TAP.mac }, deliver(two), deliver(one)];
  await a.net.within(() => a.ports.set(ports));
  await a.net.within(() => a.tunnel.set(entries));

  const lan = new Wire(correspondent, "lan");
  const lanRouter = new Wire(homeAgent, "lan").mac;
  let sequence = 0;
  const passes = async (guest: Guest, inGuest: Wire): Promise<boolean> => {
    const payload = Buffer.from(`port ${String(sequence++)}`);
    lan.sendIp(lanRouter, { source: CORRESPONDENT, destination: guest.home, payload });
    inGuest.sendIp(GATEWAY.mac, { source: guest.home, destination: CORRESPONDENT, payload });
    const came = await Promise.all([inGuest, lan].map((wire) => wire.packet((packet) => packet.protocol === TEST_PROTOCOL && packet.payload.equals(payload), 100)));
    return !came.includes(null);
  };
  const comes = async (is: () => boolean | Promise<boolean>): Promise<boolean> => {
    for (const end = performance.now() + LIMIT_MS; performance.now() < end;) {
      if (await is()) return true;
      await sleep(10);
    }
    return false;
  };
  const inOne = new Wire(one.on(a), "eth0");
  t.ok(await comes(() => passes(one, inOne)));
  const inTwoBefore = new Wire(two.on(a), "eth0");
  t.ok(await comes(() => passes(two, inTwoBefore)));

  const [mended, refused]: [string[], string[]] = [[], []];
  const log = createLogger("test", "silent");
  Object.assign(log, { error: ({ reason }: { readonly reason: string }) => { refused.push(reason); } });
  const mender = new UplinkMender({
    uplink: "uplink", news: a.net.within(() => new LinuxUplinkNews({ uplink: "uplink", address: a.careOf })), clock: new SystemClock({ keepAlive: true }), log, mended: (why) => { mended.push(why); },
    renew: async () => {
      const parts = await Promise.allSettled([a.net.within(() => a.ports.renew(ports)), a.net.within(() => a.tunnel.renew(entries))]);
      for (const part of parts) if (part.status === "rejected") throw part.reason;
    },
  });
  t.teardown(() => { mender.close(); });
  mender.start();
  const wayToAnswers = (): boolean => /default via 192\.0\.0\.8 dev uplink/.test(a.net.exec("ip", "route", "show", "table", "1234"));

  a.net.ip(`link del ${two.port}`, `link set ${TAP.name} alias somebody`, "link del uplink");
  t.notOk(wayToAnswers());
  all.connect(a.net, "uplink", router, "toa");
  router.ip("address add 10.0.1.254/24 dev toa");
  a.net.ip(`address add ${a.careOf}/24 dev uplink`, "route replace default via 10.0.1.254");
  t.ok(await comes(() => passes(one, inOne)), "traffic of the one that has its port is back");
  t.ok(await comes(wayToAnswers), "and its way to the stack's answers");
  t.ok(await comes(() => refused.length > 0));
  t.same(mended, [], "not all is mended");
  t.same(a.net.within(() => a.tunnel.entries()).map(({ home }) => home), [...entries].map(({ home }) => home).sort(), "nothing was taken away");

  a.net.ip("link set uplink down", "link set uplink up", "route replace default via 10.0.1.254");
  t.ok(await comes(wayToAnswers), "nor does it matter the next time");
  t.ok(await comes(() => passes(one, inOne)));
  t.same(mended, []);

  all.connect(a.net, two.port, two.on(a), "eth0");
  two.on(a).ip(`link set eth0 address ${two.mac} mtu ${String(MTU)}`, `address add ${two.home}/32 dev eth0`, "route add default via 169.254.1.1 dev eth0 onlink");
  a.net.ip(`link set ${TAP.name} alias careof:1234`);
  t.ok(await comes(() => mended.length > 0), "with what was missing all of it is");
  t.equal(mended[0], "uplink-gone");
  const inTwo = new Wire(two.on(a), "eth0");
  t.ok(await comes(() => passes(two, inTwo)), "the other one's too");
  t.ok(await passes(one, inOne));
  for (const wire of [lan, inOne, inTwoBefore, inTwo]) wire.close();
});
