import t from "tap";
import { readHomeAgentConfig } from "../../home-agent/config.js";
import { epoch, vmId } from "../../model/ids.js";
import { decision } from "../../proto/channel.js";
import type { Body } from "../../proto/messages.js";
import { Bench, CARE_OF, configFile, temporary } from "./bench.js";
import { CAPABILITIES } from "./scripted-agent.js";

const vm = (adopt: Readonly<Record<string, unknown>>, hosts: readonly string[] = ["host-a", "host-b"]): Readonly<Record<string, unknown>> => ({
  vms: [{ name: "web1", homeAddresses: ["198.51.100.7"], mac: "52:54:00:00:00:07", keyFile: "web1.key", hosts, qemu: { memory: "128M", adopt } }],
});
const ADOPT = { "host-a": { qmp: "/run/web1.qmp", port: "tap7" } };

await t.test("a VM is adopted where the configuration says that it is, and given back", async (t) => {
  const bench = await Bench.open(t, { change: vm(ADOPT) });
  const [a, b] = [bench.agent("host-a"), bench.agent("host-b")];
  await a.connect();
  await b.connect();
  t.match(await bench.call("POST", "/v1/vms/web1/start", { host: "host-a" }), { status: 409, body: { code: "not-permitted" } });
  t.match(await bench.call("POST", "/v1/vms/web1/adopt", { host: "host-b" }), { status: 409, body: { code: "not-permitted" } });
  t.match(await bench.call("POST", "/v1/vms/nobody/adopt", { host: "host-a" }), { status: 404, body: { code: "unknown-vm" } });
  t.match(await bench.call("POST", "/v1/vms/web1/release", {}), { status: 409, body: { code: "not-running" } });
  t.match(await bench.call("POST", "/v1/vms/web1/adopt", { host: "host-a" }), { status: 200, body: { host: "host-a", state: "bound", epoch: 1 } });
  t.match(a.last("startVm"), { adopt: { control: "/run/web1.qmp", port: "tap7" }, epoch: 1 });
  t.equal(bench.entry()?.active, CARE_OF["host-a"]);
  t.match(await bench.call("POST", "/v1/vms/web1/adopt", { host: "host-a" }), { status: 409, body: { code: "already-running" } });

  a.on("stopVm", (_body, answer) => { answer(decision("accepted", "process 7, monitor /run/web1.qmp, port tap7")); });
  t.match(await bench.call("POST", "/v1/vms/web1/release", {}), { status: 200, body: { vm: "web1", host: "host-a", detail: "process 7, monitor /run/web1.qmp, port tap7" } });
  t.match(a.last("stopVm"), { giveBack: true, force: false });
  t.match(await bench.where(), { host: null, state: "expired" });
  t.equal(bench.entry(), undefined, "its address is not routed any more");
  t.match((await bench.call("GET", "/v1/vms/web1/history")).body, [{ epoch: 1, host: "host-a", until: String }]);
  t.match(await bench.call("POST", "/v1/vms/web1/start", { host: "host-b" }), { status: 200 }, "on other hosts it is started as ever");
  t.match(b.last("startVm"), { adopt: null });
  t.match(await bench.call("POST", "/v1/vms/web1/stop", {}), { status: 200 });
  t.match(b.last("stopVm"), { giveBack: false });
});

