import t, { type Test } from "tap";
import { readFileSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parse, stringify } from "yaml";
import { z } from "zod";
import { fleet } from "../../deploy/lab/fleet.js";
import { Lab, whereSchema } from "../../deploy/lab/lab.js";
import { leftOver } from "../../deploy/lab/registry.js";
import { Sessions, type SessionAnswer } from "../../deploy/lab/sessions.js";
import { Running } from "./running.js";
import { mostAtOnce, Watched, wayOf } from "./watched.js";

/** Twenty small real guests on one host, each with an open TCP session, and the host is drained. */

const COUNT = Number(process.env["CAREOF_FLEET"] ?? 20);
/** The smallest in which the guest image starts. */
const MEMORY = process.env["CAREOF_FLEET_MEMORY"] ?? "96M";
/** Guests that start at a time: on two cores more of them only wait for each other. */
const STARTING = 3;
/** VMs that a drain moves at a time, and `migrate --all`, where nobody says otherwise. */
const LIMIT = 2;
/** For what comes by itself in a second or so; how long is not asked. */
const COMES_MS = 90_000;
/** Between two questions on every session. */
const BETWEEN_MS = 500;

const drainSchema = z.looseObject({
  host: z.string(), state: z.string(), limit: z.number(), total: z.number(), moved: z.number(), moving: z.number(), waiting: z.number(), left: z.number(),
  vms: z.array(z.looseObject({ vm: z.string(), state: z.string(), to: z.string().nullable() })),
});
const movesSchema = z.array(z.looseObject({ vm: z.string(), from: z.string().nullable(), to: z.string(), result: z.string(), pauseMs: z.number().nullable(), totalMs: z.number().nullable() }));
const hostsSchema = z.array(z.looseObject({ name: z.string(), draining: z.boolean(), vms: z.array(z.string()) }));

const yamlSchema = z.record(z.string(), z.unknown());

const guests = fleet(COUNT, MEMORY);
const lab = await Lab.start({ fleet: guests });
let sessions: Sessions | null = null;
t.teardown(async () => {
  sessions?.close();
  await lab.close();
});

async function onHost(host: string): Promise<readonly string[]> {
  // Not by the command, which takes as long to start as a guest takes to move.
  return hostsSchema.parse((await lab.http("GET", "/v1/hosts")).body).find((each) => each.name === host)?.vms ?? [];
}

/** Asks on every session again and again while `run` lasts. */
async function used<T>(of: Sessions, run: () => Promise<T>): Promise<{ readonly result: T; readonly answers: readonly (readonly SessionAnswer[])[] }> {
  const answers: (readonly SessionAnswer[])[] = [];
  let over = false;
  const use = async (): Promise<void> => {
    while (!over) {
      answers.push(await of.ask());
      await sleep(BETWEEN_MS);
    }
  };
  const [result] = await Promise.all([run().finally(() => { over = true; }), use()]);
  return { result, answers };
}

await t.test("the guests start, a few at a time, and each has an open session", { timeout: 600_000 }, async (t) => {
  const began = Date.now();
  const waiting = [...guests];
  const lane = async (): Promise<void> => {
    for (let guest = waiting.shift(); guest !== undefined; guest = waiting.shift()) {
      const started = await lab.careof(["start", guest.name, "host-a"], 120_000);
      if (started.code !== 0) throw new Error(`${guest.name}: ${started.stderr}`);
      // Until it answers: started means that it runs, and it has still to boot.
      await Sessions.open(lab.namespace("c"), [guest.address]).then((one) => { one.close(); });
    }
  };
  await Promise.all(Array.from({ length: STARTING }, lane));
  sessions = await Sessions.open(lab.namespace("c"), guests.map((guest) => guest.address));
  const first = await sessions.ask();
  t.comment(`${String(COUNT)} guests of ${MEMORY} answer after ${String(Math.round((Date.now() - began) / 1000))} s`);
  t.strictSame(first.map((each) => each.error), guests.map(() => null));
  t.equal((await onHost("host-a")).length, COUNT);
});

