import t from "tap";
import { readHomeAgentConfig } from "../../home-agent/config.js";
import { epoch, migrationId, vmId } from "../../model/ids.js";
import { decision } from "../../proto/channel.js";
import type { DiskImage } from "../../proto/messages.js";
import { Bench, CARE_OF, configFile, temporary, until } from "./bench.js";
import { CAPABILITIES, Move } from "./scripted-agent.js";

const withDisks = (disks: readonly unknown[]): Readonly<Record<string, unknown>> => ({
  vms: [{ name: "web1", homeAddresses: ["198.51.100.7"], mac: "52:54:00:00:00:07", keyFile: "web1.key", hosts: ["host-a", "host-b"], qemu: { memory: "128M", disks } }],
});
const OWN = { path: "/d/own.img", shared: false, format: "qcow2" };
const IMAGES: readonly DiskImage[] = [{ path: OWN.path, format: "qcow2", virtualBytes: 2 ** 32, allocatedBytes: 5 * 2 ** 20 }];
const FIGURES = { transferred: 0, remaining: 0, total: 0, passes: 0, bytesPerSecond: 0, dirtyBytesPerSecond: 0, expectedDowntimeMs: null, throttlePercent: 0 };

await t.test("what moves with a guest is asked of its host, and told to the other", async (t) => {
  const bench = await Bench.open(t, { change: withDisks(["/d/shared.raw", OWN]) });
  const { a, b } = await bench.withVm();
  a.on("describeDisks", (_body, answer) => { answer({ kind: "disksDescribed", disks: IMAGES }); });
  t.equal((await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" })).status, 202);
  const { disks, spec } = await b.until("prepare");
  t.same(disks, IMAGES);
  t.match(spec.qemu, { disks: ["/d/shared.raw", OWN.path], diskOptions: [OWN] });
  await a.until("migrate");
  const { migration } = new Move(a, b, "web1", 2);
  a.tell({ kind: "progress", migration, phase: "disks", ...FIGURES, diskCopied: 5, diskTotal: 10, diskBytesPerSecond: 2 });
  const shown = async (): Promise<unknown> => (await bench.call("GET", `/v1/migrations/${encodeURIComponent(migration)}`)).body["progress"];
  await until("it shows", async () => (await shown()) !== null);
  const copied = { kind: "progress", migration, phase: "disks", ...FIGURES, diskCopied: 9, diskTotal: 10, diskBytesPerSecond: 2 } as const;
  t.match(await b.ask(copied, "decision"), { reason: "not-permitted" }, "its source alone says what is copied");
  t.match(await b.ask({ ...copied, migration: migrationId(vmId("web1"), epoch(9)) }, "decision"), { reason: "not-moving" });
  t.match(await a.ask({ ...copied, diskCopied: 5 }, "decision"), { reason: "accepted" });
  t.match(await shown(), { total: 0, diskCopied: 5, diskTotal: 10, diskBytesPerSecond: 2 });
});

await t.test("what a host refuses is said in its own words, and nothing has moved", async (t) => {
  const bench = await Bench.open(t, { change: withDisks([OWN]) });
  const { a, b } = await bench.withVm();
  const move = async (): Promise<unknown> => (await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true })).body;
  a.on("describeDisks", (_body, answer) => { answer(decision("disk-failed", "no answer")); });
  t.match(await move(), { result: "failed", reason: "disk-failed", detail: "no answer" });
  t.equal(b.count("prepare"), 0);
  a.on("describeDisks", (_body, answer) => { answer({ kind: "disksDescribed", disks: IMAGES }); });
  b.on("prepare", (_body, answer) => { answer(decision("no-room", "/d has room for 3 MB")); });
  t.match(await move(), { result: "failed", reason: "no-room", detail: "/d has room for 3 MB" });
  t.equal(a.count("migrate"), 0);
  t.equal(bench.entry()?.active, CARE_OF["host-a"]);
});

await t.test("a host whose agent knows no such disks is no source and no target of such a move, and starts no such guest", async (t) => {
  const bench = await Bench.open(t, { change: withDisks([OWN]) });
  const { a, b } = await bench.withVm();
  const old = (agent: typeof a): Promise<unknown> => agent.connect({ capabilities: { ...CAPABILITIES, localDisks: false }, software: "careof/0.0.9" });
  await old(b);
  const refused = (host: string): unknown => ({ status: 409, body: { code: "unsupported", message: `the agent of ${host} (careof/0.0.9) knows no disks that move with their guest: update it` } });
  t.match(await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" }), refused("host-b"));
  t.match(await bench.where(), { state: "bound", epoch: 1 }, "nothing was begun");
  t.match((await bench.call("GET", "/v1/hosts")).body, [{ capabilities: { localDisks: true } }, { capabilities: { localDisks: false } }]);
  await b.connect();
  await old(a);
  t.match(await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" }), refused("host-a"));
  t.equal(a.count("describeDisks") + b.count("prepare"), 0);
  t.match(await bench.call("POST", "/v1/vms/web1/stop", { force: true }), { status: 200 });
  t.match(await bench.call("POST", "/v1/vms/web1/start", { host: "host-a" }), refused("host-a"));
  t.equal(a.count("startVm"), 1, "which was its first start");
});

t.test("disks in a configuration", (t) => {
  const directory = temporary(t);
  const read = (disks: readonly unknown[]): unknown => readHomeAgentConfig(configFile(directory, withDisks(disks))).vms[0]?.qemu;
  t.match(read(["/a.raw", "/b.qcow2"]), { disks: ["/a.raw", "/b.qcow2"], diskOptions: [] }, "plain strings are shared paths");
  t.match(read([{ path: "/a.img", format: "qcow2" }, { path: "/b.qcow2", shared: false }, { path: "/c", shared: false }]), {
    disks: ["/a.img", "/b.qcow2", "/c"],
    diskOptions: [{ path: "/a.img", shared: true, format: "qcow2" }, { path: "/b.qcow2", shared: false, format: "qcow2" }, { path: "/c", shared: false, format: "raw" }],
  });
  for (const [disks, says] of [
    [["/a", { path: "/a", shared: false }], /listed twice: \/a/],
    [[{ path: "a.raw", shared: false }], /an absolute path/],
    [[{ path: "/a", format: "vmdk" }], /format|disks/],
    [[{ shared: false }], /path|disks/],
  ] as const) t.throws(() => read(disks), { code: "config-invalid", message: says }, JSON.stringify(disks));

  const two = (first: unknown, second: unknown, hosts: readonly string[]): unknown => readHomeAgentConfig(configFile(directory, { vms: [
    { name: "web1", homeAddresses: ["198.51.100.7"], mac: "52:54:00:00:00:07", keyFile: "web1.key", hosts: ["host-a"], qemu: { disks: [first] } },
    { name: "web2", homeAddresses: ["198.51.100.8"], mac: "52:54:00:00:00:08", keyFile: "web1.key", hosts, qemu: { disks: ["/other", second] } },
  ] }));
  const own = { path: "/a", shared: false };
  for (const [first, second] of [[own, own], [own, "/a"], ["/a", own]]) {
    t.throws(() => two(first, second, ["host-b", "host-a"]), { code: "config-invalid", message: /:\d+: vms: web2: \/a is a disk of web1 as well, .*: host-a could have both/ }, JSON.stringify([first, second]));
    two(first, second, ["host-b"]);
  }
  two("/a", "/a", ["host-a"]);
  t.end();
});
