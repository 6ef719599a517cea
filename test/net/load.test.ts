import { once } from "node:events";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { ipv4, type Ipv4 } from "../../model/address.js";
import type { HomeEntry, HostEntry } from "../../net/tunnel.js";
import { pings, SMALL } from "./lab/echo.js";
import type { Namespace } from "./lab/namespaces.js";
import { bound, CORRESPONDENT, deliver, DRIVERS, HELD, HOME_AGENT, Topology, type Guest } from "./lab/topology.js";
import { Wire } from "./lab/wire.js";
import { exchanged, ready, received, sent, Worker } from "./lab/workers.js";

/*
 * Both ends, of either driver, under what a machine does to them: many bindings, changes under load, large packets, the end of a process.
 */
const topology = new Topology({ maxEntries: 20_000 });
const { a, b, correspondent, homeAgent } = topology;
const [one, two] = topology.guests as [Guest, Guest];
for (const host of [a, b]) {
  for (const guest of topology.guests) guest.on(host);
  await host.net.within(() => host.ports.set(topology.guests.map((guest) => topology.port(guest))));
}
t.teardown(() => topology.close());
t.setTimeout(450_000); // a busy machine, or user-mode-linux on one

const BYTES = 4 * 1024 * 1024;
const PORT = 5001;
const COUNTED_PORT = 5002;
/** For all of it: a process takes its time in user-mode-linux. */
const server = new Worker(one.on(a), "tcp-serve", PORT);
await server.line(ready);
t.teardown(() => { server.stop(); });

async function reset(): Promise<void> {
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  await b.net.within(() => b.tunnel.set([deliver(two)]));
  await homeAgent.within(() => topology.home.set([bound(one, a), bound(two, b)]));
}
t.beforeEach(reset);

/** TCP with large segments both ways. */
async function exchange(t: Test): Promise<void> {
  t.match(await new Worker(correspondent, "tcp-exchange", one.home, PORT, BYTES).line(exchanged), { sent: BYTES, received: BYTES, same: true });
}

t.test("ten thousand bindings: all are there, traffic does not mind, and an unchanged set is not written again", async (t) => {
  const many = Array.from({ length: 10_000 }, (_, index) => ({
    home: ipv4(`198.51.${String(101 + (index >> 8))}.${String(index & 255)}`), active: index % 3 === 0 ? b.careOf : a.careOf, accept: [a.careOf, b.careOf], mtu: 1480,
  }));
  const all = [bound(one, a), bound(two, b), ...many];
  let begun = performance.now();
  await homeAgent.within(() => topology.home.set(all));
  t.comment(`${String(all.length)} bindings set in ${(performance.now() - begun).toFixed(0)} ms`);
  t.equal(topology.home.entries().length, all.length);
  t.equal(routes(), all.length);
  begun = performance.now();
  await homeAgent.within(() => topology.home.set(all));
  t.comment(`and again, with nothing to do, in ${(performance.now() - begun).toFixed(0)} ms`);
  await exchange(t);
  const moved = many.slice(0, 100).map((entry) => ({ ...entry, active: a.careOf, mtu: 1400 }));
  homeAgent.within(() => { for (const entry of moved) topology.home.put(entry); });
  t.same(topology.home.entries().filter(({ mtu }) => mtu === 1400), moved);
  await reset();
  t.equal(topology.home.entries().length, 2);
  t.equal(routes(), 2, "and all are gone");
});

/** Of home addresses, in the kernel's own words. */
function routes(): number {
  return homeAgent.exec("ip", "route", "show", "proto", "202").split("\n").filter((line) => /^198\.51\.\d+\.\d+ /.test(line)).length;
}

t.test("bindings added, moved and removed under load: the others' packets all arrive", async (t) => {
  const count = 3_000;
  const receiver = new Worker(one.on(a), "udp-receive", COUNTED_PORT);
  await receiver.line(ready);
  const sender = new Worker(correspondent, "udp-send", one.home, COUNTED_PORT, count, 2);
  const sending = Worker.running(sender.line(sent));
  let turns = 0;
  for (; sending.on(); turns++) {
    const home: Ipv4 = ipv4(`198.51.100.${String(20 + (turns % 50))}`);
    homeAgent.within(() => {
      topology.home.put({ home, active: a.careOf, accept: [a.careOf], mtu: 1480 });
      topology.home.put({ home, active: b.careOf, accept: [b.careOf], mtu: 1400 });
      topology.home.put({ home, active: null, accept: [b.careOf], mtu: 1400 });
      topology.home.drop(home);
    });
    a.net.within(() => {
      a.tunnel.put({ role: "forward", home, to: b.careOf });
      a.tunnel.drop(home);
    });
    if (turns % 10 === 0) await homeAgent.within(() => topology.home.set([bound(one, a), bound(two, b)]));
    await sleep(2);
  }
  await sending.end;
  await sleep(200);
  receiver.stop();
  const report = await receiver.line(received);
  t.equal(report.received + report.overflowed, count, `over ${String(turns)} turns`);
  t.match(report, { duplicated: 0, reordered: 0 });
  t.same(topology.home.entries().map(({ home }) => home), [one.home, two.home]);
});

