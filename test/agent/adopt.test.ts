import { readFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import t from "tap";
import type { GuestEvent } from "../../agent/hypervisor/driver.js";
import { FakeHypervisor } from "../../agent/hypervisor/qemu-fake.js";
import { inodeOf } from "../../agent/hypervisor/listener.js";
import { ipv4 } from "../../model/address.js";
import { epoch, migrationId, vmId } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import { begin, clock, Host, PARAMETERS, settle, sleep, specOf, until, VM } from "./rig.js";

const PORT = "tap7";

/** Two hosts, and a guest that somebody has started on the first. */
async function made(t: { teardown: (end: () => Promise<void>) => unknown }): Promise<{ readonly a: Host; readonly b: Host; readonly driver: FakeHypervisor; readonly control: string; readonly pid: number }> {
  const driver = new FakeHypervisor({ clock });
  const a = new Host("host-a", "192.0.2.11", () => driver);
  const b = new Host("host-b", "192.0.2.12", () => new FakeHypervisor({ clock }));
  t.teardown(async () => { await a.end(); await b.end(); });
  await a.boot();
  await b.boot();
  const spec = specOf();
  if (spec.qemu === null) throw new Error("no qemu");
  const theirs = await driver.start({ vm: VM, epoch: epoch(1), mac: spec.mac, port: PORT, qemu: spec.qemu });
  const { control } = await driver.giveBack(theirs, () => undefined);
  a.ports.external.add(PORT);
  return { a, b, driver, control, pid: theirs.identity.pid };
}

await t.test("adopted it is a guest like any other, on the port that it has; also in the agent's next life", async (t) => {
  const { a, b, driver, control, pid } = await made(t);
  await a.guests.start(specOf(), epoch(1), { control, port: PORT });
  t.equal(a.guests.get(VM)?.guest?.identity.pid, pid);
  t.match(a.ports.list(), [{ name: PORT, kind: "external" }]);
  t.equal(a.entries(), "deliver");
  await a.guests.start(specOf(), epoch(1), { control, port: PORT });
  t.same(driver.running(), [pid], "said twice, done once");
  await a.crash();
  await a.boot();
  t.ok(await a.runs());
  t.match(a.ports.list(), [{ name: PORT, kind: "external" }]);
  t.equal(a.entries(), "deliver");
  await begin(a, b, 2);
  await settle(a, b, 2);
  t.ok(await b.runs());
  t.same(driver.running(), [], "the process that it has left is ended");
  t.match(b.ports.list(), [{ kind: "tap" }]);
  t.same(a.ports.list(), []);
});

await t.test("one whose monitor does not answer stops no agent from starting; it cannot move until it does", async (t) => {
  const { a, b, driver, control, pid } = await made(t);
  await a.guests.start(specOf(), epoch(1), { control, port: PORT });
  await a.crash();
  driver.setReachable(pid, false);
  await a.boot();
  t.equal(a.guests.get(VM)?.guest?.reachable, false);
  t.equal(a.entries(), "deliver", "what it receives goes on");
  t.same(a.deaths, []);
  await t.rejects(a.migrations.describeDisks(VM), { code: "guest-unreachable" });
  const locator = ipInIp(b.careOf);
  const migrate = { kind: "migrate", migration: migrationId(VM, epoch(2)), vm: VM, epoch: epoch(2), target: b.name, targetLocator: locator, relayAddress: "127.0.0.1", relayPort: 1, secret: new Uint8Array(32), parameters: PARAMETERS } as const;
  await t.rejects(a.migrations.migrate(migrate), { code: "guest-unreachable", message: /monitor fake-1 does not answer/ });
  t.notOk(a.migrations.has(VM), "and nothing was begun");
  driver.setReachable(pid, true);
  t.same(a.reached, [`${VM} true`], "the home agent is told");
  await begin(a, b, 3);
  await settle(a, b, 3);
  t.ok(await b.runs());
});

await t.test("what it does in a move while its monitor does not answer is found out when it does", async (t) => {
  const moments: readonly (readonly [string, (event: GuestEvent) => boolean])[] = [
    ["it stops at the gate", ({ kind }) => kind === "pass"],
    ["it hands its memory over", (event) => event.kind === "stream" && event.status === "device"],
  ];
  for (const [name, deafAt] of moments) {
    await t.test(name, async (t) => {
      const { a, b, driver, control, pid } = await made(t);
      await a.guests.start(specOf(), epoch(1), { control, port: PORT });
      a.guests.get(VM)?.guest?.subscribe((event) => { if (deafAt(event)) driver.setReachable(pid, false); });
      await begin(a, b, 2);
      await until("it stands, and cannot be asked", () => driver.running().length === 0 && a.guests.get(VM)?.guest?.reachable === false);
      await sleep(100);
      t.notOk(a.told.some(({ kind }) => kind === "released"));
      driver.setReachable(pid, true);
      t.match(await a.heard("released"), { epoch: 2 });
      t.ok(a.told.some(({ kind }) => kind === "switchOver"));
      await settle(a, b, 2);
      t.ok(await b.runs());
    });
  }

  await t.test("an earlier move's end is not taken for this one's", async (t) => {
    const { a, b, control } = await made(t);
    await a.guests.start(specOf(), epoch(1), { control, port: PORT });
    await begin(a, b, 2);
    await settle(a, b, 2);
    const held: Socket[] = [];
    const mute = createServer((socket) => { held.push(socket); });
    await new Promise<void>((resolve) => { mute.listen(0, "127.0.0.1", resolve); });
    const bound = mute.address();
    t.teardown(() => {
      for (const socket of held) socket.destroy();
      mute.close();
    });
    // Its relay does not come about, so its hypervisor knows nothing of it yet, and says `completed` of the one that it has come by.
    await b.migrations.migrate({
      kind: "migrate", migration: migrationId(VM, epoch(3)), vm: VM, epoch: epoch(3), target: a.name, targetLocator: ipInIp(a.careOf), relayAddress: "127.0.0.1",
      relayPort: bound !== null && typeof bound === "object" ? bound.port : 0, secret: new Uint8Array(32), parameters: PARAMETERS,
    });
    const guest = b.guests.get(VM)?.guest;
    t.match(await guest?.progress(), { status: "completed" });
    if (b.driver instanceof FakeHypervisor) b.driver.setReachable(guest?.identity.pid ?? 0, true);
    await sleep(100);
    t.notOk(b.told.some((body) => body.kind === "released"));
    t.equal(b.migrations.reportState(VM), "runs");
    t.equal(b.migrations.abort({ kind: "abort", migration: migrationId(VM, epoch(3)), vm: VM, reason: "cancelled-by-operator" }), "accepted");
    t.match(await b.heard("sourceEnded"), { result: "source-runs" });
  });
});

await t.test("given back: neither this agent nor its next life has anything to do with it", async (t) => {
  const { a, driver, control, pid } = await made(t);
  await a.guests.start(specOf(), epoch(1), { control, port: PORT });
  t.equal(await a.guests.giveBack(VM), `process ${String(pid)}, monitor ${control}, port ${PORT}`);
  t.equal(a.guests.get(VM), undefined);
  t.equal(a.entries(), "");
  t.same(a.ports.list(), []);
  await t.rejects(a.guests.giveBack(VM), { code: "not-running" });
  await a.crash();
  await a.boot();
  t.same(driver.running(), [pid], "it runs on");
  t.same(a.deaths, []);
  await t.rejects(a.guests.start(specOf(), epoch(1), { control, port: PORT }), { code: "stale-epoch" });
  await a.guests.start(specOf(), epoch(2), { control, port: PORT });
  t.ok(await a.runs(), "and can be adopted again");
});

await t.test("it is written down before anybody can have it, and kept when it cannot be written down", async (t) => {
  const { a, driver, control, pid } = await made(t);
  await a.guests.start(specOf(), epoch(1), { control, port: PORT });
  const guest = a.guests.get(VM)?.guest;
  if (guest === null || guest === undefined) throw new Error("no guest");
  let atRelease: unknown = null;
  const release = guest.release.bind(guest);
  guest.release = () => {
    atRelease = JSON.parse(readFileSync(join(a.directory, "vms", `${VM}.json`), "utf8"));
    return release();
  };
  a.loseRecords();
  await t.rejects(a.guests.giveBack(VM), { code: "stop-failed" });
  t.equal(atRelease, null, "not let go of");
  t.ok(await a.runs(), "it is this host's as before");
  a.findRecords();
  await a.guests.giveBack(VM);
  t.match(atRelease, { state: "ended", identity: null });
  t.same(driver.running(), [pid]);
});

await t.test("one process is the guest of one VM", async (t) => {
  const { a, driver, control, pid } = await made(t);
  await a.guests.start(specOf(), epoch(1), { control, port: PORT });
  const other = { ...specOf(), vm: vmId("web2"), homeAddresses: [ipv4("198.51.100.8")] };
  await t.rejects(a.guests.start(other, epoch(1), { control, port: "tap8" }), { code: "start-failed", message: /guest of web1 already/ });
  t.same(driver.running(), [pid]);
  t.ok(await a.runs());
});

await t.test("a guest of ours is given back with its port", async (t) => {
  const { a } = await made(t);
  await a.guests.start(specOf(), epoch(3));
  const [port] = a.ports.list();
  t.match(await a.guests.giveBack(VM), new RegExp(`port ${port?.name ?? "?"}$`));
  t.ok(a.ports.external.has(port?.name ?? ""), "which is somebody else's now");
});

await t.test("what cannot be adopted is left alone, and nothing of it stays here", async (t) => {
  const { a, driver, control, pid } = await made(t);
  await t.rejects(a.guests.start(specOf(), epoch(1), { control: `${control}x`, port: PORT }), { code: "start-failed", message: /no process listens/ });
  await t.rejects(a.guests.start(specOf(), epoch(2), { control, port: "nowhere0" }), { code: "start-failed", message: /no interface "nowhere0"/ });
  a.ports.readers.set(PORT, pid + 1);
  await t.rejects(a.guests.start(specOf(), epoch(3), { control, port: PORT }), { code: "start-failed", message: /does not have TAP .* open: vms\[\]\.qemu\.adopt names the port of something else/ });
  a.ports.readers.set(PORT, pid);
  t.same(driver.running(), [pid], "it runs on");
  t.same(a.ports.list(), []);
  t.equal(a.guests.get(VM), undefined);
  await a.guests.start(specOf(), epoch(4), { control, port: PORT });
  t.ok(await a.runs());
});

await t.test("whose socket it is", (t) => {
  const table = [
    "Num       RefCount Protocol Flags    Type St Inode Path",
    "0000000000000000: 00000003 00000000 00000000 0001 03 11111 /run/a b.qmp",
    "0000000000000000: 00000002 00000000 00010000 0001 01 22222 /run/a b.qmp",
    "0000000000000000: 00000002 00000000 00010000 0001 01 33333 @abstract",
    "0000000000000000: 00000002 00000000 00000000 0001 01 44444",
  ].join("\n");
  t.equal(inodeOf("/run/a b.qmp", table), "22222", "the one that listens, and not a connection");
  t.equal(inodeOf("/run/a", table), null);
  t.equal(inodeOf("", table), null);
  t.end();
});
