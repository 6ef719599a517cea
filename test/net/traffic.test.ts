import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import type { Namespace } from "./lab/namespaces.js";
import { bound, deliver, MTU, Topology, type Guest } from "./lab/topology.js";
import { exchanged, ready, received, sent, Worker } from "./lab/workers.js";

const topology = new Topology();
const { a, b, correspondent, homeAgent } = topology;
const [one, two] = topology.guests as [Guest, Guest];
for (const host of [a, b]) {
  for (const guest of topology.guests) guest.on(host);
  await host.net.within(() => host.ports.set(topology.guests.map((guest) => topology.port(guest))));
}
t.teardown(() => topology.close());
t.setTimeout(120_000); // a busy machine

function drops(counters: { readonly dropped: Readonly<Record<string, number>> }): number {
  return Object.entries(counters.dropped).reduce((sum, [reason, count]) => sum + (reason === "not-ipv4" || reason === "multicast" ? 0 : count), 0);
}

t.test("re-pointing under load, hundreds of times: nothing is lost, doubled or dropped", async (t) => {
  for (const host of [a, b]) await host.net.within(() => host.tunnel.set([deliver(one)]));
  await homeAgent.within(() => topology.home.set([bound(one, a)]));
  const receivers = [a, b].map((host) => new Worker(one.on(host), "udp-receive", 5000));
  for (const receiver of receivers) await receiver.line(ready);
  const count = 6_000;
  const sender = new Worker(correspondent, "udp-send", one.home, 5000, count, 4);
  const times: number[] = [];
  const sending = Worker.running(sender.line(sent));
  for (let turn = 0; sending.on(); turn++) {
    const entry = bound(one, turn % 2 === 0 ? b : a);
    const begun = performance.now();
    topology.home.put(entry);
    times.push(performance.now() - begun);
    await sleep(1);
  }
  await sending.end;
  await sleep(100);
  for (const receiver of receivers) receiver.stop();
  const reports = await Promise.all(receivers.map((receiver) => receiver.line(received)));
  const counters = [a, b].map((host) => host.tunnel.counters(one.home));
  t.ok(times.length > 200, `${String(times.length)} re-points`);
  t.ok(counters.every(({ downPackets }) => downPackets > count / 10), "both hosts had their share");
  t.equal(topology.home.counters(one.home).downPackets, count);
  t.equal(counters.reduce((sum, { downPackets }) => sum + downPackets, 0), count);
  t.equal(reports.reduce((sum, report) => sum + report.received + report.overflowed, 0), count);
  t.same(reports.map(({ duplicated, reordered }) => ({ duplicated, reordered })), [{ duplicated: 0, reordered: 0 }, { duplicated: 0, reordered: 0 }]);
  t.equal([topology.home.counters(one.home), ...counters].reduce((sum, each) => sum + drops(each), 0), 0);
  times.sort((x, y) => x - y);
  const at = (part: number): string => ((times[Math.floor(times.length * part)] ?? 0) * 1000).toFixed(1);
  t.comment(`a re-point took ${at(0.5)} µs (median), ${at(0.99)} µs (99th percentile)`);
});

t.test("a lead: the marker arrives behind the last packet, on the old host only", async (t) => {
  for (const host of [a, b]) await host.net.within(() => host.tunnel.set([deliver(one)]));
  await homeAgent.within(() => topology.home.set([bound(one, a)]));
  const count = 2_000;
  const receiver = new Worker(one.on(a), "udp-receive", 5000);
  await receiver.line(ready);
  for (const host of [a, b]) host.tunnel.clearStamps(one.home);
  const sender = new Worker(correspondent, "udp-send", one.home, 5000, count, 4);
  const base = topology.home.counters(one.home).downPackets;
  while (topology.home.counters(one.home).downPackets - base < count / 2) await sleep(5);
  homeAgent.within(() => {
    topology.home.put(bound(one, b));
    topology.home.sendMarker(one.home, a.careOf, 99);
  });
  await sender.line(sent);
  await sleep(50);
  receiver.stop();
  await receiver.line(received);
  const [old, young] = [a.tunnel.stamps(one.home), b.tunnel.stamps(one.home)];
  t.equal(old.marker?.token, 99);
  t.ok(old.firstPacket !== null && old.marker !== null && old.firstPacket < old.marker.at);
  t.equal(old.behindMarker, null, "nothing came behind it");
  t.not(young.firstPacket, null);
  t.equal(young.marker, null);
  t.equal(a.tunnel.counters(one.home).downPackets + b.tunnel.counters(one.home).downPackets, topology.home.counters(one.home).downPackets);
});

