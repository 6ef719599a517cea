import { join } from "node:path";
import { pino } from "pino";
import t from "tap";
import { ipAddress, ipv4, mac, type IpAddress } from "../../model/address.js";
import { epoch, vmId } from "../../model/ids.js";
import { FakeHomeLan } from "../../net/home-lan-fake.js";
import { Metrics } from "../../home-agent/metrics.js";
import { ProxyArp } from "../../home-agent/proxy-arp.js";
import { Journal } from "../../home-agent/store/journal.js";
import { FakeClock } from "../model/fake-clock.js";
import { Bench, HOME, temporary, until } from "./bench.js";
import { Move } from "./scripted-agent.js";

const VM = mac("52:54:00:00:00:07");
const ONE = { vm: vmId("web1"), home: ipv4("198.51.100.7"), mac: VM };
const TWO = { vm: vmId("web2"), home: ipv4("198.51.100.8"), mac: mac("52:54:00:00:00:08") };

function made(lan = new FakeHomeLan({ interface: "home0", maxEntries: 100_000, runDir: "" })) {
  const clock = new FakeClock();
  const metrics = new Metrics({ bindings: () => new Map(), hosts: () => 0 });
  const alarms: string[] = [];
  const home: string[] = [];
  const proxyArp = new ProxyArp({ lan, clock, log: pino({ level: "silent" }), metrics, cameHome: (vm) => { home.push(vm); }, alarms: { raise: (kind, _vm, _hosts, detail) => { alarms.push(`${kind}: ${detail}`); } } });
  return { lan, clock, metrics, alarms, home, proxyArp };
}

t.test("first binding: answered for, and announced three times", async (t) => {
  const { lan, clock, metrics, proxyArp } = made();
  proxyArp.set([]);
  proxyArp.cover(ONE);
  t.same(lan.answered(), [ONE.home]);
  t.same(lan.announced, [{ home: ONE.home, owner: null }], "at once");
  proxyArp.cover(ONE);
  t.equal(lan.announced.length, 1, "a move between hosts is nothing to the neighbours");
  clock.advance(199);
  t.equal(lan.announced.length, 1);
  clock.advance(1);
  t.equal(lan.announced.length, 2);
  clock.advance(60_000);
  t.equal(lan.announced.length, 3, "a small number of times (RFC 5944 §4.6)");
  t.match(await metrics.registry.metrics(), /careof_gratuitous_arps_sent_total\{what="away"\} 3[\s\S]*careof_proxied_addresses 1/);
});

t.test("the binding ends: silent first, then the address is the VM's own again", (t) => {
  const { lan, clock, proxyArp } = made();
  proxyArp.cover(ONE);
  lan.announced.length = 0;
  const drop = lan.drop.bind(lan);
  const order: string[] = [];
  const announce = lan.announce.bind(lan);
  lan.drop = (home) => { order.push("drop"); return drop(home); };
  lan.announce = (home, owner) => { order.push(owner ?? "us"); announce(home, owner); };
  proxyArp.uncover(ONE.home);
  proxyArp.uncover(ONE.home);
  clock.advance(60_000);
  t.same(order, ["drop", VM, VM, VM], "and what was left of the first announcement is never sent");
  t.same(lan.answered(), []);
  order.length = 0;
  proxyArp.cover(ONE);
  clock.advance(10);
  proxyArp.uncover(ONE.home);
  proxyArp.cover(ONE);
  clock.advance(60_000);
  t.same(order, ["us", "drop", VM, "us", "us", "us"], "the last word holds");
  t.end();
});

t.test("a restart announces only what was not answered for before", (t) => {
  const { lan, clock, proxyArp } = made(new FakeHomeLan({ interface: "home0", maxEntries: 10, runDir: "" }, [ONE.home, ipv4("198.51.100.99")]));
  proxyArp.set([ONE, TWO]);
  clock.advance(60_000);
  t.same(lan.answered(), [ONE.home, TWO.home]);
  t.same(new Set(lan.announced.map(({ home }) => home)), new Set([TWO.home]));
  lan.announced.length = 0;
  proxyArp.set([ONE]);
  t.same(lan.answered(), [ONE.home]);
  t.same(lan.announced, [{ home: TWO.home, owner: TWO.mac }], "of a VM that is configured no more");
  t.end();
});

