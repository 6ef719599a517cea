import { once } from "node:events";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { ipv4, prefix, type Ipv4 } from "../../model/address.js";
import type { Namespace } from "./lab/namespaces.js";
import { strictFirewall } from "./lab/firewall.js";
import { setChecksumOffload } from "./lab/offload.js";
import { bound, CORRESPONDENT, deliver, DRIVERS, Topology, type Guest } from "./lab/topology.js";
import { exchanged, ready, received, sent, Worker } from "./lab/workers.js";

/*
 * Both ends, of either driver, under what a machine does to them: many bindings, changes under load, netfilter, large packets, offloads switched off.
 */
const topology = new Topology({ maxEntries: 20_000 });
const { a, b, correspondent, homeAgent } = topology;
const [one, two] = topology.guests as [Guest, Guest];
for (const host of [a, b]) {
  for (const guest of topology.guests) guest.on(host);
  await host.net.within(() => host.ports.set(topology.guests.map((guest) => topology.port(guest))));
}
t.teardown(() => topology.close());
t.setTimeout(200_000); // a busy machine

const BYTES = 4 * 1024 * 1024;
const PORT = 5001;

async function reset(): Promise<void> {
  await a.net.within(() => a.tunnel.set([deliver(one)]));
  await b.net.within(() => b.tunnel.set([deliver(two)]));
  await homeAgent.within(() => topology.home.set([bound(one, a), bound(two, b)]));
}
t.beforeEach(reset);

/** TCP with large segments both ways. */
async function exchange(t: Test): Promise<void> {
  const server = new Worker(one.on(a), "tcp-serve", PORT);
  await server.line(ready);
  t.match(await new Worker(correspondent, "tcp-exchange", one.home, PORT, BYTES).line(exchanged), { sent: BYTES, received: BYTES, same: true });
  server.stop();
  await server.ended();
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
  const receiver = new Worker(one.on(a), "udp-receive", PORT);
  await receiver.line(ready);
  const sender = new Worker(correspondent, "udp-send", one.home, PORT, count, 2);
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
    const receiver = new Worker(to, "udp-receive", PORT);
    await receiver.line(ready);
    await new Worker(from, "udp-send", address, PORT, count, 0.1, sizes).line(sent);
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

t.test("checksums made by the sender, and by the card: TCP is the same", async (t) => {
  const ends = [[one.on(a), "eth0"], [correspondent, "lan"]] as const;
  for (const on of [false, true]) {
    for (const [net, name] of ends) setChecksumOffload(net, name, on);
    await exchange(t);
  }
});

t.test("netfilter that drops what it does not know: the home agent's prefix accepted, the hosts' nothing", async (t) => {
  const remove = [
    strictFirewall(homeAgent, prefix("198.51.100.0/24")), ...[a, b].map((host) => strictFirewall(host.net, null)),
  ];
  try {
    await exchange(t);
    const server = new Worker(two.on(b), "tcp-serve", PORT);
    await server.line(ready);
    t.match(await new Worker(one.on(a), "tcp-exchange", two.home, PORT, BYTES).line(exchanged), { same: true }, "from VM to VM");
    server.stop();
    await server.ended();
  } finally {
    for (const each of remove) each();
  }
});

t.test("a home agent that is killed: what it left carries on, and the next one makes of it what is wanted", async (t) => {
  const runDir = join(topology.all.folder, "home");
  const left = Array.from({ length: 50 }, (_, index) => ({ home: ipv4(`198.51.100.${String(100 + index)}`), active: b.careOf, accept: [b.careOf], mtu: 1400 }));
  const holder = homeAgent.spawn(process.execPath, join(import.meta.dirname, "lab", "holder.js"), DRIVERS.home, runDir, JSON.stringify([bound(one, a), ...left]));
  holder.stderr.pipe(process.stderr);
  const [said] = (await once(holder.stdout, "data")) as [Buffer];
  t.match(said.toString(), /ready/);
  holder.kill("SIGKILL");
  await once(holder, "exit");
  await exchange(t);
  const next = homeAgent.within(() => topology.homeTunnel());
  t.equal(next.entries().length, 51, "it is all still there");
  await homeAgent.within(() => next.set([bound(one, a)]));
  t.same(next.entries(), [bound(one, a)]);
  t.equal(routes(), 1);
  await exchange(t);
  await homeAgent.within(() => next.close({ keep: true }));
});
