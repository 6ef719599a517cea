import t, { type Test } from "tap";
import { randomBytes } from "node:crypto";
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, statSync, writeFileSync, writeSync } from "node:fs";
import { join, relative } from "node:path";
import { z } from "zod";
import { makeImage } from "../../agent/hypervisor/image.js";
import { must } from "../../deploy/lab/command.js";
import { OWN_DISKS } from "../../deploy/lab/files.js";
import { fleet } from "../../deploy/lab/fleet.js";
import { Lab } from "../../deploy/lab/lab.js";
import { HOSTS, PLAN, type HostName } from "../../deploy/lab/plan.js";
import { Witness } from "../../deploy/lab/witness.js";
import { firstDifference, imageOf, readDisk, type Image } from "./disk-contents.js";

/** A real guest with three disks that only its host sees, a raw and a qcow2 one that it writes to all the time, and a large sparse one. */

const MIB = 2 ** 20;
/** For what comes by itself in a second or some; none of it is about speed. */
const COMES_MS = 90_000;
const RAW = "web1.raw";
const COW = "web1.img";
const SPARSE = "sparse.raw";
const SPARSE_BYTES = 4 * 2 ** 30;
const IMAGES: Readonly<Record<string, Image>> = {
  [RAW]: { format: "raw", virtualBytes: 256 * MIB }, [COW]: { format: "qcow2", virtualBytes: 192 * MIB }, [SPARSE]: { format: "raw", virtualBytes: SPARSE_BYTES },
};
const SPARSE_DATA = { offset: 3 * 2 ** 30, bytes: 2 * MIB };
/** deploy/guest-image/init: random bytes from the first on, then numbered blocks from here on. */
const JOURNAL = 64 * MIB;
const BLOCK = 4096;
/** Far more blocks than the guest writes while two files are compared. */
const MEANWHILE = 4000;
/** What the guest has written takes some seconds at this rate, and its memory may need more than that. */
const SLOW = ["--bandwidth", "8M", "--timeout", "40", "--on-timeout", "force"];

const local = (name: string, format: "raw" | "qcow2"): object => ({ path: join(OWN_DISKS, name), shared: false, format });
const [large] = fleet(1, "96M").map((guest) => ({ ...guest, disks: [local("small/large.raw", "raw")] }));
if (large === undefined) throw new Error("no fleet");

t.setTimeout(600_000); // a busy machine
const lab = await Lab.make({ witnessed: true, agent: { disks: { keepMoved: true } }, disks: [local(RAW, "raw"), local(COW, "qcow2"), local(SPARSE, "raw")], fleet: [large] });
t.teardown(() => lab.close());
const at = (host: HostName, name: string): string => join(lab.disksOf(host), name);
const allocated = (path: string): number => statSync(path).blocks * 512;
/** Of which any may go while they are listed. */
const files = (host: HostName): string[] => readdirSync(lab.disksOf(host), { recursive: true, withFileTypes: true })
  .filter((each) => !each.isDirectory()).map(({ name, parentPath }) => relative(lab.disksOf(host), join(parentPath, name))).sort();

for (const [name, image] of Object.entries(IMAGES)) await makeImage({ path: at("host-a", name), ...image });
const sparse = openSync(at("host-a", SPARSE), "r+");
writeSync(sparse, randomBytes(SPARSE_DATA.bytes), 0, SPARSE_DATA.bytes, SPARSE_DATA.offset);
closeSync(sparse);
for (const host of HOSTS) mkdirSync(at(host, "small"));
writeFileSync(at("host-a", "small/large.raw"), randomBytes(40 * MIB));
// Below the lab's directory: it goes with it.
await must(["mount", "-t", "tmpfs", "-o", "size=24m", "careof-lab", at("host-b", "small")]);

for (const part of ["home-agent", ...HOSTS] as const) lab.startPart(part);
await lab.connected(HOSTS, COMES_MS);
const witness = new Witness(lab);
t.teardown(() => { witness.close(); });

/** The witness hears it by another way than the home agent. */
async function runsAt(host: HostName): Promise<void> {
  await lab.until(`the guest runs at ${host}, and nowhere else`, COMES_MS, () => Promise.resolve(witness.running().join() === host));
}