t.test("datagrams near 64 KiB, in fragments, each of them: down, up, and from VM to VM", async (t) => {
  const send = async (from: Namespace, to: Namespace, address: string, count: number, sizes: string): Promise<Readonly<Record<string, number>>> => {
    const receiver = new Worker(to, "udp-receive", COUNTED_PORT);
    await receiver.line(ready);
    await new Worker(from, "udp-send", address, COUNTED_PORT, count, 0.1, sizes).line(sent);
    await sleep(200);
    receiver.stop();
    return (await receiver.line(received)).bytes;
  };
  // The correspondent's own link carries more than the tunnel, and it sets DF until it has heard what fits: what is just too big stays away once. The guests' links are no wider.
  correspondent.ip(`route replace ${one.home} via 203.0.113.1`);
  t.same(await send(correspondent, one.on(a), one.home, 2, "1453,1452"), { 1452: 1 }, "what just fits, and not what is a byte longer");
  t.match(correspondent.exec("ip", "route", "get", one.home), / mtu 1480/, "which the sender has heard");
  // 65,507 is the largest payload that an inner IPv4 packet can be put together to.
  const all = { 1452: 3, 1453: 3, 9000: 3, 65_507: 3 };
  for (const [from, to, address] of [[correspondent, one.on(a), one.home], [one.on(a), correspondent, CORRESPONDENT], [one.on(a), two.on(b), two.home]] as const) {
    t.same(await send(from, to, address, 12, "1452,1453,9000,65507"), all, `to ${address}`);
  }
  correspondent.ip(`route del ${one.home} via 203.0.113.1`);
  for (const ledger of [topology.home.counters(one.home), a.tunnel.counters(one.home), b.tunnel.counters(two.home)]) t.equal(ledger.dropped["too-big"], 0);
});

/** Killed when it has said that all is set: with nothing to do, or in the middle of changing it. */
async function killed(net: Namespace, end: "home" | "host", address: Ipv4, entries: readonly (HomeEntry | HostEntry)[], busy: boolean): Promise<void> {
  const [driver, label] = end === "home" ? [DRIVERS.home, "home"] : [DRIVERS.hosts, "a"];
  const holder = net.spawn(process.execPath, join(import.meta.dirname, "lab", "holder.js"), end, driver, join(topology.all.folder, label), address, JSON.stringify(entries), busy ? "busy" : "");
  holder.stderr.pipe(process.stderr);
  const [said] = (await once(holder.stdout, "data")) as [Buffer];
  t.match(said.toString(), /ready/);
  if (busy) await sleep(50 * Math.random());
  holder.kill("SIGKILL");
  await once(holder, "exit");
}

t.test("a home agent that is killed: what it left carries on, and the next one makes of it what is wanted", async (t) => {
  const left = Array.from({ length: 50 }, (_, index) => ({ home: ipv4(`198.51.100.${String(100 + index)}`), active: b.careOf, accept: [b.careOf], mtu: 1400 }));
  for (const busy of [false, true]) {
    await killed(homeAgent, "home", HOME_AGENT, [bound(one, a), ...left], busy);
    if (!busy) await exchange(t);
    const next = homeAgent.within(() => topology.homeTunnel());
    if (!busy) t.equal(next.entries().length, 51, "it is all still there");
    await homeAgent.within(() => next.set([bound(one, a)]));
    t.same(next.entries(), [bound(one, a)]);
    t.equal(routes(), 1);
    await homeAgent.within(() => next.close({ keep: true }));
  }
  await exchange(t);
});

t.test("a host's end that is killed: the same, and packets that it held do not wait for ever", async (t) => {
  const lan = new Wire(correspondent, "lan");
  const router = new Wire(homeAgent, "lan");
  const left = Array.from({ length: 50 }, (_, index): HostEntry => ({ role: "forward", home: ipv4(`198.51.100.${String(100 + index)}`), to: b.careOf }));
  const held: HostEntry = { ...deliver(two), hold: { device: HELD, from: "all" } };
  await homeAgent.within(() => topology.home.set([bound(one, a), bound(two, a)]));
  const reaches = (guest: Guest, limitMs?: number): Promise<boolean> => pings({ wire: lan, via: router.mac, from: CORRESPONDENT, to: guest.home }, SMALL, limitMs);
  const programs = (port: string): string => a.net.exec("tc", "filter", "show", "dev", port, "ingress");
  for (const busy of [false, true]) {
    await killed(a.net, "host", a.careOf, [deliver(one), held, ...left], busy);
    if (!busy) t.same([await reaches(one), await reaches(two, 300)], [true, false], "what was held goes nowhere while the process is away");
    const next = a.net.within(() => topology.hostTunnel("a", a.careOf));
    if (!busy) t.equal(a.net.within(() => next.entries()).length, 52, "it is all still there");
    await a.net.within(() => next.set([deliver(one), deliver(two)]));
    t.same(a.net.within(() => next.entries()), [deliver(one), deliver(two)]);
    t.same([await reaches(one), await reaches(two)], [true, true]);
    await a.net.within(() => next.set([deliver(one)]));
    t.match(programs(one.port), /careof/);
    t.notMatch(programs(two.port), /careof/, "no VM is behind it any more");
    await a.net.within(() => next.close({ keep: true }));
  }
  await exchange(t);
  for (const wire of [lan, router]) wire.close();
});
