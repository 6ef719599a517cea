import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { checkDisks, describeDisks, removeDisks, retireDisks } from "../../agent/disk-files.js";
import { epoch } from "../../model/ids.js";
import type { DiskImage, VmSpec } from "../../proto/messages.js";
import { specOf } from "./rig.js";

const directory = mkdtempSync(join(tmpdir(), "co-"));
t.teardown(() => { rmSync(directory, { recursive: true, force: true }); });
const raw = join(directory, "a.raw");
const cow = join(directory, "b.img");
const shared = join(directory, "shared.raw");
const spec: VmSpec = specOf({ disks: [shared, raw, cow], diskOptions: [{ path: raw, shared: false, format: "raw" }, { path: cow, shared: false, format: "qcow2" }] });
const images: readonly DiskImage[] = describeDisks(spec, [{ disk: 1, virtualBytes: 2 ** 32, allocatedBytes: 1000 }, { disk: 2, virtualBytes: 2 ** 20, allocatedBytes: 2000 }]);

t.test("what moves is what only the host sees", (t) => {
  t.same(images, [{ path: raw, format: "raw", virtualBytes: 2 ** 32, allocatedBytes: 1000 }, { path: cow, format: "qcow2", virtualBytes: 2 ** 20, allocatedBytes: 2000 }]);
  t.same(describeDisks(specOf(), []), []);
  t.end();
});

t.test("what cannot be is refused, and nothing is made", (t) => {
  checkDisks(spec, images);
  const large = images.map((image) => ({ ...image, allocatedBytes: 2 ** 52 }));
  t.throws(() => { checkDisks(spec, large); }, { code: "no-room", message: /has room for [0-9]+ MB and the disks of web1 take [0-9]+ MB/ });
  t.throws(() => { checkDisks(spec, images.slice(1)); }, { code: "disk-failed", message: /stop and start it first/ }, "the configuration was changed since it was started");
  t.throws(() => { checkDisks(specOf(), images); }, { code: "disk-failed" });
  const nowhere = { path: join(directory, "none", "a.raw"), shared: false, format: "raw" as const };
  t.throws(() => { checkDisks(specOf({ disks: [nowhere.path], diskOptions: [nowhere] }), [{ path: nowhere.path, format: "raw", virtualBytes: 1, allocatedBytes: 1 }]); }, { code: "disk-failed", message: /no directory/ });
  t.same(readdirSync(directory), []);
  writeFileSync(cow, "somebody's");
  t.throws(() => { checkDisks(spec, images); }, { code: "disk-exists", message: /b\.img/ });
  t.ok(existsSync(cow));
  rmSync(cow);
  t.end();
});

t.test("after a move the source's files are removed, or set aside; a shared disk never", (t) => {
  const make = (): void => { for (const path of [shared, raw, cow]) writeFileSync(path, path); };
  make();
  retireDisks(spec, epoch(7), true);
  retireDisks(spec, epoch(7), true);
  t.same(readdirSync(directory).sort(), ["a.raw.moved-7", "b.img.moved-7", "shared.raw"]);
  make();
  retireDisks(spec, epoch(9), false);
  retireDisks(spec, epoch(9), false);
  t.same(readdirSync(directory).sort(), ["a.raw.moved-7", "b.img.moved-7", "shared.raw"]);
  removeDisks([`${raw}.moved-7`, `${cow}.moved-7`, raw]);
  t.same(readdirSync(directory), ["shared.raw"]);
  t.end();
});
