import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { CareofError } from "../../model/errors.js";
import { epoch, hostId, migrationId, millis, vmId } from "../../model/ids.js";
import { readHomeAgentConfig } from "../../home-agent/config.js";
import { Journal } from "../../home-agent/store/journal.js";
import { MemoryStore } from "../../home-agent/store/memory-store.js";
import { decision } from "../../proto/channel.js";
import type { MigrationRecord } from "../../proto/messages.js";
import { Bench, CARE_OF, configFile, temporary, until } from "./bench.js";
import { Move } from "./scripted-agent.js";

const record = (side: MigrationRecord["side"], state: MigrationRecord["state"]): MigrationRecord =>
  ({ migration: new Move(nobody, nobody, "web1", 2).migration, side, state, peer: hostId(side === "source" ? "host-b" : "host-a") });
const nobody = null as never;

await t.test("a home agent that dies while a VM moves finds out from the hosts what became of it", async (t) => {
  const cases: readonly { readonly name: string; readonly source: MigrationRecord["state"] | null; readonly target: MigrationRecord["state"] | null; readonly then: (move: Move) => Promise<unknown>; readonly host: "host-a" | "host-b"; readonly epoch: number }[] = [
    { name: "it goes on and completes", source: "active", target: "prepared", then: async (move) => { await move.released(); await move.running(true); }, host: "host-b", epoch: 2 },
    { name: "it had completed meanwhile", source: "released", target: "continued", then: () => Promise.resolve(), host: "host-b", epoch: 2 },
    { name: "only the target's word is there", source: "active", target: "continued", then: () => Promise.resolve(), host: "host-b", epoch: 2 },
    { name: "the source had resumed", source: "resumed", target: "never-ran", then: () => Promise.resolve(), host: "host-a", epoch: 3 },
    { name: "it had never begun", source: null, target: null, then: () => Promise.resolve(), host: "host-a", epoch: 3 },
    { name: "released, and the target destroyed what it had", source: "released", target: "never-ran", then: (move) => move.sourceEnded("source-runs"), host: "host-a", epoch: 3 },
  ];
  for (const each of cases) {
    await t.test(each.name, async (t) => {
      const directory = temporary(t);
      const first = await Bench.open(t, { directory, store: await Journal.open({ directory: join(directory, "state") }) });
      const { a } = await first.withVm();
      await first.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" });
      await a.until("migrate");
      await first.close();

      const second = await Bench.open(t, { directory, store: await Journal.open({ directory: join(directory, "state") }) });
      t.match(await second.where(), { state: "moving", host: "host-a", epoch: 1, evidence: "restored" }, "nothing is forgotten");
      t.match(second.entry(), { active: CARE_OF["host-a"], accept: [CARE_OF["host-a"], CARE_OF["host-b"]] }, "the tunnel is there before anybody asks");
      const [source, target] = [second.agent("host-a"), second.agent("host-b")];
      if (each.source !== null) source.records = [record("source", each.source)];
      if (each.target !== null) target.records = [record("target", each.target)];
      if (each.source !== "released") source.runs.set(vmId("web1"), epoch(1));
      await source.connect();
      await target.connect();
      await each.then(new Move(source, target, "web1", 2));
      await until(each.name, async () => {
        const now = await second.where();
        return now["state"] === "bound" && now["host"] === each.host && now["epoch"] === each.epoch;
      });
      t.equal(second.entry()?.active, CARE_OF[each.host]);
      await until("the migration is over", () => second.homeAgent.cache.state(vmId("web1"))?.migration === null);
      const history = (await second.call("GET", "/v1/vms/web1/history")).body as unknown as readonly Record<string, unknown>[];
      t.match(history[0], { epoch: each.epoch, host: each.host, until: null });
      t.match(history.at(-1), { epoch: 1, host: "host-a", cause: "start" });
      if (each.host === "host-b") await source.until("revoke");
      if (each.source === "released" && each.host === "host-a") t.match(await source.until("resume"), { epoch: 3 });
    });
  }
});