/** Numbers in a row from the first on: what the guest has written and knows to be on its disk. */
function journal(path: string): number {
  let count = 0;
  while (readDisk(path, JOURNAL + count * BLOCK, BLOCK).toString("latin1") === `${String(count).padEnd(BLOCK - 1)}\n`) count++;
  return count;
}

async function writesOn(host: HostName): Promise<void> {
  for (const name of [RAW, COW]) {
    const before = journal(at(host, name));
    await lab.until(`the guest writes to ${name}`, COMES_MS, () => Promise.resolve(journal(at(host, name)) > before + 5));
  }
}

const viewSchema = z.looseObject({ migration: z.string(), phase: z.string(), result: z.string().nullable(), progress: z.looseObject({ diskCopied: z.number(), diskTotal: z.number() }).nullable() });

/** Begins a move that takes some time, and returns when bytes of the disks are being copied. */
async function begin(host: HostName): Promise<string> {
  const begun = await lab.http("POST", "/v1/migrations", JSON.stringify({ vm: PLAN.guest.name, host, bandwidth: 3_000_000 }));
  const { migration } = viewSchema.parse(begun.body);
  await lab.until("bytes of the disks are copied", COMES_MS, async () => ((await view(migration)).progress?.diskCopied ?? 0) > 0);
  return migration;
}

async function view(migration: string): Promise<z.infer<typeof viewSchema>> {
  return viewSchema.parse((await lab.http("GET", `/v1/migrations/${encodeURIComponent(migration)}`)).body);
}

async function failed(t: Test, migration: string): Promise<void> {
  await lab.until("the move has ended", COMES_MS, async () => (await view(migration)).result !== null);
  t.not((await view(migration)).result, "completed");
  t.match(await lab.where(), { state: "bound", host: "host-a" });
  await runsAt("host-a");
  await lab.until("no file is left at the target", COMES_MS, () => Promise.resolve(files("host-b").length === 0));
  await writesOn("host-a");
}

// Of a guest of its own, and before the other is there: a witness watches one at a time.
await t.test("no room: refused with the reason, and nothing is made", async (t) => {
  t.equal((await lab.careof(["start", large.name, "host-a"], 90_000)).code, 0);
  const refused = await lab.careof(["migrate", large.name, "host-b"]);
  t.equal(refused.code, 1);
  t.match(refused.stdout, /no-room/);
  t.match(refused.stdout, /small has room for [0-9]+ MB and the disks of vm01 take [0-9]+ MB/);
  t.match(await lab.where(large.name), { state: "bound", host: "host-a" });
  t.strictSame(files("host-b"), []);
  t.equal((await lab.http("POST", `/v1/vms/${large.name}/stop`, JSON.stringify({ force: true }))).status, 200);
  await lab.until("it is stopped", COMES_MS, () => Promise.resolve(witness.running().length === 0));
});

await t.test("the guest starts, and writes", async (t) => {
  await lab.startGuest("host-a");
  await lab.until("numbered blocks are on both disks", COMES_MS, () => Promise.resolve(journal(at("host-a", RAW)) > 5 && journal(at("host-a", COW)) > 5));
  t.ok(existsSync(at("host-a", RAW)));
});

await t.test("a file in the way: refused, and left alone", async (t) => {
  writeFileSync(at("host-b", COW), "somebody's");
  const refused = await lab.careof(["migrate", PLAN.guest.name, "host-b"]);
  t.equal(refused.code, 1);
  t.match(refused.stdout, /disk-exists/);
  t.strictSame(files("host-b"), [COW]);
  t.equal(statSync(at("host-b", COW)).size, 10);
  await must(["rm", at("host-b", COW)]);
});

await t.test("cancelled while the disks are copied: no file is left, the guest writes on", async (t) => {
  const migration = await begin("host-b");
  t.strictSame(files("host-b"), [SPARSE, COW, RAW].sort());
  t.equal((await lab.http("DELETE", `/v1/migrations/${encodeURIComponent(migration)}`)).status, 202);
  await failed(t, migration);
});