t.test("TCP in large segments: down and up, and from VM to VM through the home agent", async (t) => {
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  await b.net.within(() => b.tunnel.set([deliver(two)]));
  await homeAgent.within(() => topology.home.set([bound(one, a), bound(two, b)]));
  const servers = [new Worker(one.on(a), "tcp-serve", 5001), new Worker(two.on(b), "tcp-serve", 5001)];
  for (const server of servers) await server.line(ready);
  const bytes = 32 * 1024 * 1024;
  const frames = (net: Namespace): number => Number(/"tx":\{"bytes":\d+,"packets":(\d+)/.exec(net.exec("ip", "-s", "-j", "link", "show", "uplink").replaceAll(" ", ""))?.[1]);

  const ways = [
    ["down", homeAgent, () => topology.home.counters(one.home).downPackets],
    ["up", a.net, () => a.tunnel.counters(one.home).upPackets],
    ["up, at the home agent", a.net, () => topology.home.counters(one.home).upPackets],
  ] as const;
  const before = ways.map(([, net, packets]) => ({ buffers: frames(net), packets: packets() }));
  const outside = await new Worker(correspondent, "tcp-exchange", one.home, 5001, bytes).line(exchanged);
  t.match(outside, { sent: bytes, received: bytes, same: true });
  ways.forEach(([way, net, count], index) => {
    const [buffers, packets] = [frames(net) - (before[index]?.buffers ?? 0), count() - (before[index]?.packets ?? 0)];
    // What carries the data, and what acknowledges the other way's.
    t.ok(packets > bytes / MTU, `${way}: ${String(packets)} packets`);
    t.ok(buffers < packets / 3, `${way}: in ${String(buffers)} buffers`);
  });

  const between = await new Worker(two.on(b), "tcp-exchange", one.home, 5001, bytes).line(exchanged);
  t.match(between, { sent: bytes, received: bytes, same: true });
  for (const server of servers) server.stop();
  for (const server of servers) await server.ended();
  t.equal(drops(topology.home.counters(one.home)) + drops(a.tunnel.counters(one.home)) + drops(b.tunnel.counters(two.home)), 0);
});

t.test("a process that goes away and comes back, with resyncs: no packet is lost", async (t) => {
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  await homeAgent.within(() => topology.home.set([bound(one, a)]));
  const count = 4_000;
  const before = a.tunnel.counters(one.home).downPackets;
  const homeBefore = topology.home.counters(one.home).downPackets;
  const receiver = new Worker(one.on(a), "udp-receive", 5000);
  await receiver.line(ready);
  const sender = new Worker(correspondent, "udp-send", one.home, 5000, count, 4);
  const sending = Worker.running(sender.line(sent));
  let home = topology.home;
  let runs = 0;
  for (; sending.on(); runs++) {
    await homeAgent.within(() => home.set([bound(one, a)]));
    await a.net.within(() => a.tunnel.set([deliver(one)]));
    await homeAgent.within(() => home.close({ keep: true }));
    home = homeAgent.within(() => topology.homeTunnel());
    await homeAgent.within(() => home.set([bound(one, a)]));
    await sleep(10);
  }
  await sending.end;
  await sleep(100);
  receiver.stop();
  const report = await receiver.line(received);
  t.equal(report.received + report.overflowed, count, `over ${String(runs)} restarts`);
  t.match(report, { duplicated: 0, reordered: 0 });
  t.equal(home.counters(one.home).downPackets - homeBefore, count);
  t.equal(a.tunnel.counters(one.home).downPackets - before, count);
  await homeAgent.within(() => home.close({ keep: false }));
});
