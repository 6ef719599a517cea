import { join } from "node:path";
import t from "tap";
import type { HomeAgentConfig, VmConfig } from "../../home-agent/config.js";
import { Journal } from "../../home-agent/store/journal.js";
import { ipAddress, mac } from "../../model/address.js";
import { epoch, vmId } from "../../model/ids.js";
import { decision } from "../../proto/channel.js";
import { Bench, CARE_OF, HOME, temporary } from "./bench.js";
import { Move } from "./scripted-agent.js";

const OTHER = ipAddress("198.51.100.9");

/** The file, with one VM otherwise. */
function changed(file: HomeAgentConfig, name: string, change: (vm: VmConfig) => Partial<VmConfig>): HomeAgentConfig {
  return { ...file, vms: file.vms.map((vm) => (vm.name === name ? { ...vm, ...change(vm) } : vm)) };
}

/** Another address, another MAC and more memory for web1. */
function otherwise(file: HomeAgentConfig): HomeAgentConfig {
  return changed(file, "web1", ({ qemu }) => ({ homeAddresses: [OTHER], mac: mac("52:54:00:00:00:77"), qemu: qemu === null ? null : { ...qemu, memoryBytes: 1 << 28 } }));
}

await t.test("log.level is taken over", async (t) => {
  const bench = await Bench.open(t);
  const { level } = bench.log;
  bench.file = { ...bench.config, log: { level: "error" } };
  t.match(await bench.call("POST", "/v1/reload"), { status: 200, body: { needRestart: [] } });
  t.equal(bench.log.level, "error");
  bench.log.level = level;
});

await t.test("what a guest was started with stays under it, also where it moves to, until its next start", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  bench.file = otherwise(bench.config);
  const held = { needRestart: [], nextStart: [{ vm: "web1", keys: ["homeAddresses", "mac", "qemu"] }] };
  t.match(await bench.call("POST", "/v1/reload"), { status: 200, body: held });
  t.match(await bench.where(), { homeAddresses: [HOME], host: "host-a", state: "bound", epoch: 1 });
  t.match(bench.entry(), { active: CARE_OF["host-a"] });
  t.equal(bench.entry(OTHER), undefined, "nobody has that address yet");
  t.match(await bench.call("POST", "/v1/reload"), { body: held }, "and it is said again");

  const result = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  const move = new Move(a, b, "web1", 2);
  await a.until("migrate");
  t.match(b.last("prepare")?.spec, { homeAddresses: [HOME], mac: "52:54:00:00:00:07", qemu: { memoryBytes: 1 << 27 } }, "a target that is built otherwise could not take it");
  await move.leadReady();
  await move.switchOver();
  await move.released();
  await move.running(true);
  t.match((await result).body, { result: "completed" });
  t.match([bench.entry()?.active, bench.entry(OTHER)], [CARE_OF["host-b"], undefined]);

  t.match(await bench.call("POST", "/v1/vms/web1/stop", {}), { status: 200, body: { homeAddresses: [OTHER], host: null } });
  t.match(await bench.call("POST", "/v1/vms/web1/start", { host: "host-a" }), { status: 200, body: { homeAddresses: [OTHER], host: "host-a" } });
  t.match(a.last("startVm")?.spec, { homeAddresses: [OTHER], mac: "52:54:00:00:00:77", qemu: { memoryBytes: 1 << 28 } });
  t.match([bench.entry(OTHER)?.active, bench.entry()], [CARE_OF["host-a"], undefined]);
  t.match(await bench.call("POST", "/v1/reload"), { body: { nextStart: [] } });
});

await t.test("a restart changes nothing under it either", async (t) => {
  const directory = temporary(t);
  const open = async (change: Readonly<Record<string, unknown>> = {}): Promise<Bench> => Bench.open(t, { directory, change, store: await Journal.open({ directory: join(directory, "state") }) });
  const first = await open();
  await first.withVm();
  first.file = otherwise(first.config);
  await first.call("POST", "/v1/reload");
  await first.close();
  const vms = [{ name: "web1", homeAddresses: [OTHER], mac: "52:54:00:00:00:77", keyFile: "web1.key", hosts: ["host-a", "host-b"], qemu: { memory: "256M", kernel: "/k" } }];
  const second = await open({ vms });
  t.match(await second.where(), { homeAddresses: [HOME], host: "host-a", state: "bound", epoch: 1 });
  t.match([second.entry()?.active, second.entry(OTHER)], [CARE_OF["host-a"], undefined]);
  const a = second.agent("host-a");
  a.runs.set(vmId("web1"), epoch(1));
  await a.connect();
  t.match(await second.call("POST", "/v1/vms/web1/stop", {}), { status: 200, body: { homeAddresses: [OTHER] } });
  await second.close();
  const third = await open({ vms });
  t.match(await third.where(), { homeAddresses: [OTHER], state: "expired" });
  const again = third.agent("host-a");
  await again.connect();
  t.match(await third.call("POST", "/v1/vms/web1/start", { host: "host-a" }), { status: 200 });
  t.match(again.last("startVm")?.spec, { homeAddresses: [OTHER], qemu: { memoryBytes: 1 << 28 } });
});

await t.test("a start that fails holds nothing up", async (t) => {
  const bench = await Bench.open(t);
  const a = bench.agent("host-a");
  await a.connect();
  let refuse = (): void => { throw new Error("nobody has asked"); };
  a.on("startVm", (_body, answer) => { refuse = () => { answer(decision("start-failed", "no")); }; });
  const started = bench.call("POST", "/v1/vms/web1/start", { host: "host-a" });
  await a.until("startVm");
  bench.file = otherwise(bench.config);
  t.match(await bench.call("POST", "/v1/reload"), { body: { nextStart: [{ vm: "web1" }] } }, "it may be running by now");
  refuse();
  t.match((await started).body, { code: "start-failed" });
  t.match(await bench.where(), { homeAddresses: [OTHER] });
});

await t.test("nothing runs: a change counts at once; and nobody gets the address of one that runs", async (t) => {
  const bench = await Bench.open(t);
  bench.file = otherwise(bench.config);
  t.match(await bench.call("POST", "/v1/reload"), { body: { nextStart: [] } });
  t.match(await bench.where(), { homeAddresses: [OTHER], state: "expired" });
  bench.file = bench.config;
  await bench.call("POST", "/v1/reload");
  await bench.withVm();
  bench.file = changed(otherwise(bench.config), "ext1", () => ({ homeAddresses: [HOME] }));
  t.match(await bench.call("POST", "/v1/reload"), { status: 422, body: { code: "config-invalid", message: /web1 and ext1.*198\.51\.100\.7/ } });
  t.match(await bench.where("ext1"), { homeAddresses: ["198.51.100.8"] }, "nothing was changed");
  t.match(await bench.where(), { homeAddresses: [HOME], host: "host-a" });
});
