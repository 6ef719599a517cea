import t from "tap";
import type { HomeAgentConfig } from "../../home-agent/config.js";
import { hostId, vmId } from "../../model/ids.js";
import { Bench, until } from "./bench.js";
import { Move, type ScriptedAgent } from "./scripted-agent.js";

const EXT = vmId("ext1");

/** The file with `ext1` on these hosts; none: without it. */
function listing(bench: Bench, hosts: readonly string[]): HomeAgentConfig {
  const { config } = bench;
  return { ...config, vms: config.vms.flatMap((vm) => (vm.name !== EXT ? [vm] : hosts.length === 0 ? [] : [{ ...vm, hosts: hosts.map((host) => hostId(host)) }])) };
}

function removals(agent: ScriptedAgent): number {
  return agent.received.filter((body) => body.kind === "bindingUpdate" && body.vm === EXT && !body.spec.listsHost).length;
}

await t.test("a host that is not listed any more for a VM that others move hears of it", async (t) => {
  const bench = await Bench.open(t);
  const [a, b] = [bench.agent("host-a"), bench.agent("host-b")];
  await a.connect();
  await b.connect();

  bench.file = listing(bench, ["host-a"]);
  await bench.homeAgent.reload();
  await b.until("bindingUpdate", ({ vm, spec }) => vm === EXT && !spec.listsHost && spec.driver === "external");
  t.equal(removals(a), 0, "and nobody else");

  bench.file = listing(bench, []);
  await bench.homeAgent.reload();
  await a.until("bindingUpdate", ({ vm, spec }) => vm === EXT && !spec.listsHost);
  t.equal(removals(b), 1, "once");

  bench.file = listing(bench, ["host-a", "host-b"]);
  await bench.homeAgent.reload();
  const both = listing(bench, ["host-a"]);
  bench.file = { ...both, hosts: both.hosts.filter(({ name }) => name !== "host-b"), vms: both.vms.map((vm) => ({ ...vm, hosts: vm.hosts.filter((host) => host !== "host-b") })) };
  await bench.homeAgent.reload();
  await until("it is told before it is sent away", () => !b.connected && removals(b) === 2);
});

await t.test("a host that was away when it was taken from the list hears of it when it registers", async (t) => {
  const bench = await Bench.open(t);
  bench.file = listing(bench, ["host-a"]);
  await bench.homeAgent.reload();
  const b = bench.agent("host-b");
  const { bindings } = await b.connect({ known: [EXT, vmId("renamed")] });
  t.same(bindings.map(({ vm, spec }) => [vm, spec.listsHost]), [["ext1", false], ["renamed", false], ["web1", true]], "before what it is listed for, which may have the address by now");
  const a = bench.agent("host-a");
  t.same((await a.connect({ known: [EXT] })).bindings.map(({ vm, spec }) => [vm, spec.listsHost]), [["web1", true], ["ext1", true]]);
});

await t.test("a VM that moves, and its two hosts, cannot be taken away meanwhile", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  const result = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  const move = new Move(a, b, "web1", 2);
  await a.until("migrate");
  const { config } = bench;
  const withoutVm = { ...config, vms: config.vms.filter(({ name }) => name !== "web1") };
  const withoutTarget = { ...config, vms: config.vms.map((vm) => (vm.name === "web1" ? { ...vm, hosts: [hostId("host-a")] } : vm)) };
  const withoutSource = { ...config, hosts: config.hosts.filter(({ name }) => name !== "host-a") };
  for (const [file, missing] of [[withoutVm, /web1 moves from host-a to host-b .*without it/], [withoutTarget, /does not list host-b/], [withoutSource, /does not list host-a/]] as const) {
    bench.file = file;
    const refused = await bench.call("POST", "/v1/reload");
    t.match([refused.status >= 400, refused.body], [true, { code: "already-moving", retryable: true, message: missing }]);
    t.equal((await bench.call("GET", "/v1/vms/ext1")).status, 200, "nothing of it was taken over");
  }
  await move.leadReady();
  await move.switchOver();
  t.equal((await move.released()).reason, "accepted", "what the hosts say is understood still");
  await move.running(true, { firstDeliverableAt: 4990, uplinkOpenAt: 5003, pauseMs: 14 });
  t.match((await result).body, { result: "completed" });
  bench.file = withoutVm;
  t.equal((await bench.call("POST", "/v1/reload")).status, 200, "when it is over it can");
});
