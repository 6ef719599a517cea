import { spawn, spawnSync } from "node:child_process";
import { appendFileSync, closeSync, fstatSync, ftruncateSync, mkdirSync, openSync, readFileSync, readSync, statSync, unlinkSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import t, { type Test } from "tap";
import { CareofError } from "../../model/errors.js";
import { encodeRecord, readRecords } from "../../home-agent/store/journal-format.js";
import { Journal } from "../../home-agent/store/journal.js";
import { MemoryStore } from "../../home-agent/store/memory-store.js";
import type { Store } from "../../home-agent/store/store.js";
import { temporary } from "./bench.js";

const WRITER = fileURLToPath(new URL("store-writer.js", import.meta.url));

/** How a store is opened, and opened again by what comes after a crash or a rival. */
interface Kind {
  readonly name: string;
  readonly open: (t: Test) => Promise<{ readonly store: Store; readonly again: () => Promise<Store> }>;
}

const KINDS: readonly Kind[] = [
  {
    name: "journal",
    open: async (t) => {
      const directory = join(temporary(t), "state");
      const store = await Journal.open({ directory });
      let open: Store = store;
      t.teardown(() => open.close());
      return {
        store,
        again: async () => {
          await open.close();
          open = await Journal.open({ directory });
          return open;
        },
      };
    },
  },
  {
    name: "memory",
    open: () => {
      const store = new MemoryStore();
      return Promise.resolve({ store, again: () => Promise.resolve(new MemoryStore(store)) });
    },
  },
];

for (const kind of KINDS) {
  await t.test(`${kind.name}: the contract of store.ts`, async (t) => {
    const { store, again } = await kind.open(t);
    const fence = await store.takeOver();
    t.same([...store.entries("")], []);
    t.same(await store.commit(0, fence, { key: "vm/a", value: { n: 1 }, also: [{ key: "history/a", value: [1] }] }), { result: "ok", revision: 1 });
    t.same(await store.commit(0, fence, { key: "vm/a", value: { n: 2 } }), { result: "conflict", revision: 1, fenced: false });
    t.same(await store.commit(2, fence, { key: "vm/a", value: { n: 2 } }), { result: "conflict", revision: 1, fenced: false });
    t.same(await Promise.all([1, 2, 3].map((expected) => store.commit(expected, fence, { key: "vm/a", value: { n: expected + 1 } }))), [2, 3, 4].map((revision) => ({ result: "ok", revision })), "one key in order, without waiting");
    t.same(await Promise.all([store.commit(0, fence, { key: "vm/b", value: "b" }), store.commit(0, fence, { key: "vm/b", value: "c" })]), [{ result: "ok", revision: 1 }, { result: "conflict", revision: 1, fenced: false }]);
    t.same([...store.entries("vm/")], [{ key: "vm/a", value: { n: 4 }, revision: 4 }, { key: "vm/b", value: "b", revision: 1 }]);
    t.same([...store.entries("history/")], [{ key: "history/a", value: [1], revision: 1 }]);
    t.same(await store.commit(1, fence, { key: "vm/b", value: null }), { result: "ok", revision: 2 });
    t.same([...store.entries("vm/b")], [], "removed");
    t.same(await store.commit(0, fence, { key: "vm/b", value: "d" }), { result: "conflict", revision: 2, fenced: false }, "a removed key does not begin anew");

    const next = await again();
    t.same([...next.entries("vm/a")], [{ key: "vm/a", value: { n: 4 }, revision: 4 }]);
    const newer = await next.takeOver();
    t.ok(newer > fence, "fences grow");
    t.same(await next.commit(4, fence, { key: "vm/a", value: "old" }), { result: "conflict", revision: 4, fenced: true }, "an older fence writes nothing");
    t.same(await next.commit(4, newer, { key: "vm/a", value: "new" }), { result: "ok", revision: 5 });
    t.same(await next.commit(2, newer, { key: "vm/b", value: "e" }), { result: "ok", revision: 3 });
    await next.close();
    t.match(await next.commit(5, newer, { key: "vm/a", value: "late" }), { result: "unavailable" });
    await t.rejects(next.takeOver(), { code: "store-unavailable", retryable: true });
  });
}

await t.test("journal: any tail that was torn off is cut, all before it stays", async (t) => {
  const records = Array.from({ length: 6 }, (_, i) => encodeRecord({ writes: [[`k${String(i)}`, { i, text: "ü".repeat(i) }]] }));
  const whole = Buffer.concat(records);
  const ends = records.map((_, i) => Buffer.concat(records.slice(0, i + 1)).length);
  t.equal(readRecords(whole).records.length, 6);
  fc.assert(fc.property(fc.nat({ max: whole.length }), fc.uint8Array({ maxLength: 30 }), (cut, garbage) => {
    const read = readRecords(Buffer.concat([whole.subarray(0, cut), garbage]));
    const kept = ends.filter((end) => end <= cut).length;
    return read.records.length >= kept && (read.end >= (ends[kept - 1] ?? 0));
  }));
  fc.assert(fc.property(fc.nat({ max: whole.length - 1 }), fc.integer({ min: 1, max: 255 }), (at, flip) => {
    const broken = Buffer.from(whole);
    broken[at] = (broken[at] ?? 0) ^ flip;
    return readRecords(broken).records.length <= ends.filter((end) => end <= at).length;
  }));

  const directory = join(temporary(t), "state");
  const first = await Journal.open({ directory });
  const fence = await first.takeOver();
  await first.commit(0, fence, { key: "a", value: 1 });
  await first.close();
  const before = readFileSync(join(directory, "journal"));
  appendFileSync(join(directory, "journal"), encodeRecord({ writes: [["b", 1]] }).subarray(0, 11));
  const second = await Journal.open({ directory });
  t.equal(second.cut, 11);
  t.same(readFileSync(join(directory, "journal")).subarray(0, before.length), before);
  t.equal(readRecords(readFileSync(join(directory, "journal"))).corrupt, false);
  t.same([...second.entries("")].map((row) => row.key), ["a"]);
  t.match(await second.commit(1, await second.takeOver(), { key: "a", value: 2 }), { result: "ok", revision: 2 });
  await second.close();
  writeFileSync(join(directory, "journal"), encodeRecord({ unknown: 1 }));
  await t.rejects(Journal.open({ directory }), { code: "store-corrupt" });
});

await t.test("journal: whatever byte the disk spoils, what was acknowledged is there, or the journal is refused and stays as it is", async (t) => {
  const directory = join(temporary(t), "state");
  const file = join(directory, "journal");
  const first = await Journal.open({ directory });
  const fence = await first.takeOver();
  // Some in one batch, some by themselves.
  await Promise.all(Array.from({ length: 8 }, (_, i) => first.commit(i, fence, { key: "a", value: i })));
  for (let i = 8; i < 20; i++) await first.commit(i, fence, { key: "a", value: i });
  await first.close();
  const whole = readFileSync(file);
  const outcomes = { kept: 0, refused: 0 };
  for (let at = 0; at < whole.length; at++) {
    const spoilt = Buffer.from(whole);
    spoilt[at] = (spoilt[at] ?? 0) ^ (1 << at % 8);
    writeFileSync(file, spoilt);
    try {
      const again = await Journal.open({ directory });
      const row = [...again.entries("a")][0];
      const newer = await again.takeOver();
      await again.close();
      if (row?.revision !== 20 || newer <= fence) t.fail(`byte ${String(at)}: revision ${String(row?.revision)}, fence ${String(newer)}`);
      outcomes.kept += 1;
    } catch (thrown) {
      if (!(thrown instanceof CareofError) || thrown.code !== "store-corrupt") throw thrown;
      if (!readFileSync(file).equals(spoilt)) t.fail(`byte ${String(at)}: changed`);
      outcomes.refused += 1;
    }
  }
  t.ok(outcomes.refused > 19 * 20 && outcomes.kept > 0, JSON.stringify(outcomes));

  // Of a batch that was never acknowledged the machine's crash may have kept the later part only.
  const records = ["b", "c"].map((key) => encodeRecord({ writes: [[key, 1]], synced: whole.length }));
  writeFileSync(file, Buffer.concat([whole, Buffer.alloc(records[0]?.length ?? 0), records[1] ?? Buffer.alloc(0)]));
  const torn = await Journal.open({ directory });
  t.same([...torn.entries("")].map(({ key, revision }) => [key, revision]), [["a", 20]]);
  t.equal(torn.cut, records.reduce((sum, record) => sum + record.length, 0));
  await torn.close();
});

await t.test("journal: rewritten when it has grown, nothing lost on the way", async (t) => {
  const directory = join(temporary(t), "state");
  const journal = await Journal.open({ directory, compactAbove: 5000 });
  const fence = await journal.takeOver();
  for (let revision = 0; revision < 300; revision++) {
    await Promise.all([0, 1, 2].map((i) => journal.commit(revision, fence, { key: `k${String(i)}`, value: { i, revision, fill: "y".repeat(50) } })));
  }
  await journal.commit(300, fence, { key: "k2", value: null });
  t.ok(statSync(join(directory, "journal")).size < 20_000, "small again");
  await journal.close();
  const again = await Journal.open({ directory });
  t.teardown(() => again.close());
  t.match([...again.entries("")], [{ key: "k0", revision: 300, value: { revision: 299 } }, { key: "k1", revision: 300 }]);
  t.same(await again.commit(301, await again.takeOver(), { key: "k2", value: 1 }), { result: "ok", revision: 302 }, "a removed key keeps its revision");
});

/** A mount namespace of its own, with a small tmpfs at `directory`: a disk that can be full without any other process noticing. */
const SMALL_DISK = 'mount -t tmpfs -o size=64k careof "$0" && echo mounted && exec cat';
const mayMount = spawnSync("unshare", ["--mount", "mount", "-t", "tmpfs", "careof", tmpdir()]).status === 0;

await t.test("journal: what the disk does not take is not acknowledged; when it takes it again, all goes on", { skip: mayMount ? false : "a full disk needs a mount namespace, and this process may not make one (root)" }, async (t) => {
  const mountPoint = join(temporary(t), "disk");
  mkdirSync(mountPoint);
  const disk = spawn("unshare", ["--mount", "bash", "-c", SMALL_DISK, mountPoint], { stdio: ["pipe", "pipe", "inherit"] });
  t.teardown(() => { disk.stdin.end(); });
  await once(disk.stdout, "data");
  const inside = `/proc/${String(disk.pid)}/root${mountPoint}`;
  const ballast = join(inside, "ballast");
  const file = openSync(ballast, "w");
  const page = Buffer.alloc(4096, 1);
  t.throws(() => { for (;;) writeSync(file, page); }, { code: "ENOSPC" });
  // What is left is enough for the lock and the journal's first page, not for two commits of each writer.
  ftruncateSync(file, fstatSync(file).size - 2 * page.length);
  closeSync(file);

  const child = spawn("nsenter", ["--mount", `--target=${String(disk.pid)}`, process.execPath, WRITER, mountPoint], { stdio: ["ignore", "pipe", "inherit"] });
  const lines: string[] = [];
  createInterface({ input: child.stdout }).on("line", (line) => { lines.push(line); });
  const refused = (writer: number): number => lines.filter((line) => line === `unavailable vm/${String(writer)}`).length;
  const acknowledged = (): readonly string[] => lines.filter((line) => line.startsWith("vm/"));
  const seen = async (what: string, holds: () => boolean): Promise<void> => {
    const end = Date.now() + 20_000;
    while (!holds()) {
      if (Date.now() > end) throw new Error(`${what}: ${lines.join(", ")}`);
      await sleep(5);
    }
  };
  const writers = [0, 1, 2, 3, 4, 5, 6, 7];
  try {
    await seen("every writer is refused", () => writers.every((writer) => refused(writer) > 0));
    const before = acknowledged();
    await seen("and refused again", () => writers.every((writer) => refused(writer) > 3));
    t.same(acknowledged(), before, "a full disk acknowledges nothing");
    unlinkSync(ballast);
    await seen("writes succeed again", () => writers.every((writer) => acknowledged().filter((line) => line.startsWith(`vm/${String(writer)} `)).length > 3));
  } finally {
    const over = child.exitCode === null && child.signalCode === null ? once(child, "exit") : null;
    child.kill("SIGKILL");
    await over;
  }
  const journal = await Journal.open({ directory: inside });
  for (const line of acknowledged()) {
    const [key = "", revision = ""] = line.split(" ");
    if (([...journal.entries(key)][0]?.revision ?? 0) < Number(revision)) t.fail(`${line} was acknowledged and is not there`);
  }
  t.match(await journal.commit(0, 1e9, { key: "x".repeat(300), value: 2 }), { result: "unavailable" }, "a key that is too long");
  await journal.close();
});

await t.test("I6: a process killed at any moment has on disk all that it acknowledged", async (t) => {
  const directory = join(temporary(t), "state");
  const acknowledged = new Map<string, number>();
  for (let round = 0; round < 6; round++) {
    const output = join(directory, `../acknowledged-${String(round)}`);
    const file = openSync(output, "w+");
    const child = spawn(process.execPath, [WRITER, directory], { stdio: ["ignore", file, "inherit"] });
    while (fstatSync(file).size < 2000) await sleep(5);
    await sleep(Math.random() * 60);
    child.kill("SIGKILL");
    await once(child, "exit");
    const text = Buffer.alloc(fstatSync(file).size);
    readSync(file, text, 0, text.length, 0);
    closeSync(file);
    const lines = text.toString().split("\n").slice(0, -1);
    for (const line of lines) {
      const [key = "", revision = "0"] = line.split(" ");
      acknowledged.set(key, Math.max(acknowledged.get(key) ?? 0, Number(revision)));
    }
    const journal = await Journal.open({ directory });
    for (const [key, revision] of acknowledged) {
      const row = [...journal.entries(key)][0];
      const also = [...journal.entries(key.replace("vm/", "also/"))][0];
      if ((row?.revision ?? 0) < revision) t.fail(`${key}: acknowledged ${String(revision)}, on disk ${String(row?.revision)}`);
      if (row?.revision !== also?.revision) t.fail(`${key}: half of a commit is there`);
    }
    await journal.close();
    t.ok(lines.length > 50, `round ${String(round)}: ${String(lines.length)} acknowledged`);
  }
  t.ok(readFileSync(join(directory, "journal")).length > 0);
});
