import { randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, writeSync, closeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { localDisks } from "../../../agent/hypervisor/disks.js";
import type { GuestSpec, HypervisorDriver } from "../../../agent/hypervisor/driver.js";
import { makeImage } from "../../../agent/hypervisor/image.js";
import { epoch, millis } from "../../../model/ids.js";
import { recorder, sleep, until } from "../rig.js";
import { kinds } from "./machines-here.js";

const MIB = 2 ** 20;
const directories: string[] = [];
const drivers: HypervisorDriver[] = [];
t.teardown(async () => {
  for (const driver of drivers) await driver.cleanUp([]);
  for (const directory of directories) rmSync(directory, { recursive: true, force: true });
});
function fresh(): string {
  const directory = mkdtempSync(join(tmpdir(), "co-"));
  directories.push(directory);
  return directory;
}

/** Holes, data, and zeros that take room. */
function fill(path: string, data: Uint8Array): void {
  const file = openSync(path, "r+");
  writeSync(file, data, 0, data.length, 8 * MIB);
  writeSync(file, new Uint8Array(4 * MIB), 0, 4 * MIB, 32 * MIB);
  closeSync(file);
}

const allocated = (path: string): number => statSync(path).blocks * 512;

for (const kind of kinds) {
  void t.test(`disks contract: ${kind.name}`, { skip: kind.skip }, async (t) => {
    const { qemu, mac, vm } = kind.spec;
    if (qemu === null) throw new Error("no qemu");
    const side = async (number: number): Promise<{ readonly driver: HypervisorDriver; readonly directory: string; readonly spec: GuestSpec; readonly raw: string; readonly cow: string }> => {
      const directory = fresh();
      const driver = kind.make(fresh());
      drivers.push(driver);
      const raw = join(directory, "data,1.raw");
      const cow = join(directory, "data.qcow2");
      await makeImage({ path: raw, format: "raw", virtualBytes: 64 * MIB });
      await makeImage({ path: cow, format: "qcow2", virtualBytes: 128 * MIB });
      const diskOptions = [{ path: raw, shared: false, format: "raw" as const }, { path: cow, shared: false, format: "qcow2" as const }];
      return { driver, directory, raw, cow, spec: { vm, epoch: epoch(number), mac, port: null, qemu: { ...qemu, disks: [raw, cow], diskOptions } } };
    };
    const stream = { lead: false, maxBandwidth: 0, downtimeLimitMs: millis(300), autoConverge: false, postcopy: false, channels: 1 };

    await t.test("they are the same on both sides before the guest goes", async (t) => {
      const a = await side(1);
      const b = await side(2);
      const data = randomBytes(3 * MIB);
      fill(a.raw, data);
      const nbd = join(b.directory, "nbd.sock");
      const source = await a.driver.start(a.spec);
      const target = await b.driver.incoming(b.spec);
      const heard = { source: recorder(), target: recorder() };
      source.subscribe(heard.source.take);
      target.subscribe(heard.target.take);
      const sizes = await source.disks.sizes();
      t.same(sizes.map(({ disk }) => disk), [0, 1]);
      t.equal(sizes[0]?.virtualBytes, 64 * MIB);
      t.ok((sizes[0]?.allocatedBytes ?? 0) >= 7 * MIB && (sizes[0]?.allocatedBytes ?? 0) < 8 * MIB, "holes take no room");
      await t.rejects(source.disks.finish(), { code: "disk-failed" }, "nothing was copied");
      await target.disks.exportTo(nbd);
      await target.receive({ ...stream, socket: join(b.directory, "stream.sock") });
      await source.disks.mirror({ socket: nbd, maxBandwidth: 0 });
      await until("ready", () => heard.source.words.includes("disks"));
      const { copied, total } = await source.disks.progress();
      t.equal(copied, total);
      await source.send({ ...stream, socket: join(b.directory, "stream.sock") });
      await until("pre-switchover", () => heard.source.words.includes("pre-switchover"));
      await source.disks.finish();
      await target.disks.endExports();
      await target.disks.endExports();
      await source.continueSwitchover();
      await until("completed", () => heard.source.words.includes("completed") && heard.target.words.includes("completed"));
      await target.resume();
      t.equal(await target.status(), "running");
      await source.destroy();
      await target.destroy();
      t.ok(readFileSync(b.raw).equals(readFileSync(a.raw)), "byte for byte");
      if (kind.name === "qemu") t.ok(allocated(b.raw) < 4 * MIB, `holes stay holes, and zeros become some: ${String(allocated(b.raw))}`);
    });

    await t.test("a copy that is dropped leaves the guest and its disks alone", async (t) => {
      const a = await side(1);
      const b = await side(2);
      fill(a.raw, randomBytes(3 * MIB));
      const nbd = join(b.directory, "nbd.sock");
      const source = await a.driver.start(a.spec);
      const target = await b.driver.incoming(b.spec);
      const { words, take } = recorder();
      source.subscribe(take);
      await target.disks.exportTo(nbd);
      await source.disks.mirror({ socket: nbd, maxBandwidth: 0 });
      await source.disks.drop();
      await source.disks.drop();
      t.equal(await source.status(), "running");
      await t.rejects(source.disks.finish(), { code: "disk-failed" });

      // The target dies in the middle; what was copied counts for nothing, and it can be begun anew.
      const again = await side(3);
      const third = await again.driver.incoming(again.spec);
      await third.disks.exportTo(join(again.directory, "nbd.sock"));
      words.length = 0;
      await source.disks.mirror({ socket: join(again.directory, "nbd.sock"), maxBandwidth: 0 });
      await until("ready", () => words.includes("disks"));
      words.length = 0;
      await third.destroy();
      await sleep(50);
      t.equal(await source.status(), "running", "its own disk is enough");
      await source.disks.drop();
      await source.destroy();
      await target.destroy();
    });

    await t.test("a guest without disks of its own", async (t) => {
      const driver = kind.make(fresh());
      drivers.push(driver);
      const guest = await driver.start({ vm, epoch: epoch(1), mac, port: null, qemu });
      const { words, take } = recorder();
      guest.subscribe(take);
      t.same(await guest.disks.sizes(), []);
      await guest.disks.mirror({ socket: "/nowhere", maxBandwidth: 0 });
      await until("ready at once", () => words.includes("disks"));
      await guest.disks.finish();
      await guest.disks.drop();
      await guest.disks.endExports();
      await guest.destroy();
    });

    await t.test("nobody exports", async (t) => {
      const a = await side(1);
      const source = await a.driver.start(a.spec);
      await t.rejects(source.disks.mirror({ socket: join(a.directory, "nobody.sock"), maxBandwidth: 0 }), { code: /qmp-/ });
      await source.disks.drop();
      t.equal(await source.status(), "running");
      await source.destroy();
    });
  });
}

void t.test("images", async (t) => {
  const directory = fresh();
  const path = join(directory, "a.raw");
  await makeImage({ path, format: "raw", virtualBytes: 4 * 2 ** 30 });
  t.equal(statSync(path).size, 4 * 2 ** 30);
  t.equal(statSync(path).mode & 0o777, 0o600);
  t.ok(allocated(path) < MIB);
  await t.rejects(makeImage({ path, format: "raw", virtualBytes: 1 }), { code: "disk-exists" });
  t.equal(statSync(path).size, 4 * 2 ** 30, "and was left alone");
  await t.rejects(makeImage({ path: join(directory, "no", "a.raw"), format: "raw", virtualBytes: 1 }), { code: "disk-failed" });
  const cow = join(directory, "a.qcow2");
  await makeImage({ path: cow, format: "qcow2", virtualBytes: 16 * 2 ** 40 });
  t.ok(allocated(cow) < MIB);
  await t.rejects(makeImage({ path: join(directory, "b.qcow2"), format: "qcow2", virtualBytes: 2 ** 60 }), { code: "disk-failed" });
  t.notOk(existsSync(join(directory, "b.qcow2")), "nothing is left");
  t.same(localDisks({
    ...(kinds[0]?.spec.qemu ?? { memoryBytes: 0, cpus: 1, kernel: "", initrd: "", append: "", extraArgs: [] }), disks: ["/s.raw", "/l.img", "/t.img"],
    diskOptions: [{ path: "/l.img", shared: false, format: "qcow2" }, { path: "/t.img", shared: true, format: "qcow2" }],
  }), [{ path: "/l.img", format: "qcow2", local: true }]);
});