t.test("ten thousand at once come in small bursts", (t) => {
  const { lan, clock, proxyArp } = made();
  const many = Array.from({ length: 10_000 }, (_, n) => ({ vm: vmId(`vm${String(n)}`), home: ipv4(`10.${String(n >> 16)}.${String((n >> 8) & 255)}.${String(n & 255)}`), mac: VM }));
  proxyArp.set(many);
  t.equal(lan.announced.length, 50);
  clock.advance(10);
  t.equal(lan.announced.length, 100);
  clock.advance(60_000);
  const times = new Map<IpAddress, number>();
  for (const { home } of lan.announced) times.set(home, (times.get(home) ?? 0) + 1);
  t.equal(times.size, many.length);
  t.ok([...times.values()].every((count) => count === 3));
  t.end();
});

t.test("an interface that goes and comes back", (t) => {
  const { lan, clock, alarms, proxyArp } = made();
  proxyArp.set([ONE]);
  clock.advance(60_000);
  lan.announced.length = 0;
  lan.become("unusable");
  proxyArp.cover(TWO);
  clock.advance(5000);
  t.same(lan.announced, []);
  lan.become("usable");
  t.same(lan.answered(), [ONE.home, TWO.home]);
  clock.advance(60_000);
  t.equal(lan.announced.length, 6);
  t.same(alarms, []);

  lan.become(null);
  proxyArp.uncover(TWO.home);
  proxyArp.cover(TWO);
  clock.advance(5000);
  t.same(alarms, ['home-lan: the home LAN cannot be set: there is no interface "home0"'], "said once");
  lan.become("usable");
  t.same(lan.answered(), [ONE.home, TWO.home]);
  proxyArp.close();
  lan.announced.length = 0;
  clock.advance(60_000);
  t.same(lan.announced, [], "nothing after the end");
  t.end();
});

t.test("who says on the LAN that he is there: only the VM itself, and not every time", (t) => {
  const { lan, clock, home, proxyArp } = made();
  proxyArp.set([ONE, TWO, { ...TWO, home: ipv4("198.51.100.9") }]);
  lan.arrive({ mac: TWO.mac, home: ONE.home });
  lan.arrive({ mac: mac("02:00:00:00:00:99"), home: null });
  lan.arrive({ mac: ONE.mac, home: ipv4("198.51.100.50") });
  t.same(home, []);
  lan.arrive({ mac: ONE.mac, home: ONE.home });
  lan.arrive({ mac: TWO.mac, home: null });
  lan.arrive({ mac: TWO.mac, home: TWO.home });
  t.same(home, ["web1", "web2"]);
  clock.advance(1000);
  lan.arrive({ mac: ONE.mac, home: null });
  t.same(home, ["web1", "web2", "web1"]);
  proxyArp.uncover(ONE.home);
  lan.arrive({ mac: ONE.mac, home: ONE.home });
  t.equal(home.length, 3, "at home already");
  t.end();
});

t.test("a storm: a VM that says without end that it is there is heard ever more seldom, what is left out is counted", async (t) => {
  const { lan, clock, home, metrics, proxyArp } = made();
  proxyArp.set([ONE]);
  for (let i = 0; i < 300_000; i++) {
    lan.arrive({ mac: ONE.mac, home: i % 2 === 0 ? ONE.home : null });
    clock.advance(1);
  }
  t.ok(home.length <= 11, `${String(home.length)} times in five minutes`);
  lan.miss(500);
  lan.miss(500);
  const counted = (await metrics.arrivalsIgnored.get()).values.map(({ labels, value }) => [labels.why, value]);
  t.same(counted, [["repeated", 300_000 - home.length], ["storm", 1000]]);
  const before = home.length;
  clock.advance(65_000);
  lan.arrive({ mac: ONE.mac, home: ONE.home });
  clock.advance(1000);
  lan.arrive({ mac: ONE.mac, home: ONE.home });
  t.equal(home.length, before + 2, "forgotten when it was quiet for a while");
  proxyArp.uncover(ONE.home);
  proxyArp.cover(ONE);
  lan.arrive({ mac: ONE.mac, home: null });
  t.equal(home.length, before + 3, "a new binding begins anew");
  lan.arrive({ mac: TWO.mac, home: null });
  t.equal(home.length, before + 3);
  proxyArp.close();
  t.end();
});

t.test("RARP of one among very many costs what one costs", (t) => {
  const { lan, home, proxyArp } = made();
  const many = Array.from({ length: 20_000 }, (_, i) => ({ vm: vmId(`vm${String(i)}`), home: ipv4(`10.${String(i >> 16)}.${String((i >> 8) & 255)}.${String(i & 255)}`), mac: mac(`52:54:01:${[i >> 16, (i >> 8) & 255, i & 255].map((part) => part.toString(16).padStart(2, "0")).join(":")}`) }));
  proxyArp.set(many);
  const before = performance.now();
  for (const { mac: station } of many) lan.arrive({ mac: station, home: null });
  const took = performance.now() - before;
  t.equal(home.length, many.length);
  t.ok(took < 2000, `${took.toFixed(0)} ms`);
  proxyArp.close();
  t.end();
});