await t.test("a source that returns after everything was settled without it is told", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  const result = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  const move = new Move(a, b, "web1", 2);
  await a.until("migrate");
  await a.disconnect();
  await move.targetEnded("target-never-ran");
  t.match((await result).body, { result: "failed", reason: "relay-failed" });
  t.match(await bench.where(), { host: "host-a", epoch: 3 }, "it runs there or nowhere");
  a.records = [record("source", "released")];
  a.received.length = 0;
  a.runs.clear();
  await a.connect();
  t.match(await a.until("resume"), { migration: "web1@2", epoch: 3, evidence: "target-never-ran" });
});

await t.test("a source that does not let go yet is asked again, also under an epoch that was never committed", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  const result = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  const move = new Move(a, b, "web1", 2);
  await a.until("migrate");
  a.on("revoke", (_body, answer) => { answer(decision(a.count("revoke") === 1 ? "not-permitted" : "accepted")); });
  await move.targetEnded("target-died");
  t.match((await result).body, { result: "failed", reason: "target-gone" });
  t.match(await bench.where(), { host: null, epoch: 1 });
  await until("it is asked again", () => a.count("revoke") === 2);
  t.match(a.last("revoke"), { epoch: 2 });
});

await t.test("what went by postcopy, which is heard when it is lost already, can be given up: its source lets go", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", postcopy: true });
  await a.until("migrate");
  await Promise.all([a.disconnect(), b.disconnect()]);
  await until("it is lost", async () => (await bench.where())["state"] === "lost");
  a.records = [record("source", "released")];
  a.runs.clear();
  await a.connect();
  await a.ask({ kind: "released", migration: migrationId(vmId("web1"), epoch(2)), epoch: epoch(2), stopAt: millis(1), markerAt: null, bytes: 1, postcopy: true, forced: false }, "decision");
  t.match(await bench.where(), { state: "lost", host: "host-a", epoch: 1 });
  t.match((await bench.call("POST", "/v1/vms/web1/stop", { force: true })).status, 200);
  t.match(await bench.where(), { state: "expired", host: null, epoch: 2 });
  t.match(await a.until("revoke"), { epoch: 2 });
});

