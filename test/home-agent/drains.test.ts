import { join } from "node:path";
import t, { type Test } from "tap";
import type { ApiEvent } from "../../home-agent/api/operations.js";
import { Journal } from "../../home-agent/store/journal.js";
import { MemoryStore } from "../../home-agent/store/memory-store.js";
import { epoch, parseMigrationId, vmId } from "../../model/ids.js";
import { decision } from "../../proto/channel.js";
import { readHomeAgentConfig } from "../../home-agent/config.js";
import { Bench, configFile, temporary, until } from "./bench.js";
import { ACCEPTED, Move, type ScriptedAgent } from "./scripted-agent.js";

const NAMES = ["web1", "web2", "web3", "web4"];
const GIB = 2 ** 30;

/** Four VMs on host-a that may go anywhere, of which web4 takes 3 GiB. */
const CHANGE = {
  vms: NAMES.map((name, i) => ({
    name, homeAddresses: [`198.51.100.${String(7 + i)}`], mac: `52:54:00:00:00:1${String(i)}`, keyFile: "web1.key", hosts: ["host-a", "host-b", "host-c"], qemu: { memory: name === "web4" ? "3G" : "512M", kernel: "/k" },
  })),
  drain: { reserve: 0 },
};

interface Scripted {
  readonly bench: Bench;
  readonly agents: Readonly<Record<"host-a" | "host-b" | "host-c", ScriptedAgent>>;
  /** VMs whose move is held. */
  readonly held: Map<string, () => Promise<void>>;
  readonly events: ApiEvent[];
}

/** Host A does what it is told when `held` lets it; the others have so much memory, in GiB. */
async function opened(t: Test, memory: Readonly<Record<"host-b" | "host-c", number>>, options: { readonly hold: boolean; readonly directory?: string; readonly running?: boolean; readonly store?: MemoryStore }): Promise<Scripted> {
  const directory = options.directory ?? temporary(t);
  const bench = await Bench.open(t, { directory, change: CHANGE, store: options.store ?? await Journal.open({ directory: join(directory, "state") }) });
  const agents = { "host-a": bench.agent("host-a"), "host-b": bench.agent("host-b"), "host-c": bench.agent("host-c") };
  const held = new Map<string, () => Promise<void>>();
  const capabilities = { ownsTap: true, ownsStream: true, canLead: true, canHoldTarget: true, qemuVersion: "10.0.0", accelerator: "tcg", dataPlane: "fake", localDisks: true, adopts: true, postcopy: true } as const;
  const source = agents["host-a"];
  if (options.running === true) for (const name of NAMES) source.runs.set(vmId(name), epoch(1));
  await source.connect({ capabilities: { ...capabilities, memoryBytes: 8 * GIB } });
  for (const name of ["host-b", "host-c"] as const) await agents[name].connect({ capabilities: { ...capabilities, memoryBytes: memory[name] * GIB } });
  source.on("migrate", (body, answer) => {
    answer(ACCEPTED);
    const { vm, epoch: reserved } = parseMigrationId(body.migration);
    const target = [agents["host-b"], agents["host-c"]].find((agent) => agent.received.some((each) => each.kind === "prepare" && each.migration === body.migration));
    if (target === undefined) throw new Error(`nobody prepared ${body.migration}`);
    const move = new Move(source, target, vm, reserved);
    const go = async (): Promise<void> => {
      held.delete(vm);
      await move.released();
      await move.running(true);
    };
    if (options.hold) held.set(vm, go);
    else go().catch((thrown: unknown) => { t.comment(`${vm}: ${String(thrown)}`); });
  });
  const events: ApiEvent[] = [];
  const reader = new AbortController();
  t.teardown(() => { reader.abort(); });
  return { bench, agents, held, events };
}

async function started(set: Scripted): Promise<void> {
  for (const name of NAMES) {
    const answer = await set.bench.call("POST", `/v1/vms/${name}/start`, { host: "host-a" });
    if (answer.status !== 200) throw new Error(JSON.stringify(answer));
  }
}