t.test("a VM that something else moves comes home by its own word; one that careof runs is an alarm", async (t) => {
  const change = { home: { prefixes: ["198.51.100.0/24"], mode: "proxy-arp", interface: "home0" } };
  const lan = new FakeHomeLan({ interface: "home0", maxEntries: 10, runDir: "" });
  const bench = await Bench.open(t, { change, homeLan: lan });
  const { a } = await bench.withVm();
  const EXTERNAL = ipAddress("198.51.100.8");
  const there = { mac: mac("52:54:00:00:00:08"), home: ipv4("198.51.100.8") };
  for (const arrival of [there, { ...there, home: null }]) {
    const before = epoch(Number((await bench.where("ext1"))["epoch"]));
    t.equal((await a.report("ext1", "runs", before)).reason, "accepted");
    t.same(lan.answered(), [HOME, EXTERNAL]);
    t.equal(bench.entry(EXTERNAL)?.home, EXTERNAL);
    lan.arrive(arrival);
    await until("its binding ends", async () => (await bench.where("ext1"))["state"] === "expired");
    t.same(lan.answered(), [HOME], "and the home agent is silent");
    t.equal(bench.entry(EXTERNAL), undefined);
    t.match(lan.announced.at(-1), { home: EXTERNAL, owner: there.mac });
  }
  t.match((await bench.call("GET", "/v1/vms/ext1/history")).body, [{ epoch: 2, host: "host-a", until: String }, { epoch: 1, until: String }]);

  lan.arrive({ mac: VM, home: ipv4("198.51.100.7") });
  t.match(bench.homeAgent.alarms.recent().at(-1), { alarm: "both-claim", vm: "web1", hosts: ["host-a"], detail: /home LAN.*nothing was moved/ });
  t.match(await bench.where(), { state: "bound", host: "host-a", epoch: 1 });
  t.same(lan.answered(), [HOME]);
});

t.test("a whole home agent: what is bound is answered for, whatever its state; what has expired or stopped is not", async (t) => {
  const directory = temporary(t);
  const change = { home: { prefixes: ["198.51.100.0/24"], mode: "proxy-arp", interface: "home0" }, timing: { keepAliveMs: 200, graceMs: 100, lifetimeMs: 400 } };
  const lan = new FakeHomeLan({ interface: "home0", maxEntries: 10, runDir: "" });
  const bench = await Bench.open(t, { directory, change, homeLan: lan, store: await Journal.open({ directory: join(directory, "state") }) });
  t.same(lan.answered(), []);
  const { a, b } = await bench.withVm();
  t.same(lan.answered(), [HOME]);
  t.match(lan.announced[0], { home: HOME, owner: null });

  const result = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  const move = new Move(a, b, "web1", 2);
  await a.until("migrate");
  await move.leadReady();
  await move.switchOver();
  await move.released();
  await move.running(false);
  await move.running(true, { firstDeliverableAt: 5000, uplinkOpenAt: 5000, pauseMs: 1 });
  t.match((await result).body, { result: "completed" });
  t.same(lan.answered(), [HOME], "all through a move");
  t.ok(lan.announced.every(({ owner }) => owner === null));

  await a.disconnect();
  await b.disconnect();
  await until("stale", async () => (await bench.where())["state"] !== "bound");
  await until("expired", async () => (await bench.where())["state"] === "expired");
  t.same(lan.answered(), []);
  t.equal(bench.entry(), undefined, "the way to who has the address now is not barred");
  t.match(lan.announced.at(-1), { home: HOME, owner: VM });

  b.runs.clear();
  await b.connect();
  t.equal((await b.report("web1", "runs", 2)).reason, "accepted");
  t.same(lan.answered(), [HOME], "it was alive after all");
  t.match(lan.announced.at(-1), { home: HOME, owner: null });

  await bench.close();
  t.same(lan.answered(), [HOME], "the kernel goes on while the process is away");
  const again = new FakeHomeLan({ interface: "home0", maxEntries: 10, runDir: "" }, lan.answered());
  const second = await Bench.open(t, { directory, change, homeLan: again, store: await Journal.open({ directory: join(directory, "state") }) });
  t.same(again.answered(), [HOME]);
  t.same(again.announced, [], "and nothing is announced anew");
  const agent = second.agent("host-b");
  agent.runs.set(vmId("web1"), epoch(2));
  await agent.connect();
  t.equal((await second.call("POST", "/v1/vms/web1/stop", {})).status, 200);
  t.same(again.answered(), []);
  t.same(again.announced, [{ home: HOME, owner: VM }]);
});
