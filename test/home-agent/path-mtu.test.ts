import t from "tap";
import { ipAddress, ipv4 } from "../../model/address.js";
import { ipInIp, LEAST_PATH_MTU } from "../../model/locator.js";
import { Bench, CARE_OF, until } from "./bench.js";

const SELF = ipv4("192.0.2.1");
const A = ipv4(CARE_OF["host-a"]);
const B = ipv4(CARE_OF["host-b"]);

await t.test("what a router says of the path to the owner is the entry's MTU, never below the floor", async (t) => {
  const bench = await Bench.open(t);
  await bench.withVm();
  t.match(bench.entry(), { active: A, mtu: 1480 });
  bench.paths.say({ source: SELF, destination: A, length: 1500, mtu: 1400 });
  t.match(bench.entry(), { active: A, accept: [A], mtu: 1380 });
  for (const destination of [B, ipv4("10.66.6.6")]) bench.paths.say({ source: SELF, destination, length: 1500, mtu: 1000 });
  t.match(bench.entry(), { mtu: 1380 }, "of no path that this VM takes");
  bench.paths.say({ source: A, destination: A, length: 1500, mtu: 1000 });
  t.match(bench.entry(), { mtu: 1380 }, "not about a packet of ours");
  bench.paths.say({ source: SELF, destination: A, length: 1500, mtu: 68 });
  t.match(bench.entry(), { mtu: LEAST_PATH_MTU - 20 });
});

await t.test("a move: both paths are probed, the smaller counts from the beginning and the owner's at the end", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  await until("both are probed when they register", () => [A, B].every((to) => bench.paths.probes.some((probe) => probe.to === to && probe.from === SELF && probe.length === 1500)));
  // The path has become narrower since, and nobody has sent anything there.
  bench.paths.carries.set(B, 1300);
  b.on("prepare", () => undefined);
  const wish = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" });
  await b.until("prepare");
  await until("the smaller of both", () => bench.entry()?.mtu === 1280);
  t.match(bench.entry(), { active: A, accept: [A, B] }, "before anything has moved");
  t.equal((await wish).status, 202);
  await bench.call("DELETE", `/v1/migrations/${String(b.last("prepare")?.migration)}`);
  await until("given back", () => bench.entry()?.accept.includes(B) === true && bench.entry()?.mtu === 1480);
  t.match(bench.entry(), { active: A });
  t.ok(a.connected);
});

await t.test("a host that registers a smaller path MTU than before is believed at once, an absurd one not at all", async (t) => {
  const bench = await Bench.open(t);
  const { a } = await bench.withVm();
  await a.disconnect();
  await a.connect({ locators: [ipInIp(ipAddress(A), 1400)] });
  await until("the entry follows", () => bench.entry()?.mtu === 1380);
  bench.paths.say({ source: SELF, destination: A, length: 1500, mtu: 1200 });
  t.match(bench.entry(), { mtu: 1380 }, "a packet so long was never sent there");
  await t.rejects(bench.agent("host-b").connect({ locators: [ipInIp(ipAddress(B), 100)] }), { code: "malformed" });
  t.match(bench.entry(), { mtu: 1380 });
});
