import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { FakeHypervisor } from "../../agent/hypervisor/qemu-fake.js";
import { ipAddress } from "../../model/address.js";
import { CareofError } from "../../model/errors.js";
import { epoch, hostId, migrationId, millis, type Epoch } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import type { Body } from "../../proto/messages.js";
import { begin, clock, Host, PARAMETERS, specOf, until, VM } from "./rig.js";

/** On a machine that has hardly time for this. */
const LIMIT_MS = 60_000;

/** What the home agent says when the target is ready; nobody listens at its relay. */
function migrateAt(reserved: Epoch): Body<"migrate"> {
  return {
    kind: "migrate", migration: migrationId(VM, reserved), vm: VM, epoch: reserved, target: hostId("host-b"), targetLocator: ipInIp(ipAddress("10.2.0.2")), relayAddress: "127.0.0.1", relayPort: 9,
    secret: randomBytes(32), parameters: PARAMETERS,
  };
}

await t.test("while the hypervisor is asked for its disks", async (t) => {
  const started = async (): Promise<{ readonly host: Host; readonly asked: Promise<void>; readonly answer: () => void }> => {
    const host = new Host("host-a", "10.1.0.2", () => new FakeHypervisor({ clock }));
    t.teardown(() => host.end());
    await host.boot();
    const path = join(host.directory, "disk.raw");
    writeFileSync(path, "disk");
    await host.guests.start(specOf({ disks: [path], diskOptions: [{ path, shared: false, format: "raw" }] }), epoch(1));
    const guest = host.guests.get(VM)?.guest;
    if (guest === undefined || guest === null) throw new Error("it does not run");
    const sizes = guest.disks.sizes.bind(guest.disks);
    let answer = (): void => undefined;
    const go = new Promise<void>((resolve) => { answer = resolve; });
    const asked = new Promise<void>((resolve) => {
      guest.disks.sizes = async () => {
        resolve();
        await go;
        return sizes();
      };
    });
    return { host, asked, answer };
  };

  const aborted = await started();
  const move = migrateAt(epoch(2));
  const migrating = aborted.host.migrations.migrate(move);
  await aborted.asked;
  t.equal(aborted.host.migrations.abort({ kind: "abort", migration: move.migration, vm: VM, reason: "timed-out" }), "not-moving", "the home agent takes that for a move that never began");
  aborted.answer();
  await t.rejects(migrating, { code: "stale-epoch" });
  t.same([aborted.host.migrations.records(), await aborted.host.runs()], [[], true], "and it does not begin");

  const older = await started();
  const overtaken = older.host.migrations.migrate(migrateAt(epoch(2)));
  await older.asked;
  older.host.guests.rebase(VM, epoch(3));
  older.answer();
  await t.rejects(overtaken, { code: "stale-epoch" }, "the guest is here under a newer epoch by now");

  const twice = await started();
  const first = twice.host.migrations.migrate(migrateAt(epoch(2)));
  const second = twice.host.migrations.migrate(migrateAt(epoch(3)));
  await twice.asked;
  twice.answer();
  await first;
  await t.rejects(second, { code: "already-moving" });
  t.equal((await twice.host.heard("sourceEnded", () => true, LIMIT_MS)).migration, migrationId(VM, epoch(2)), "one move at a time");
});

await t.test("a guest that has moved away and does not die is ended and cleared away as soon as it can be", async (t) => {
  const a = new Host("host-a", "10.1.0.2", () => new FakeHypervisor({ clock }));
  const b = new Host("host-b", "10.2.0.2", () => new FakeHypervisor({ clock }));
  t.teardown(async () => { await a.end(); await b.end(); });
  for (const host of [a, b]) await host.boot();
  await a.guests.start(specOf(), epoch(1));
  const guest = a.guests.get(VM)?.guest;
  if (guest === undefined || guest === null) throw new Error("it does not run");
  const destroy = guest.destroy.bind(guest);
  let tries = 0;
  let dies = false;
  guest.destroy = () => {
    tries++;
    return dies ? destroy() : Promise.reject(new CareofError("stop-failed", "the process does not end: it waits for a disk"));
  };
  await begin(a, b, 2);
  await b.heard("running", ({ final }) => final, LIMIT_MS);
  t.equal(a.migrations.revoke({ kind: "revoke", vm: VM, epoch: epoch(2), forwardTo: ipInIp(b.careOf), graceMs: millis(1) }), "accepted");
  // At once, when the grace time is over, and twice of its own accord.
  await until("it is tried again", () => tries >= 4, LIMIT_MS);
  t.same([a.entries(), a.migrations.records().map(({ state }) => state)], ["forward 10.2.0.2", ["released"]], "nothing of it is forgotten");
  await t.rejects(a.migrations.prepare({
    kind: "prepare", migration: migrationId(VM, epoch(3)), spec: specOf(), epoch: epoch(3), source: b.name, sourceLocator: ipInIp(b.careOf), secret: randomBytes(32), parameters: PARAMETERS, disks: [],
  }), { code: "stop-failed" }, "its place is taken, and whoever comes is told why");
  dies = true;
  await until("nothing is left", () => a.entries() === "" && a.ports.list().length === 0 && a.migrations.records().length === 0, LIMIT_MS);
  t.equal(a.guests.get(VM), undefined);
});

await t.test("a guest that was to come back within the grace time, and is refused, leaves no port behind", async (t) => {
  const a = new Host("host-a", "10.1.0.2", () => new FakeHypervisor({ clock }));
  const b = new Host("host-b", "10.2.0.2", () => new FakeHypervisor({ clock }));
  t.teardown(async () => { await a.end(); await b.end(); });
  for (const host of [a, b]) await host.boot();
  await a.guests.start(specOf(), epoch(1));
  await begin(a, b, 2);
  await b.heard("running", ({ final }) => final, LIMIT_MS);
  t.equal(a.migrations.revoke({ kind: "revoke", vm: VM, epoch: epoch(2), forwardTo: ipInIp(b.careOf), graceMs: millis(600_000) }), "accepted");
  t.equal(a.ports.list().length, 1, "it forwards");
  await t.rejects(a.migrations.prepare({
    kind: "prepare", migration: migrationId(VM, epoch(3)), spec: specOf(), epoch: epoch(3), source: b.name, sourceLocator: ipInIp(b.careOf), secret: randomBytes(32), parameters: PARAMETERS,
    disks: [{ path: "/var/lib/a-disk-that-it-has-not", format: "raw", virtualBytes: 1, allocatedBytes: 1 }],
  }), { code: "disk-failed" });
  t.same([a.ports.list(), a.entries(), a.migrations.records()], [[], "", []]);
});
