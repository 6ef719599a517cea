import { randomBytes } from "node:crypto";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { makeImage } from "../../../agent/hypervisor/image.js";
import type { DiskFormat } from "../../../proto/messages.js";
import { epoch, millis } from "../../../model/ids.js";
import { firstDifference, imageOf, readDisk } from "../../lab/disk-contents.js";
import { recorder, until } from "../rig.js";
import { kinds } from "./machines-here.js";
import { Drivers } from "./two-drivers.js";

const MIB = 2 ** 20;
const real = kinds.find(({ name }) => name === "qemu");
const drivers = new Drivers(t);
const base = mkdtempSync(join(tmpdir(), "co-"));
t.teardown(() => { rmSync(base, { recursive: true, force: true }); });

/** Makes an image show a raw one through where it has nothing of its own, as `qemu-img create -b` does. */
function putBehind(path: string, backing: string): void {
  const header = Buffer.alloc(512);
  const name = Buffer.from(backing);
  // Header extension "backing file format", and behind it the end of the extensions.
  header.writeUInt32BE(0xe2792aca, 0);
  header.writeUInt32BE(3, 4);
  header.write("raw", 8, "latin1");
  name.copy(header, 256);
  const at = Buffer.alloc(12);
  at.writeBigUInt64BE(BigInt(104 + 256));
  at.writeUInt32BE(name.length, 8);
  const file = openSync(path, "r+");
  writeSync(file, header, 0, header.length, 104);
  writeSync(file, at, 0, at.length, 8);
  closeSync(file);
}

void t.test("disks of an unusual kind move whole", { skip: real === undefined ? "no QEMU" : real.skip }, async (t) => {
  if (real?.spec.qemu === null || real === undefined) throw new Error("no qemu");
  const { vm, mac, qemu } = real.spec;
  const golden = join(base, "golden.raw");
  await makeImage({ path: golden, format: "raw", virtualBytes: 64 * MIB });
  const data = randomBytes(6 * MIB);
  const file = openSync(golden, "r+");
  writeSync(file, data, 0, data.length, 40 * MIB);
  closeSync(file);
  // One that shows another through, one that ends within a sector, one smaller than a sector.
  const list: readonly { readonly name: string; readonly format: DiskFormat; readonly virtualBytes: number }[] = [
    { name: "overlay.qcow2", format: "qcow2", virtualBytes: 64 * MIB }, { name: "odd.raw", format: "raw", virtualBytes: 3 * MIB + 700 }, { name: "tiny.raw", format: "raw", virtualBytes: 100 },
  ];
  const side = (number: number) => {
    const directory = drivers.directory();
    const disks = list.map((disk) => ({ ...disk, path: join(directory, disk.name) }));
    const diskOptions = disks.map(({ path, format }) => ({ path, format, shared: false }));
    return { directory, disks, spec: { vm, epoch: epoch(number), mac, port: null, qemu: { ...qemu, disks: disks.map(({ path }) => path), diskOptions } } };
  };
  const [a, b] = [side(1), side(2)];
  for (const { path, format, virtualBytes } of a.disks) {
    if (format === "raw") writeFileSync(path, randomBytes(virtualBytes));
    else await makeImage({ path, format, virtualBytes });
  }
  const [overlay, odd, tiny] = a.disks.map(({ path }) => path);
  if (overlay === undefined || odd === undefined || tiny === undefined) throw new Error("three disks");
  putBehind(overlay, golden);

  const source = await drivers.make(real).start(a.spec);
  const sizes = await source.disks.sizes();
  t.same(sizes.map(({ file: name }) => name), a.disks.map(({ path }) => path), "what is behind one is no disk of its own");
  t.ok((sizes[0]?.allocatedBytes ?? 0) >= data.length && (sizes[0]?.allocatedBytes ?? 0) < 8 * MIB, `what shows through wants room, too: ${String(sizes[0]?.allocatedBytes)}`);
  for (const [index, { path, format }] of b.disks.entries()) await makeImage({ path, format, virtualBytes: sizes[index]?.virtualBytes ?? 0 });
  const target = await drivers.make(real).incoming(b.spec);
  const heard = { source: recorder(), target: recorder() };
  source.subscribe(heard.source.take);
  target.subscribe(heard.target.take);
  const nbd = join(b.directory, "nbd.sock");
  const stream = { socket: join(b.directory, "stream.sock"), lead: false, maxBandwidth: 0, downtimeLimitMs: millis(300), autoConverge: false, postcopy: false, channels: 1 };
  await target.disks.exportTo(nbd);
  await target.receive(stream);
  await source.disks.mirror({ socket: nbd, maxBandwidth: 0 });
  await until("ready", () => heard.source.words.includes("disks"));
  await source.send(stream);
  await until("pre-switchover", () => heard.source.words.includes("pre-switchover"));
  await source.disks.finish();
  await target.disks.endExports();
  await source.continueSwitchover();
  await until("completed", () => heard.source.words.includes("completed") && heard.target.words.includes("completed"));
  await target.resume();
  t.equal(await target.status(), "running");
  await source.destroy();
  await target.destroy();

  const copies = b.disks.map(({ path }) => path);
  const [whole = "", oddCopy = "", tinyCopy = ""] = copies;
  t.same(imageOf(whole), { format: "qcow2", virtualBytes: 64 * MIB });
  t.equal(readFileSync(whole).readUInt32BE(16), 0, "it shows nothing through");
  t.ok(readDisk(whole, 40 * MIB, data.length).equals(data), "and has what the old one showed");
  t.equal(firstDifference(whole, golden, 0, 64 * MIB), null);
  t.ok(statSync(whole).blocks * 512 < 8 * MIB, "and no more than that");
  for (const [from, to] of [[odd, oddCopy], [tiny, tinyCopy]] as const) {
    const { size } = statSync(from);
    t.equal(size % 512 === 0 ? 0 : statSync(to).size % 512, 0, "whole sectors");
    truncateSync(to, size);
    t.ok(readFileSync(to).equals(readFileSync(from)), `${from}: byte for byte`);
  }
});
