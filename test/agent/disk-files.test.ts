import { existsSync, linkSync, mkdirSync, mkdtempSync, openSync, readdirSync, renameSync, rmSync, statfsSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { checkDisks, describeDisks, diskFiles, removeDisks, resolved, retireDisks } from "../../agent/disk-files.js";
import type { DiskSize } from "../../agent/hypervisor/disks.js";
import { openFile } from "../../agent/hypervisor/open-files.js";
import { epoch } from "../../model/ids.js";
import type { DiskImage, VmSpec } from "../../proto/messages.js";
import { specOf } from "./rig.js";

const directory = mkdtempSync(join(tmpdir(), "co-"));
t.teardown(() => { rmSync(directory, { recursive: true, force: true }); });
const raw = join(directory, "a.raw");
const cow = join(directory, "b.img");
const shared = join(directory, "shared.raw");
const spec: VmSpec = specOf({ disks: [shared, raw, cow], diskOptions: [{ path: raw, shared: false, format: "raw" }, { path: cow, shared: false, format: "qcow2" }] });
const images: readonly DiskImage[] = describeDisks(spec, [
  { disk: 1, virtualBytes: 2 ** 32, allocatedBytes: 1000, file: raw, open: null }, { disk: 2, virtualBytes: 2 ** 20, allocatedBytes: 2000, file: cow, open: null },
]);
/** As a hypervisor says it, which this process is. */
const opened = (disk: number, file: string): DiskSize => ({ disk, virtualBytes: 1, allocatedBytes: 1, file, open: openFile(process.pid, file) });

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

t.test("room that another guest's disks will take is not there", (t) => {
  const other = (name: string, allocatedBytes: number): DiskImage => ({ path: join(directory, name), format: "raw", virtualBytes: 2 ** 52, allocatedBytes });
  t.throws(() => { checkDisks(spec, images, [other("c.raw", 2 ** 51), other("d.raw", 2 ** 51)]); }, { code: "no-room", message: /has room for 0 MB besides [0-9]+ MB for guests that come as well and the disks of web1 take/ });
  checkDisks(spec, images, [{ ...other("c.raw", 2 ** 51), path: "/proc/c.raw" }, { ...other("c.raw", 2 ** 51), path: "/no/such/c.raw" }]);
  const { bavail, bsize } = statfsSync(directory);
  const most = Math.floor(bavail * bsize * 0.9);
  const large = images.map((image) => ({ ...image, allocatedBytes: Math.floor(bavail * bsize * 0.1) }));
  t.throws(() => { checkDisks(spec, large, [other("c.raw", most)]); }, { code: "no-room" });
  writeFileSync(join(directory, "c.raw"), Buffer.alloc(2 ** 20, 1));
  checkDisks(spec, images, [other("c.raw", 2 ** 20)]);
  rmSync(join(directory, "c.raw"));
  t.end();
});

t.test("after a move the source's files are removed, or set aside; a shared disk never", async (t) => {
  const make = (): ReturnType<typeof diskFiles> => {
    for (const path of [shared, raw, cow]) writeFileSync(path, path);
    for (const path of [raw, cow]) openSync(path, "r");
    return diskFiles(spec, [opened(1, raw), opened(2, cow)]);
  };
  const first = make();
  await retireDisks(first, epoch(7), true);
  await retireDisks(first, epoch(7), true);
  t.same(readdirSync(directory).sort(), ["a.raw.moved-7", "b.img.moved-7", "shared.raw"]);
  const second = make();
  const retiring = retireDisks(second, epoch(9), false);
  t.ok(existsSync(raw), "while a large file is removed everything else goes on");
  await retiring;
  await retireDisks(second, epoch(9), false);
  t.same(readdirSync(directory).sort(), ["a.raw.moved-7", "b.img.moved-7", "shared.raw"]);
  const third = make();
  renameSync(raw, `${raw}.old`);
  writeFileSync(raw, "somebody's");
  t.same(await retireDisks(third, epoch(11), false), [raw], "what has its name by now is another file");
  t.same(readdirSync(directory).sort(), ["a.raw", "a.raw.moved-7", "a.raw.old", "b.img.moved-7", "shared.raw"]);
  const removing = removeDisks([`${raw}.moved-7`]);
  t.ok(existsSync(`${raw}.moved-7`));
  await removing;
  await removeDisks([`${raw}.moved-7`, `${cow}.moved-7`, `${raw}.old`, raw]);
  t.same(readdirSync(directory), ["shared.raw"]);
});

t.test("a move has to do with the files that the hypervisor has open and no others", (t) => {
  const real = join(directory, "real");
  mkdirSync(real);
  symlinkSync(real, join(directory, "link"));
  const file = join(real, "c.raw");
  writeFileSync(file, "c");
  const refused = (disks: readonly string[], size: DiskSize, says: RegExp): void => {
    const diskOptions = disks.filter((path) => path !== shared).map((path) => ({ path, shared: false, format: "raw" as const }));
    t.throws(() => diskFiles(specOf({ disks: [...disks], diskOptions }), [size]), { code: "disk-failed", message: says });
  };
  refused([file], opened(0, file), /runs with .*c\.raw, and not with the file/);
  openSync(file, "r");
  const by = join(directory, "link", "c.raw");
  t.match(diskFiles(specOf({ disks: [by], diskOptions: [{ path: by, shared: false, format: "raw" }] }), [opened(0, file)]), [{ path: file }], "links on the way are resolved");
  t.equal(resolved(by), file);
  const link = join(directory, "c.raw");
  symlinkSync(file, link);
  refused([link], opened(0, link), /symbolic link/);
  refused(["/dev/null"], opened(0, "/dev/null"), /no file/);
  refused([join(directory, "none.raw")], opened(0, file), /there is no/);
  refused([cow], opened(0, file), /there is no/);
  const other = join(directory, "other.raw");
  linkSync(file, other);
  refused([file, other], opened(0, file), /are one file/);
  rmSync(shared);
  symlinkSync(file, shared);
  refused([shared, file], opened(1, file), /are one file/);
  renameSync(file, `${file}.old`);
  writeFileSync(file, "another");
  refused([file], opened(0, file), /not with the file that is at/);
  symlinkSync(join(directory, "nowhere"), raw);
  t.throws(() => { checkDisks(spec, images); }, { code: "disk-exists", message: /a\.raw/ }, "a link that leads nowhere stands in the way too");
  t.end();
});
