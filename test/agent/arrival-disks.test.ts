import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { FakeHypervisor } from "../../agent/hypervisor/qemu-fake.js";
import { migrationFile } from "../../agent/record-shapes.js";
import { Records } from "../../agent/records.js";
import { ipAddress } from "../../model/address.js";
import { epoch, hostId, migrationId } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import { clock, Host, specOf, VM } from "./rig.js";

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