for (const [which, host] of [["target", "host-b"], ["source", "host-a"]] as const) {
  await t.test(`the ${which}'s agent is killed while the disks are copied: the same, once it is back`, async (t) => {
    const migration = await begin("host-b");
    await lab.endPart(host, "SIGKILL");
    lab.startPart(host);
    await lab.connected(HOSTS, COMES_MS);
    await failed(t, migration);
  });
}

const MOVES = [["host-a", "host-b", SLOW], ["host-b", "host-a", ["--channels", "2"]], ["host-a", "host-b", ["--no-encrypt"]], ["host-b", "host-a", ["--no-encrypt", "--channels", "2"]]] as const;
for (const [index, [from, to, options]] of MOVES.entries()) {
  await t.test(`it moves to ${to} with its disks, writing all the time${index > 1 ? ", in clear" : ""}`, async (t) => {
    const epoch = (await lab.where()).epoch;
    const before = journal(at(from, RAW));
    const moved = await lab.careof(["migrate", PLAN.guest.name, to, "--output", "json", ...options], 180_000);
    t.comment(moved.stdout.trim());
    t.equal(moved.code, 0, moved.stderr);
    if (index === 0) t.match(moved.stderr, / disks [0-9]+% {2}[0-9.]+ [kMG]?B left {2}[0-9.]+ [kMG]?B\/s {2}[0-9.]+ (s|min)( left)?$/m, "progress with rate and time left");
    t.match(await lab.where(), { state: "bound", host: to });
    t.strictSame(witness.doubles(), [], "the guest never ran twice");
    await runsAt(to);
    await writesOn(to);
    const kept = (await lab.where()).epoch;
    t.ok(kept > epoch);
    await lab.until("the source's files are set aside", COMES_MS, () => Promise.resolve(files(from).includes(`${RAW}.moved-${String(kept)}`)));
    for (const [name, image] of Object.entries(IMAGES)) {
      t.notOk(existsSync(at(from, name)), `${name} is not where it was`);
      t.strictSame(imageOf(at(to, name)), image, `${name} has its size and format`);
    }
    for (const name of [RAW, COW]) {
      const { virtualBytes } = IMAGES[name] ?? { virtualBytes: 0 };
      const old = at(from, `${name}.moved-${String(kept)}`);
      const blocks = journal(old);
      if (name === RAW && index === 0) t.ok(blocks > before + 5, `the guest wrote during the copy: ${String(before)} to ${String(blocks)}`);
      const stopped = JOURNAL + blocks * BLOCK;
      t.equal(firstDifference(at(to, name), old, 0, stopped), null, `${name}: byte for byte up to what it wrote last before it stopped`);
      const since = journal(at(to, name));
      t.ok(since >= blocks, `${name}: and behind it what it has written since`);
      const behind = JOURNAL + (since + MEANWHILE) * BLOCK;
      t.equal(firstDifference(at(to, name), old, behind, virtualBytes), null, `${name}: and byte for byte behind that, up to the disk's end`);
      t.ok(behind < virtualBytes && stopped < behind);
    }
    const old = at(from, `${SPARSE}.moved-${String(kept)}`);
    t.equal(firstDifference(at(to, SPARSE), old, 0, SPARSE_BYTES), null, `${SPARSE}: byte for byte`);
    t.notOk(readDisk(old, SPARSE_DATA.offset, SPARSE_DATA.bytes).equals(Buffer.alloc(SPARSE_DATA.bytes)), "and there is something in it");
    t.ok(allocated(at(to, SPARSE)) < 4 * MIB, `holes stay holes: ${String(allocated(at(to, SPARSE)))} bytes are taken`);
    // The way back needs the names.
    for (const name of files(from)) if (name.includes(".moved-")) await must(["rm", at(from, name)]);
  });
}

await t.test("stopped, its disks hold every block that it wrote", async (t) => {
  t.equal((await lab.http("POST", `/v1/vms/${PLAN.guest.name}/stop`, JSON.stringify({ force: true }))).status, 200);
  await lab.until("it is stopped", COMES_MS, () => Promise.resolve(witness.running().length === 0));
  for (const name of [RAW, COW]) t.ok(journal(at("host-a", name)) > 10);
  t.strictSame(files("host-b"), []);
  t.strictSame(await lab.close(), []);
});