async function state(bench: Bench, wanted: string, host = "host-a"): Promise<Record<string, unknown>> {
  let seen: Record<string, unknown> = {};
  await until(`the drain is ${wanted}`, async () => {
    seen = (await bench.call("GET", `/v1/hosts/${host}/drain`)).body;
    return seen["state"] === wanted;
  });
  return seen;
}

await t.test("every VM moves away, two at a time, to where there is room; the host takes none until it is undrained", async (t) => {
  const set = await opened(t, { "host-b": 1.5, "host-c": 3.5 }, { hold: true });
  const { bench, held } = set;
  await started(set);
  t.match(await bench.call("GET", "/v1/hosts/host-a/drain"), { status: 404, body: { code: "not-draining" } });
  t.match(await bench.call("POST", "/v1/hosts/host-a/drain", { order: "largest" }), { status: 202, body: { state: "running", limit: 2, total: 4, moving: 2, waiting: 2, order: "largest" } });
  await until("two move", () => held.size === 2);
  t.same([...held.keys()].sort(), ["web1", "web4"], "the largest, and the next by name");
  t.match(await bench.where("web4"), { state: "moving" });
  t.match((await bench.call("GET", "/v1/migrations")).body, [{ vm: "web1", to: "host-b" }, { vm: "web4", to: "host-c" }], "each where the most memory is left");
  t.match((await bench.call("GET", "/v1/hosts")).body, [
    { name: "host-a", draining: true, memoryFreeBytes: 3.5 * GIB }, { name: "host-b", draining: false, memoryFreeBytes: GIB }, { name: "host-c", draining: false, memoryFreeBytes: 0.5 * GIB },
  ], "what is on its way counts where it comes from and where it goes");
  await held.get("web1")?.();
  await until("the next one moves", () => held.has("web2"));
  t.match(await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-a" }), { status: 409, body: { code: "host-draining" } });
  t.match(await bench.call("POST", "/v1/vms/web1/start", { host: "host-a" }), { status: 409, body: { code: "host-draining" } });
  for (const name of ["web4", "web2", "web3"]) {
    await until(`${name} moves`, () => held.has(name));
    await held.get(name)?.();
  }
  t.match(await state(bench, "completed"), {
    total: 4, moved: 4, moving: 0, waiting: 0, left: 0,
    vms: [{ vm: "web4", state: "moved", to: "host-c" }, { vm: "web1", state: "moved", to: "host-b" }, { vm: "web2", state: "moved", to: "host-b" }, { vm: "web3", state: "moved" }],
  });
  t.match(await bench.call("POST", "/v1/hosts/host-a/undrain", {}), { status: 200, body: { name: "host-a", draining: false, vms: [] } });
  t.match(await bench.call("POST", "/v1/hosts/host-a/undrain", {}), { status: 200, body: { draining: false } }, "again: nothing to do");
  t.match(await bench.call("GET", "/v1/hosts/host-a/drain"), { status: 404, body: { code: "not-draining" } });
  const back = await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-a" });
  t.equal(back.status, 202, JSON.stringify(back.body));
});

await t.test("what fits nowhere is left with the reason, and moves when it is begun again with room", async (t) => {
  const set = await opened(t, { "host-b": 1.75, "host-c": 1 }, { hold: false });
  const { bench } = set;
  await started(set);
  t.match(await bench.call("POST", "/v1/hosts/host-a/drain", { to: ["host-b"], limit: 1 }), { status: 202 });
  t.match(await state(bench, "incomplete"), { to: ["host-b"], moved: 3, left: 1, vms: [{}, {}, {}, { vm: "web4", state: "left", reason: "not-enough-memory", detail: "host-b: not-enough-memory" }] });
  t.match(await bench.where("web4"), { state: "bound", host: "host-a" });
  await bench.agents[2]?.disconnect();
  await until("host-c is gone", async () => ((await bench.call("GET", "/v1/hosts")).body as unknown as readonly { readonly state: string }[])[2]?.state === "gone");
  t.match((await bench.call("GET", "/v1/hosts")).body, [{}, { memoryFreeBytes: 0.25 * GIB }, { memoryFreeBytes: null }], "the count that web4 was left by");
  await set.agents["host-c"].connect({ capabilities: { ownsTap: true, ownsStream: true, canLead: true, canHoldTarget: true, qemuVersion: "10.0.0", accelerator: "tcg", dataPlane: "fake", localDisks: true, adopts: true, postcopy: true, memoryBytes: 4 * GIB } });
  t.match(await bench.call("POST", "/v1/hosts/host-a/drain", { to: ["host-c"] }), { status: 202, body: { limit: 1, total: 1 } }, "what is not said stays");
  t.match(await state(bench, "completed"), { vms: [{ vm: "web4", state: "moved", to: "host-c" }] });
});

await t.test("interrupted: what moves goes on, nothing else begins; or it is cancelled. Begun again it goes on", async (t) => {
  const set = await opened(t, { "host-b": 8, "host-c": 0.25 }, { hold: true });
  const { bench, held, agents } = set;
  await started(set);
  t.match(await bench.call("POST", "/v1/hosts/host-a/drain/interrupt", {}), { status: 404, body: { code: "not-draining" } });
  await bench.call("POST", "/v1/hosts/host-a/drain", {});
  await until("two move", () => held.size === 2);
  t.match(await bench.call("POST", "/v1/hosts/host-a/drain/interrupt", {}), { status: 202, body: { state: "stopping", moving: 2, waiting: 2 } });
  await held.get("web1")?.();
  agents["host-a"].on("abort", (body, answer) => {
    answer(ACCEPTED);
    const { vm, epoch: reserved } = parseMigrationId(body.migration);
    held.delete(vm);
    new Move(agents["host-a"], agents["host-b"], vm, reserved).sourceEnded("source-runs", "cancelled-by-operator").catch((thrown: unknown) => { t.fail(String(thrown)); });
  });
  t.match(await bench.call("POST", "/v1/hosts/host-a/drain/interrupt", { cancel: true }), { status: 202 });
  t.match(await state(bench, "interrupted"), { moved: 1, moving: 0, waiting: 2, left: 1, vms: [{ vm: "web1", state: "moved" }, { vm: "web2", state: "left", reason: "cancelled-by-operator" }, { state: "waiting" }, { state: "waiting" }] });
  t.match(await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-a" }), { status: 409, body: { code: "host-draining" } }, "the host still takes none");
  await bench.call("POST", "/v1/hosts/host-a/drain", { limit: 4 });
  for (const name of ["web2", "web3", "web4"]) {
    await until(`${name} moves`, () => held.has(name));
    await held.get(name)?.();
  }
  t.match(await state(bench, "completed"), { total: 3, moved: 3 });
});

await t.test("its VMs move as it was asked for, also when it is begun again; and what failed says why in a host's own words", async (t) => {
  const set = await opened(t, { "host-b": 8, "host-c": 0.25 }, { hold: true });
  const { bench, held, agents } = set;
  await started(set);
  const wishes = { bandwidth: 50_000_000, downtimeLimitMs: 300, timeoutMs: 120_000, onTimeout: "force" };
  t.match(await bench.call("POST", "/v1/hosts/host-a/drain", { limit: 1, to: ["host-b"], ...wishes }), { status: 202, body: { wishes } });
  await until("one moves", () => held.has("web1"));
  const parameters = { maxBandwidth: 50_000_000, downtimeLimitMs: 300, timeoutMs: 120_000, onTimeout: "force", autoConverge: false, channels: 1 };
  t.match(agents["host-a"].last("migrate"), { parameters });
  t.match(agents["host-b"].last("prepare"), { parameters });
  agents["host-a"].on("migrate", (body, answer) => {
    answer(ACCEPTED);
    const { vm, epoch: reserved } = parseMigrationId(body.migration);
    new Move(agents["host-a"], agents["host-b"], vm, reserved).sourceEnded("source-runs", "disk-failed", "no directory for its disk").catch((thrown: unknown) => { t.fail(String(thrown)); });
  });
  await held.get("web1")?.();
  const left = { state: "left", reason: "disk-failed", detail: "host-b: disk-failed (no directory for its disk)" };
  t.match(await state(bench, "incomplete"), { wishes, moved: 1, left: 3, vms: [{ vm: "web1", state: "moved" }, { vm: "web2", ...left }, { vm: "web3", ...left }, { vm: "web4", ...left }] });
  t.match(agents["host-a"].last("migrate"), { parameters });
  t.match(await bench.call("POST", "/v1/hosts/host-a/drain", { bandwidth: 0 }), { body: { wishes: { ...wishes, bandwidth: 0 } } }, "what is not said stays");
  await state(bench, "incomplete");
  t.match(agents["host-a"].last("migrate"), { parameters: { ...parameters, maxBandwidth: 0 } });
});

await t.test("the mark, and a drain that was running, survive the home agent", async (t) => {
  const directory = temporary(t);
  const first = await opened(t, { "host-b": 8, "host-c": 0.25 }, { hold: true, directory });
  await started(first);
  await first.bench.call("POST", "/v1/hosts/host-a/drain", { limit: 1, to: ["host-b"] });
  await until("one moves", () => first.held.has("web1"));
  await first.held.get("web1")?.();
  await until("the next one moves", () => first.held.has("web2"));
  await first.held.get("web2")?.();
  await until("the third moves", () => first.held.has("web3"));
  await first.bench.call("POST", "/v1/hosts/host-a/drain/interrupt", { cancel: false });
  await first.held.get("web3")?.();
  await state(first.bench, "interrupted");
  await first.bench.call("POST", "/v1/hosts/host-a/drain", {});
  await until("the last one moves", () => first.held.has("web4"));
  await first.held.get("web4")?.();
  await state(first.bench, "completed");
  await first.bench.close();

  const second = await Bench.open(t, { directory, change: CHANGE, store: await Journal.open({ directory: join(directory, "state") }) });
  t.match((await second.call("GET", "/v1/hosts")).body, [{ name: "host-a", draining: true }, { draining: false }, { draining: false }]);
  t.match(await second.call("GET", "/v1/hosts/host-a/drain"), { status: 200, body: { state: "completed", limit: 1, to: ["host-b"] } });
  t.match(await second.call("POST", "/v1/vms/web1/start", { host: "host-a" }), { status: 409, body: { code: "host-draining" } });
  t.match(await second.call("POST", "/v1/hosts/host-a/undrain", {}), { status: 200, body: { draining: false } });
  await second.close();
  const third = await Bench.open(t, { directory, change: CHANGE, store: await Journal.open({ directory: join(directory, "state") }) });
  t.match((await third.call("GET", "/v1/hosts")).body, [{ name: "host-a", draining: false }], "and so does its end");
  t.match(await third.call("POST", "/v1/hosts/host-a/drain", {}), { status: 202, body: { state: "completed", total: 0 } }, "drained again, under a key that was removed once");
});

await t.test("a home agent that dies in the midst goes on with the rest when its hosts are back", async (t) => {
  const directory = temporary(t);
  const first = await opened(t, { "host-b": 8, "host-c": 0.25 }, { hold: true, directory });
  await started(first);
  await first.bench.call("POST", "/v1/hosts/host-a/drain", { limit: 1 });
  await until("one moves", () => first.held.has("web1"));
  await first.bench.close();

  const second = await opened(t, { "host-b": 8, "host-c": 0.25 }, { hold: false, directory, running: true });
  await second.agents["host-a"].until("migrate", (body) => body.migration.startsWith("web2"));
  t.match(await state(second.bench, "completed"), { limit: 1, moved: 4 }, "also the one whose move was under way: the host knew nothing of it, it was given back and has moved again");
  t.match(await second.bench.where("web4"), { host: "host-b", state: "bound" });
});

await t.test("what a configuration says of drains is checked, and the complaint says what would be right", (t) => {
  const directory = temporary(t);
  const read = (drain: unknown) => readHomeAgentConfig(configFile(directory, { drain })).drain;
  t.same(read({}), { limit: 2, reserve: 256 * 1024 ** 2 });
  t.same([read({ limit: 64, reserve: 0 }), read({ reserve: "2G" }).reserve, read({ reserve: 1000 }).reserve], [{ limit: 64, reserve: 0 }, 2 * GIB, 1000]);
  for (const limit of [0, 65, 1.5, "two"]) t.throws(() => read({ limit }), { code: "config-invalid", message: /home-agent\.yaml:\d+:\d+: drain\.limit: / }, `limit ${String(limit)}`);
  for (const reserve of [-1, 1.5, "lots", "0M", "1.5G"]) t.throws(() => read({ reserve }), { code: "config-invalid", message: /home-agent\.yaml:\d+:\d+: drain\.reserve: it must be 0, a size such as 256M or 2G/ }, `reserve ${String(reserve)}`);
  t.throws(() => read({ reserve: "9999999999G" }), { code: "config-invalid", message: /more than any host has/ });
  t.throws(() => read({ order: "name" }), { code: "config-invalid", message: /unknown key "order"/ });
  t.end();
});

await t.test("refusals change nothing", async (t) => {
  const store = new MemoryStore();
  const set = await opened(t, { "host-b": 8, "host-c": 8 }, { hold: true, store });
  const { bench } = set;
  await started(set);
  for (const [path, body, status, code] of [
    ["/v1/hosts/host-z/drain", {}, 404, "unknown-host"],
    ["/v1/hosts/host-z/undrain", {}, 404, "unknown-host"],
    ["/v1/hosts/host-a/drain", { to: ["host-z"] }, 404, "unknown-host"],
    ["/v1/hosts/host-a/drain", { to: ["host-a"] }, 409, "not-permitted"],
    ["/v1/hosts/host-a/drain", { to: ["host-b", "host-z"] }, 404, "unknown-host"],
    ["/v1/hosts/host-a/drain", { to: ["host-b", "host-a"] }, 409, "not-permitted"],
    ["/v1/hosts/host-a/drain", { to: "host-b" }, 400, "malformed-body"],
    ["/v1/hosts/host-a/drain", { to: [""] }, 400, "malformed-body"],
    ["/v1/hosts/host-a/drain", { limit: 0 }, 400, "malformed-body"],
    ["/v1/hosts/host-a/drain", { limit: 65 }, 400, "malformed-body"],
    ["/v1/hosts/host-a/drain", { limit: 1.5 }, 400, "malformed-body"],
    ["/v1/hosts/host-a/drain", { limit: "2" }, 400, "malformed-body"],
    ["/v1/hosts/host-a/drain", { parallel: 2 }, 400, "malformed-body"],
    ["/v1/hosts/host-a/drain", { bandwidth: -1 }, 400, "malformed-body"],
    ["/v1/hosts/host-a/drain", { channels: 17 }, 400, "malformed-body"],
    ["/v1/hosts/host-a/drain", { onTimeout: "hope" }, 400, "malformed-body"],
    ["/v1/hosts/host-a/drain", { order: "random" }, 400, "malformed-body"],
    ["/v1/hosts/HOST/drain", {}, 400, "malformed-host"],
  ] as const) t.match(await bench.call("POST", path, body), { status, body: { code } }, `${path} ${JSON.stringify(body)}`);
  store.unavailable = true;
  t.match(await bench.call("POST", "/v1/hosts/host-a/drain", {}), { status: 503, body: { code: "store-unavailable", retryable: true } });
  store.unavailable = false;
  t.match((await bench.call("GET", "/v1/hosts")).body, [{ name: "host-a", draining: false }]);
  t.same([...store.entries("drain/")], []);
  t.equal(set.held.size, 0);
  set.agents["host-b"].on("prepare", (_body, answer) => { answer(decision("prepare-failed", "no memory")); });
  set.agents["host-c"].on("prepare", (_body, answer) => { answer(decision("prepare-failed", "no memory")); });
  await bench.call("POST", "/v1/hosts/host-a/drain", {});
  t.match(await state(bench, "incomplete"), { moved: 0, left: 4, vms: [{ reason: "prepare-failed", detail: "host-b: prepare-failed (no memory), host-c: prepare-failed (no memory)" }] });
  store.unavailable = true;
  t.match(await bench.call("POST", "/v1/hosts/host-a/undrain", {}), { status: 503, body: { code: "store-unavailable" } });
  t.match((await bench.call("GET", "/v1/hosts")).body, [{ name: "host-a", draining: true }]);
});

await t.test("a host that is away for a moment: the drain waits for it, and asks it again for what failed", async (t) => {
  const set = await opened(t, { "host-b": 8, "host-c": 0.25 }, { hold: true });
  const { bench, held, agents } = set;
  await started(set);
  agents["host-a"].on("abort", (body, answer) => {
    answer(ACCEPTED);
    const { vm, epoch: reserved } = parseMigrationId(body.migration);
    held.delete(vm);
    new Move(agents["host-a"], agents["host-b"], vm, reserved).sourceEnded("source-runs", "target-gone").catch((thrown: unknown) => { t.fail(String(thrown)); });
  });
  await bench.call("POST", "/v1/hosts/host-a/drain", { limit: 1 });
  await until("one moves", () => held.has("web1"));
  await agents["host-b"].disconnect();
  await until("its move has failed", () => !held.has("web1"));
  await until("it says for whom it waits", async () => {
    const { body } = await bench.call("GET", "/v1/hosts/host-a/drain");
    return body["state"] === "running" && (body["vms"] as readonly { readonly detail: string }[]).every((each) => each.detail === "host-b: host-gone, host-c: not-enough-memory");
  });
  const capabilities = { ownsTap: true, ownsStream: true, canLead: true, canHoldTarget: true, qemuVersion: "10.0.0", accelerator: "tcg", dataPlane: "fake", localDisks: true, adopts: true, postcopy: true, memoryBytes: 8 * GIB } as const;
  await agents["host-b"].connect({ capabilities });
  await until("it is asked again", () => held.has("web1"));
  await held.get("web1")?.();
  for (const name of ["web2", "web3", "web4"]) {
    await until(`${name} moves`, () => held.has(name));
    await held.get(name)?.();
  }
  t.match(await state(bench, "completed"), { moved: 4, left: 0 });
});

await t.test("the drained host itself is away for a moment: what has not moved yet waits for it", async (t) => {
  const set = await opened(t, { "host-b": 8, "host-c": 0.25 }, { hold: false });
  const { bench, agents } = set;
  await started(set);
  await agents["host-a"].disconnect();
  await until("host-a is gone", async () => ((await bench.call("GET", "/v1/hosts")).body as unknown as readonly { readonly state: string }[])[0]?.state === "gone");
  t.match(await bench.call("POST", "/v1/hosts/host-a/drain", {}), { status: 202, body: { state: "running", waiting: 4, vms: [{ reason: "host-gone", detail: "host-a is not connected" }, {}, {}, {}] } });
  await agents["host-a"].connect();
  t.match(await state(bench, "completed"), { moved: 4, left: 0 });
});

await t.test("two hosts drained at once: room that the one has taken is not given to the other", async (t) => {
  const set = await opened(t, { "host-b": 8, "host-c": 0.75 }, { hold: true });
  const { bench, agents } = set;
  for (const [name, host] of [["web1", "host-a"], ["web2", "host-b"]] as const) t.equal((await bench.call("POST", `/v1/vms/${name}/start`, { host })).status, 200);
  const [first, second] = await Promise.all((["host-a", "host-b"] as const).map((host) => bench.call("POST", `/v1/hosts/${host}/drain`, { to: ["host-c"] })));
  t.match([first?.status, second?.status], [202, 202]);
  await until("one moves", () => agents["host-c"].count("prepare") > 0);
  await state(bench, "incomplete", agents["host-c"].last("prepare")?.migration.startsWith("web1") === true ? "host-b" : "host-a");
  t.equal(agents["host-c"].count("prepare"), 1, "512 MiB fit once into 768");
});
