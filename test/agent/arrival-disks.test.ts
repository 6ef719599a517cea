import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, rmdirSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { FakeHypervisor } from "../../agent/hypervisor/qemu-fake.js";
import { migrationFile } from "../../agent/record-shapes.js";
import { Records } from "../../agent/records.js";
import { ipAddress } from "../../model/address.js";
import { CareofError } from "../../model/errors.js";
import { epoch, hostId, migrationId, vmId } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import { clock, Host, PARAMETERS, specOf, until, VM } from "./rig.js";

/** What becomes of the target's disks when its agent was killed and its guest is gone. */
for (const [state, result, kept] of [["prepared", "target-never-ran", false], ["continued", "target-died", true]] as const) {
  void t.test(`${state}: ${result}`, async (t) => {
    const host = new Host("host-b", "10.2.0.2", () => new FakeHypervisor({ clock }));
    t.teardown(() => host.end());
    const disk = join(host.directory, "disk.raw");
    writeFileSync(disk, "what the guest has written");
    new Records(join(host.directory, "migrations"), migrationFile).write(VM, {
      migration: migrationId(VM, epoch(2)), side: "target", state, epoch: epoch(2), peer: hostId("host-a"), peerLocator: ipInIp(ipAddress("10.1.0.2")),
      spec: specOf({ disks: [disk], diskOptions: [{ path: disk, shared: false, format: "raw" }] }),
      identity: { pid: 1, startTicks: "0", bootId: "another", control: "", console: "" }, stopAt: null, markerAt: null, bytes: 0, madeDisks: [disk], movedDisks: [], fetching: false, postcopy: false,
    });
    await host.boot();
    t.equal((await host.heard("targetEnded")).result, result);
    t.equal(existsSync(disk), kept, kept ? "it may have run, and then these are the only true ones" : "it never ran");
  });
}

for (const [what, network, disk] of [["a disk that cannot be removed keeps nothing of the network", true, false], ["a port that cannot be removed keeps no disk", false, true]] as const) {
  void t.test(`undone: ${what}`, async (t) => {
    const host = new Host("host-b", "10.2.0.2", () => new FakeHypervisor({ clock }));
    t.teardown(() => host.end());
    await host.boot();
    const path = join(host.directory, "disk.raw");
    host.driver.incoming = () => {
      // What is no file is not removed.
      if (!disk) {
        rmSync(path);
        mkdirSync(path);
      }
      return Promise.reject(new CareofError("start-failed", "told to fail"));
    };
    const drop = host.ports.drop.bind(host.ports);
    if (!network) host.ports.drop = () => Promise.reject(new CareofError("kernel-refused", "told to fail"));
    await t.rejects(host.migrations.prepare({
      kind: "prepare", migration: migrationId(VM, epoch(2)), spec: specOf({ disks: [path], diskOptions: [{ path, shared: false, format: "raw" }] }), epoch: epoch(2), source: hostId("host-a"),
      sourceLocator: ipInIp(ipAddress("10.1.0.2")), secret: randomBytes(32), parameters: PARAMETERS, disks: [{ path, format: "raw", virtualBytes: 1 << 20, allocatedBytes: 0 }],
    }), { code: "start-failed" });
    await until("what can be undone is", () => (network ? host.entries() === "" && host.ports.list().length === 0 : !existsSync(path)));
    t.notOk(host.told.some(({ kind }) => kind === "targetEnded"), "and nobody hears that all is");
    if (!network) host.ports.drop = drop;
    if (!disk) rmdirSync(path);
    t.equal((await host.heard("targetEnded")).result, "target-never-ran");
    t.notOk(existsSync(path));
  });
}

void t.test("two guests that come at once: room that the one will fill is not given to the other, until its move is given up", async (t) => {
  const host = new Host("host-b", "10.2.0.2", () => new FakeHypervisor({ clock }));
  t.teardown(() => host.end());
  await host.boot();
  const { bavail, bsize } = statfsSync(host.directory);
  const most = Math.floor(bavail * bsize * 0.6);
  const prepare = async (name: string, number: number): Promise<unknown> => {
    const path = join(host.directory, `${name}.raw`);
    const spec = { ...specOf({ disks: [path], diskOptions: [{ path, shared: false, format: "raw" }] }), vm: vmId(name), homeAddresses: [ipAddress(`198.51.100.${String(number)}`)] };
    return host.migrations.prepare({
      kind: "prepare", migration: migrationId(spec.vm, epoch(2)), spec, epoch: epoch(2), source: hostId("host-a"), sourceLocator: ipInIp(ipAddress("10.1.0.2")), secret: randomBytes(32), parameters: PARAMETERS,
      disks: [{ path, format: "raw", virtualBytes: 1 << 20, allocatedBytes: most }],
    });
  };
  t.match(await prepare("web1", 7), { decision: { reason: "accepted" } });
  await t.rejects(prepare("web2", 8), { code: "no-room", message: /besides/ });
  t.strictSame(readdirSync(host.directory).filter((name) => name.endsWith(".raw")), ["web1.raw"]);
  t.equal(host.migrations.abort({ kind: "abort", migration: migrationId(VM, epoch(2)), vm: VM, reason: "cancelled-by-operator" }), "accepted");
  await host.heard("targetEnded");
  t.match(await prepare("web2", 8), { decision: { reason: "accepted" } });
});