await t.test("the host is drained: interrupted, gone on with, across a restart of the home agent; no session is lost", { timeout: 600_000 }, async (t) => {
  if (sessions === null) throw new Error("there are no sessions");
  const before = await sessions.ask();
  const began = Date.now();
  const { answers } = await used(sessions, () => interruptedAndGoneOnWith(t));
  t.comment(`drained in ${String(Math.round((Date.now() - began) / 1000))} s, and asked on every session ${String(answers.length)} times meanwhile`);
  t.strictSame(await onHost("host-a"), []);
  t.equal((await onHost("host-b")).length, COUNT);

  const after = await sessions.ask();
  t.ok(answers.length > 3, "the sessions were used while the guests moved", { found: answers.length });
  t.strictSame(answers.flat().filter((each) => each.error !== null), [], "and each question was answered");
  t.strictSame(after.map((each) => each.error), guests.map(() => null), "each session answers");
  t.strictSame(after.map((each) => each.instance), before.map((each) => each.instance), "and it is the same guest, which never started again");
  t.strictSame(after.map((each) => (each.counter ?? 0) - answers.length - 1), before.map((each) => each.counter), "that has missed nothing");
});

async function interruptedAndGoneOnWith(t: Test): Promise<void> {
  const watched = await Watched.start(t, lab);
  const first = Running.piped(t, lab, ["drain", "host-a", "--output", "json"]);
  await lab.until("some VMs have moved", 120_000, async () => (await onHost("host-b")).length >= 3);
  t.match(await lab.http("POST", "/v1/migrations", JSON.stringify({ vm: guests[0]?.name, host: "host-a" })), { status: 409, body: { code: "host-draining" } }, "the host takes no VMs");
  first.interrupt();
  t.equal(await first.ended, 1, "not every VM is away");
  const stopped = drainSchema.parse(JSON.parse(first.out));
  t.match(stopped, { state: "interrupted", limit: LIMIT, moving: 0, left: 0, total: COUNT });
  t.comment(JSON.stringify({ moved: stopped.moved, lines: first.said.length }));
  t.ok(stopped.moved >= 3 && stopped.moved < COUNT, "what moved has arrived, the rest has not begun", { found: stopped.moved });
  t.ok(first.said.some((line) => /vm\d\d → host-b .*paused/.test(line)), "progress names each move", { found: first.said });
  t.ok(first.said.some((line) => line.startsWith("no other VM begins to move")), "Ctrl-C says what it does", { found: first.said });
  await lab.until("watch has told it", COMES_MS, () => Promise.resolve(watched.drains.at(-1)?.state === "interrupted"));
  t.equal(mostAtOnce(watched.moves), LIMIT, "as many as the limit at once, and never more");
  t.equal(new Set(watched.moves.map((each) => each.migration)).size, stopped.moved, "nothing has begun that has not arrived");

  const second = lab.careof(["drain", "host-a", "--output", "json"], 280_000);
  await lab.until("more have moved", 120_000, async () => (await onHost("host-b")).length > stopped.moved);
  await lab.endPart("home-agent", "SIGKILL");
  await sleep(500);
  lab.startPart("home-agent");
  await lab.connected(["host-a", "host-b"], COMES_MS);
  // Another one: what ended while there was no home agent, the first has not heard.
  const later = await Watched.start(t, lab);
  const answer = await second;
  t.equal(answer.code, 0, `${answer.stderr} ${answer.stdout}`);
  t.match(drainSchema.parse(JSON.parse(answer.stdout)), { state: "completed", moving: 0, waiting: 0, left: 0 });
  await lab.until("watch has told the end", COMES_MS, () => Promise.resolve(later.drains.at(-1)?.state === "completed"));
  // Without those that it has found under way: they may have ended before it was told of them.
  const most = mostAtOnce(later.moves.filter((each) => wayOf(later.moves, each.migration)[0] === "prepare"));
  t.ok(most > 0 && most <= LIMIT, "nor after the restart", { found: most });
  t.strictSame([...watched.drains, ...later.drains].filter((each) => each.moving > LIMIT), []);
  t.strictSame([await watched.end(), await later.end()], [0, 0]);
}

