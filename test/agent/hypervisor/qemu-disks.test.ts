import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { Guest, GuestEvent } from "../../../agent/hypervisor/driver.js";
import { makeImage } from "../../../agent/hypervisor/image.js";
import { QemuDisks } from "../../../agent/hypervisor/qemu-disks.js";
import { Qmp } from "../../../agent/hypervisor/qmp.js";
import { epoch, millis } from "../../../model/ids.js";
import { clock, sleep, VM } from "../rig.js";
import { kinds } from "./machines-here.js";

const MIB = 2 ** 20;
const LIMIT = millis(10_000);
const PATIENCE_MS = 30_000;
const real = kinds.find(({ name }) => name === "qemu");

/** A source with one disk of 8 MiB, whose events nobody hears, and a target that exports one for it. */
async function sides(test: Pick<typeof t, "teardown">): Promise<{ readonly disks: QemuDisks; readonly heard: GuestEvent[]; readonly target: Guest; readonly nbd: string }> {
  const { spec: { qemu, mac }, make } = real ?? fail("no QEMU");
  if (qemu === null) fail("no qemu");
  const directory = mkdtempSync(join(tmpdir(), "co-"));
  const disk = async (name: string): Promise<string> => {
    const path = join(directory, name);
    await makeImage({ path, format: "raw", virtualBytes: 8 * MIB });
    return path;
  };
  const specWith = (path: string, number: number): Parameters<typeof driver.start>[0] =>
    ({ vm: VM, epoch: epoch(number), mac, port: null, qemu: { ...qemu, disks: [path], diskOptions: [{ path, shared: false, format: "raw" }] } });
  const driver = make(join(directory, "source"));
  const other = make(join(directory, "target"));
  test.teardown(async () => {
    await driver.cleanUp([]);
    await other.cleanUp([]);
    rmSync(directory, { recursive: true, force: true });
  });
  const path = await disk("source.raw");
  writeFileSync(path, randomBytes(8 * MIB));
  const source = await driver.start(specWith(path, 1));
  const target = await other.incoming(specWith(await disk("target.raw"), 2));
  const nbd = join(directory, "nbd.sock");
  await target.disks.exportTo(nbd);
  await source.release();
  const qmp = await Qmp.connect(source.identity.control, clock, LIMIT);
  test.teardown(() => { qmp.close(); });
  const heard: GuestEvent[] = [];
  const disks = new QemuDisks({ pid: source.identity.pid, clock, emit: (event) => heard.push(event), execute: (command, parameters, limit) => qmp.execute(command, parameters, limit ?? LIMIT) });
  return { disks, heard, target, nbd };
}

function fail(why: string): never {
  throw new Error(why);
}

/** What is looked at again and again says it in the end. */
async function looked(disks: QemuDisks, heard: readonly GuestEvent[]): Promise<void> {
  const end = clock.monotonic() + PATIENCE_MS;
  while (heard.length === 0 && clock.monotonic() < end) {
    await disks.progress();
    await sleep(20);
  }
}

void t.test("what QEMU said of a copy while nobody listened", { skip: real?.skip ?? "no QEMU" }, async (t) => {
  await t.test("that both sides are the same", async (t) => {
    const { disks, heard, nbd } = await sides(t);
    await disks.mirror({ socket: nbd, maxBandwidth: 0 });
    await looked(disks, heard);
    t.same(heard, [{ kind: "disks", status: "ready", detail: "" }]);
    const { copied, total } = await disks.progress();
    t.same([copied, total, heard.length], [8 * MIB, 8 * MIB, 1], "once");
    disks.take({ name: "BLOCK_JOB_READY", data: { device: "copy-disk0" }, at: clock.monotonic() });
    t.equal(heard.length, 1, "also when it is heard after all");
  });

  await t.test("that it has ended", async (t) => {
    const { disks, heard, target, nbd } = await sides(t);
    await disks.mirror({ socket: nbd, maxBandwidth: MIB });
    await disks.progress();
    t.same(heard, [], "it goes on");
    await target.destroy();
    await looked(disks, heard);
    t.match(heard, [{ kind: "disks", status: "failed" }]);
    await disks.progress();
    t.equal(heard.length, 1, "once");
    await disks.drop();
  });
});
