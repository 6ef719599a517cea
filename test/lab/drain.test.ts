import t from "tap";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { fleet } from "../../deploy/lab/fleet.js";
import { Lab, whereSchema } from "../../deploy/lab/lab.js";
import { leftOver } from "../../deploy/lab/registry.js";
import { Sessions } from "../../deploy/lab/sessions.js";

/** Twenty small real guests on one host, each with an open TCP session, and the host is drained. */

const COUNT = Number(process.env["CAREOF_FLEET"] ?? 20);
/** The smallest in which the guest image starts. */
const MEMORY = process.env["CAREOF_FLEET_MEMORY"] ?? "96M";
/** Guests that start at a time: on two cores more of them only wait for each other. */
const STARTING = 3;

const drainSchema = z.looseObject({
  host: z.string(), state: z.string(), limit: z.number(), total: z.number(), moved: z.number(), moving: z.number(), waiting: z.number(), left: z.number(),
  vms: z.array(z.looseObject({ vm: z.string(), state: z.string(), to: z.string().nullable() })),
});
const movesSchema = z.array(z.looseObject({ vm: z.string(), from: z.string().nullable(), to: z.string(), result: z.string(), pauseMs: z.number().nullable(), totalMs: z.number().nullable() }));
const hostsSchema = z.array(z.looseObject({ name: z.string(), draining: z.boolean(), vms: z.array(z.string()) }));

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

await t.test("the guests start, a few at a time, and each has an open session", { timeout: 300_000 }, async (t) => {
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

await t.test("the host is drained: interrupted, gone on with, across a restart of the home agent; no session is lost", { timeout: 300_000 }, async (t) => {
  if (sessions === null) throw new Error("there are no sessions");
  const before = await sessions.ask();
  const began = Date.now();
  const lines: string[] = [];
  const first = lab.careof(["drain", "host-a", "--output", "json"], 280_000, (line) => { lines.push(line); });
  await lab.until("some VMs have moved", 120_000, async () => (await onHost("host-b")).length >= 3);
  t.match(await lab.http("POST", "/v1/migrations", JSON.stringify({ vm: guests[0]?.name, host: "host-a" })), { status: 409, body: { code: "host-draining" } }, "the host takes no VMs");
  t.match(await lab.http("POST", "/v1/hosts/host-a/drain/interrupt", "{}"), { status: 202 });
  const interrupted = await first;
  t.equal(interrupted.code, 1, "not every VM is away");
  const stopped = drainSchema.parse(JSON.parse(interrupted.stdout));
  t.match(stopped, { state: "interrupted", limit: 2, moving: 0, left: 0, total: COUNT });
  t.comment(JSON.stringify({ moved: stopped.moved, lines: lines.length }));
  t.ok(stopped.moved >= 3 && stopped.moved < COUNT, "what moved has arrived, the rest has not begun", { found: stopped.moved });
  t.ok(lines.some((line) => /vm\d\d → host-b .*paused/.test(line)), "progress names each move", { found: lines });

  const second = lab.careof(["drain", "host-a", "--output", "json"], 280_000);
  await lab.until("more have moved", 120_000, async () => (await onHost("host-b")).length > stopped.moved);
  await lab.endPart("home-agent", "SIGKILL");
  await sleep(500);
  lab.startPart("home-agent");
  await lab.connected(["host-a", "host-b"], 30_000);
  const answer = await second;
  t.equal(answer.code, 0, `${answer.stderr} ${answer.stdout}`);
  t.match(drainSchema.parse(JSON.parse(answer.stdout)), { state: "completed", moving: 0, waiting: 0, left: 0 });
  t.comment(`drained in ${String(Math.round((Date.now() - began) / 1000))} s`);
  t.strictSame(await onHost("host-a"), []);
  t.equal((await onHost("host-b")).length, COUNT);

  const after = await sessions.ask();
  t.strictSame(after.map((each) => each.error), guests.map(() => null), "each session answers");
  t.strictSame(after.map((each) => each.instance), before.map((each) => each.instance), "and it is the same guest, which never started again");
  t.strictSame(after.map((each) => (each.counter ?? 0) - 1), before.map((each) => each.counter), "that has missed nothing");
});

await t.test("the mark stays until the host is undrained; then VMs come back, all of them by one command", { timeout: 300_000 }, async (t) => {
  if (sessions === null) throw new Error("there are no sessions");
  const one = guests[0]?.name ?? "";
  t.match(await lab.careof(["migrate", one, "host-a"]), { code: 1, stderr: /host-draining/ });
  t.match(await lab.careof(["start", "web2", "host-a"]), { code: 1, stderr: /host-draining/ });
  t.match(await lab.careof(["undrain", "host-a"]), { code: 0, stdout: "host-a takes VMs again\n" });
  const moved = await lab.careof(["migrate", "--all", "--from", "host-b", "host-a", "--output", "json"], 280_000);
  t.equal(moved.code, 0, moved.stderr);
  const moves = movesSchema.parse(JSON.parse(moved.stdout));
  t.strictSame(moves.map(({ vm, from, to, result }) => ({ vm, from, to, result })), guests.map(({ name }) => ({ vm: name, from: "host-b", to: "host-a", result: "completed" })));
  const times = moves.flatMap((each) => (each.totalMs === null ? [] : [each.totalMs])).sort((a, b) => a - b);
  t.comment(`a move takes ${String(times[Math.floor(times.length / 2)])} ms at the median, ${String(times.at(-1))} ms at most`);
  t.match(await lab.json(whereSchema, ["where", one]), { host: "host-a", state: "bound" });
  t.strictSame((await sessions.ask()).map((each) => each.error), guests.map(() => null), "each session answers again");
});

await t.test("nothing is left", async (t) => {
  sessions?.close();
  t.strictSame(await lab.close(), []);
  t.strictSame(leftOver(lab.run), []);
});