await t.test("a store that cannot be written: refused, nothing acknowledged, no word is lost", async (t) => {
  const store = new MemoryStore();
  const bench = await Bench.open(t, { store });
  const { a, b } = await bench.withVm();
  store.unavailable = true;
  t.match(await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" }), { status: 503, body: { code: "store-unavailable", retryable: true } });
  t.match(await bench.where(), { state: "bound", epoch: 1 });
  t.equal(b.count("prepare"), 0);
  store.unavailable = false;
  const result = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  const move = new Move(a, b, "web1", 2);
  await a.until("migrate");
  await move.switchOver();
  store.unavailable = true;
  t.equal((await move.released()).reason, "store-unavailable");
  t.equal((await move.running(false)).reason, "store-unavailable");
  t.equal(bench.entry()?.active, CARE_OF["host-b"], "packets do not wait for the disk");
  t.equal(a.count("revoke"), 0);
  t.match(await bench.where(), { epoch: 1, host: "host-a" });
  store.unavailable = false;
  await move.released();
  await move.running(true);
  t.match((await result).body, { result: "completed" });
  t.match(await bench.where(), { epoch: 2, host: "host-b" });
});

await t.test("a second home agent on the same store fences the first one off", async (t) => {
  const store = new MemoryStore();
  const bench = await Bench.open(t, { store });
  await bench.withVm();
  await new MemoryStore(store).takeOver();
  t.match(await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" }), { status: 503, body: { code: "store-unavailable" } });
  t.match(bench.homeAgent.alarms.recent().at(-1), { alarm: "store" });
});

await t.test("a changed configuration is taken over, a broken one is not", async (t) => {
  const directory = temporary(t);
  const bench = await Bench.open(t, { directory });
  const { a } = await bench.withVm();
  const base = readHomeAgentConfig(configFile(directory));
  const added = { ...base, vms: base.vms.map((vm) => (vm.name === "web1" ? { ...vm, hosts: [...vm.hosts, hostId("host-c")] } : vm)).filter((vm) => vm.name !== "ext1") };
  bench.file = added;
  t.same(await bench.call("POST", "/v1/reload"), { status: 200, body: { hosts: base.hosts.length, vms: added.vms.length, needRestart: [], nextStart: [] } });
  t.equal((await bench.call("GET", "/v1/vms/ext1")).status, 404);
  t.match(await bench.where(), { state: "bound", host: "host-a", epoch: 1 });
  t.ok(a.connected, "connections stay");
  t.match(await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-c" }), { body: { code: "host-gone" } }, "host-c is listed now");
  bench.file = { ...base, name: hostId("elsewhere"), hosts: base.hosts.filter((host) => host.name !== "host-a"), vms: [] };
  t.same((await bench.homeAgent.reload()).needRestart, ["name"]);
  await until("a host that is not listed any more is sent away", () => !a.connected);
  t.equal(bench.entry(), undefined);
  bench.file = base;
  await bench.homeAgent.reload();
  t.match(await bench.where(), { host: "host-a", epoch: 1 }, "a VM that comes back has its memory");
});

await t.test("configuration: every contradiction is named", (t) => {
  const directory = temporary(t);
  const host = (name: string, careOf = "10.9.0.2"): object => ({ name, careOf: [careOf], tokenHash: "ab".repeat(32) });
  const vm = (change: object = {}): object => ({ name: "v", homeAddresses: ["198.51.100.9"], mac: "52:54:00:00:00:09", keyFile: "web1.key", hosts: ["h"], ...change });
  // The line that is named has what is wrong in it.
  const refuse = (change: Readonly<Record<string, unknown>>, code: string, message: RegExp, says?: string): void => {
    const file = configFile(directory, change);
    try {
      readHomeAgentConfig(file);
      t.fail(`taken: ${message.source}`);
    } catch (thrown) {
      t.match(thrown, { code, message }, message.source);
      const at = thrown instanceof Error ? /^(.*):([0-9]+):([0-9]+): /.exec(thrown.message) : null;
      t.equal(at?.[1], file, "the place is named");
      const line = readFileSync(file, "utf8").split("\n")[Number(at?.[2]) - 1] ?? "";
      if (says !== undefined) t.equal(line.slice(Number(at?.[3]) - 1), says, message.source);
    }
  };
  const hosts = [host("h")];
  refuse({ hosts: [host("h"), host("h", "10.9.0.3")] }, "config-invalid", /"h" is listed twice/, "h");
  refuse({ hosts: [host("h"), host("i")], vms: [] }, "config-invalid", /10\.9\.0\.2 is listed twice/, "10.9.0.2");
  refuse({ hosts: [host("h", "192.0.2.1")], vms: [] }, "config-invalid", /own address/, "192.0.2.1");
  refuse({ hosts, vms: [vm(), vm()] }, "config-invalid", /"v" is listed twice/, "v");
  refuse({ hosts, vms: [vm(), vm({ name: "w", mac: "52:54:00:00:00:0a" })] }, "config-invalid", /belongs to v already/, "198.51.100.9");
  refuse({ hosts, vms: [vm(), vm({ name: "w", homeAddresses: ["198.51.100.10"] })] }, "config-invalid", /52:54:00:00:00:09 belongs to v/, "52:54:00:00:00:09");
  refuse({ hosts, vms: [vm({ homeAddresses: ["203.0.113.1"] })] }, "config-invalid", /none of home\.prefixes/, "203.0.113.1");
  refuse({ hosts, vms: [vm({ hosts: ["x"] })] }, "config-invalid", /"x" is not among hosts/, "x");
  refuse({ hosts, vms: [vm({ hosts: ["h", "h"] })] }, "config-invalid", /a host is listed twice/, "h");
  refuse({ hosts, vms: [vm({ driver: "external" })] }, "config-invalid", /external\.port/, "external");
  refuse({ hosts, vms: [vm({ driver: "external", external: { port: "t" }, qemu: {} })] }, "config-invalid", /no use for qemu/);
  refuse({ hosts, vms: [vm({ external: { port: "t" } })] }, "config-invalid", /no use for external/);
  refuse({ hosts, vms: [vm({ keyFile: "nowhere.key" })] }, "key-unreadable", /nowhere\.key/, "nowhere.key");
  writeFileSync(join(directory, "short.key"), "abcd");
  refuse({ hosts, vms: [vm({ keyFile: "short.key" })] }, "key-unreadable", /32 bytes as 64/, "short.key");
  refuse({ hosts, vms: [vm({ qemu: { memory: "12Q" } })] }, "config-invalid", /home-agent\.yaml:\d+:\d+: vms\.0\.qemu\.memory/);
  refuse({ wrong: 1 }, "config-invalid", /unknown key "wrong"/);
  const home = (more: object): Readonly<Record<string, unknown>> => ({ home: { prefixes: ["198.51.100.0/24"], ...more } });
  refuse(home({ mode: "proxy-arp" }), "config-invalid", /needs home\.interface/, "proxy-arp");
  refuse(home({ interface: "home0" }), "config-invalid", /mode routed has no use for it/, "home0");
  refuse(home({ mode: "proxy-arp", interface: "lo" }), "config-invalid", /lo is the uplink/, "lo");
  refuse(home({ mode: "bridged" }), "config-invalid", /home\.mode/);
  refuse(home({ mode: "proxy-arp", interface: "an-interface-too-long" }), "config-invalid", /home\.interface/);
  t.match(readHomeAgentConfig(configFile(directory)).home, { mode: "routed", interface: null });
  t.match(readHomeAgentConfig(configFile(directory, home({ mode: "proxy-arp", interface: "home0" }))).home, { mode: "proxy-arp", interface: "home0" });
  refuse({ listen: { api: "here" } }, "config-invalid", /listen\.api: "here" is not address:port/);
  for (const api of ["0.0.0.0:8434", "192.0.2.1:8434", "[::]:8434", "home.example:8434"]) refuse({ listen: { api } }, "config-invalid", /listen\.apiWithoutAuthentication/);
  for (const api of ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1"]) t.equal(readHomeAgentConfig(configFile(directory, { listen: { api } })).listen.apiWithoutAuthentication, false);
  t.equal(readHomeAgentConfig(configFile(directory, { listen: { api: "0.0.0.0:1", apiWithoutAuthentication: true } })).listen.api.address, "0.0.0.0");
  refuse({ timing: { lifetimeMs: -1 } }, "config-invalid", /timing\.lifetimeMs/);
  const fine = readHomeAgentConfig(configFile(directory, { listen: undefined, timing: undefined }));
  t.match(fine.listen, { agents: { port: 4434 }, heartbeats: { port: 4434 }, api: { address: "127.0.0.1", port: 8434 } });
  const key = join(directory, "web1.key");
  chmodSync(key, 0o640);
  t.same(readHomeAgentConfig(configFile(directory)).exposedKeys, [key], "others can read it");
  chmodSync(key, 0o600);
  t.same(readHomeAgentConfig(configFile(directory)).exposedKeys, []);
  t.match(fine.timing, { lifetimeMs: 30_000, keepAliveMs: 1000, graceMs: 2000 });
  t.equal(fine.stateDir, join(directory, "state"));
  t.throws(() => readHomeAgentConfig(join(directory, "nowhere.yaml")), { code: "config-unreadable" });
  t.end();
});

await t.test("one process per state directory", async (t) => {
  const directory = join(temporary(t), "state");
  const first = await Journal.open({ directory });
  await t.rejects(Journal.open({ directory }), { code: "store-locked" } satisfies Partial<CareofError>);
  await first.close();
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, "lock"), "999999999 1");
  const second = await Journal.open({ directory });
  await second.close();
});