await t.test("a guest whose monitor does not answer is shown so, and is not moved until it does", async (t) => {
  const bench = await Bench.open(t, { change: vm(ADOPT) });
  const [a, b] = [bench.agent("host-a"), bench.agent("host-b")];
  await a.connect();
  await b.connect();
  t.match(await bench.call("POST", "/v1/vms/web1/adopt", { host: "host-a" }), { status: 200, body: { host: "host-a" } });
  const says = (unreachable: boolean): Body<"vmReport"> => ({ kind: "vmReport", vm: vmId("web1"), state: "runs", basedOn: epoch(1), locator: null, evidence: "refresh", unreachable });
  t.match(await a.ask(says(true), "decision"), { reason: "accepted" }, "it lives");
  t.match(await bench.where(), { state: "bound", host: "host-a", reachable: false });
  t.match(await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" }), { status: 409, body: { code: "guest-unreachable", message: /monitor does not answer/, retryable: true } });
  t.same(b.last("prepare"), undefined, "nobody was asked");
  t.match(await b.ask(says(false), "decision"), { reason: "both-claim" });
  t.match(await bench.where(), { reachable: false }, "another host has no say in that");
  await a.ask(says(false), "decision");
  t.notOk("reachable" in await bench.where());
  t.match(await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" }), { status: 202 });
});

await t.test("what cannot be adopted stays as it was; nor is a VM given back that is being stopped", async (t) => {
  const bench = await Bench.open(t, { change: vm(ADOPT) });
  const a = bench.agent("host-a");
  await a.connect();
  a.on("startVm", (_body, answer) => { answer(decision("start-failed", "no process listens on /run/web1.qmp")); });
  t.match(await bench.call("POST", "/v1/vms/web1/adopt", { host: "host-a" }), { status: 409, body: { code: "start-failed", message: /no process listens/ } });
  t.match(await bench.where(), { host: null, state: "expired" });
  a.on("startVm", (_body, answer) => { answer(decision("accepted")); });
  await bench.call("POST", "/v1/vms/web1/adopt", { host: "host-a" });
  let stopped = (): void => undefined;
  a.on("stopVm", (_body, answer) => { stopped = (): void => { answer(decision("accepted")); }; });
  const stop = bench.call("POST", "/v1/vms/web1/stop", {});
  await a.until("stopVm");
  t.match(await bench.call("POST", "/v1/vms/web1/release", {}), { status: 409, body: { code: "stop-pending" } });
  stopped();
  t.equal((await stop).status, 200);
});

await t.test("a host whose agent would start a second guest, or stop this one, is not asked", async (t) => {
  const bench = await Bench.open(t, { change: vm(ADOPT) });
  const a = bench.agent("host-a");
  await a.connect({ capabilities: { ...CAPABILITIES, adopts: false } });
  t.match(await bench.call("POST", "/v1/vms/web1/adopt", { host: "host-a" }), { status: 409, body: { code: "unsupported", message: /cannot adopt guests/ } });
  t.equal(a.count("startVm"), 0);
  t.match(await bench.where(), { host: null, state: "expired" });
  await a.connect();
  t.match(await bench.call("POST", "/v1/vms/web1/adopt", { host: "host-a" }), { status: 200 });
  await a.connect({ capabilities: { ...CAPABILITIES, adopts: false } });
  t.match(await bench.call("POST", "/v1/vms/web1/release", {}), { status: 409, body: { code: "unsupported" } });
  t.equal(a.count("stopVm"), 0);
  t.match(await bench.where(), { host: "host-a", state: "bound" });
});

await t.test("a configuration that cannot be meant", (t) => {
  const directory = temporary(t);
  for (const [adopt, says] of [
    [{ "host-c": { qmp: "/run/x", port: "tap7" } }, /adopted on "host-c", which is not among its hosts/],
    [{ "host-a": { qmp: "run/x", port: "tap7" } }, /an absolute path/],
    [{ "host-a": { qmp: "/run/x", port: "a-name-that-is-too-long" } }, /port/],
    [{ "host-a": { qmp: "/run/x" } }, /port/],
    [{ "host-a": { qmp: "/run/x", port: "tap7", also: 1 } }, /also/],
  ] as const) t.throws(() => readHomeAgentConfig(configFile(directory, vm(adopt))), { code: "config-invalid", message: says }, JSON.stringify(adopt));
  const two = (adopt: Readonly<Record<string, unknown>>): unknown => readHomeAgentConfig(configFile(directory, { vms: [
    { name: "web1", homeAddresses: ["198.51.100.7"], mac: "52:54:00:00:00:07", keyFile: "web1.key", hosts: ["host-a", "host-b"], qemu: { adopt: ADOPT } },
    { name: "web2", homeAddresses: ["198.51.100.8"], mac: "52:54:00:00:00:08", keyFile: "web1.key", hosts: ["host-a", "host-b"], qemu: { adopt } },
  ] }));
  t.throws(() => two({ "host-a": { qmp: "/run/web1.qmp", port: "tap8" } }), { code: "config-invalid", message: /vms: web2: \/run\/web1.qmp on host-a is web1's already/ });
  t.throws(() => two({ "host-a": { qmp: "/run/web2.qmp", port: "tap7" } }), { code: "config-invalid", message: /vms: web2: tap7 on host-a is web1's already/ });
  two({ "host-b": { qmp: "/run/web1.qmp", port: "tap7" }, "host-a": { qmp: "/run/web2.qmp", port: "tap8" } });
  t.same([...readHomeAgentConfig(configFile(directory, vm(ADOPT))).vms[0]?.adopt ?? []], [["host-a", { control: "/run/web1.qmp", port: "tap7" }]]);
  t.end();
});