await t.test("the mark stays until the host is undrained; then VMs come back, all of them by one command", { timeout: 600_000 }, async (t) => {
  if (sessions === null) throw new Error("there are no sessions");
  const one = guests[0]?.name ?? "";
  t.match(await lab.careof(["migrate", one, "host-a"]), { code: 1, stderr: /host-draining/ });
  t.match(await lab.careof(["start", "web2", "host-a"]), { code: 1, stderr: /host-draining/ });
  t.match(await lab.careof(["undrain", "host-a"]), { code: 0, stdout: "host-a takes VMs again\n" });
  const watched = await Watched.start(t, lab);
  const moved = await lab.careof(["migrate", "--all", "--from", "host-b", "host-a", "--output", "json"], 280_000);
  t.equal(moved.code, 0, moved.stderr);
  const moves = movesSchema.parse(JSON.parse(moved.stdout));
  t.strictSame(moves.map(({ vm, from, to, result }) => ({ vm, from, to, result })), guests.map(({ name }) => ({ vm: name, from: "host-b", to: "host-a", result: "completed" })));
  t.equal(mostAtOnce(watched.moves), LIMIT, "a few at a time");
  t.equal(await watched.end(), 0);
  const times = moves.flatMap((each) => (each.totalMs === null ? [] : [each.totalMs])).sort((a, b) => a - b);
  t.comment(`a move takes ${String(times[Math.floor(times.length / 2)])} ms at the median, ${String(times.at(-1))} ms at most`);
  t.match(await lab.json(whereSchema, ["where", one]), { host: "host-a", state: "bound" });
  t.strictSame((await sessions.ask()).map((each) => each.error), guests.map(() => null), "each session answers again");
});

await t.test("a drain to a chosen host: a VM for which it has not enough memory stays where it is, and goes when it has", { timeout: 300_000 }, async (t) => {
  const one = guests[0]?.name ?? "";
  const written = readFileSync(lab.files.homeAgent, "utf8");
  const reload = async (change: object): Promise<void> => {
    writeFileSync(lab.files.homeAgent, stringify({ ...yamlSchema.parse(parse(written)), ...change }));
    t.equal((await lab.http("POST", "/v1/reload", "{}")).status, 200);
  };
  t.match(await lab.http("POST", "/v1/migrations", JSON.stringify({ vm: one, host: "host-b", wait: true })), { status: 202, body: { result: "completed" } });
  // More than any host has.
  await reload({ drain: { reserve: "1000000G" } });
  const full = await lab.careof(["drain", "host-b", "--to", "host-a", "--output", "json"]);
  t.equal(full.code, 1, full.stderr);
  t.match(JSON.parse(full.stdout), { state: "incomplete", to: ["host-a"], moved: 0, left: 1, vms: [{ vm: one, state: "left", to: null, reason: "not-enough-memory" }] });
  t.strictSame(await onHost("host-b"), [one]);
  await reload({});
  const fits = await lab.careof(["drain", "host-b", "--to", "host-a", "--output", "json"]);
  t.equal(fits.code, 0, fits.stderr);
  t.match(JSON.parse(fits.stdout), { state: "completed", to: ["host-a"], moved: 1, left: 0 });
  t.equal((await onHost("host-a")).length, COUNT);
  t.match(await lab.http("POST", "/v1/hosts/host-b/undrain", "{}"), { status: 200 });
  t.strictSame((await sessions?.ask())?.map((each) => each.error), guests.map(() => null), "each session answers still");
});

await t.test("nothing is left", async (t) => {
  sessions?.close();
  t.strictSame(await lab.close(), []);
  t.strictSame(leftOver(lab.run), []);
});
