import t, { type Test } from "tap";
import { z } from "zod";
import { Lab } from "../../deploy/lab/lab.js";
import { PLAN, type HostName } from "../../deploy/lab/plan.js";
import { Witness } from "../../deploy/lab/witness.js";

/** A guest that writes to its memory as fast as it can, over less bandwidth than that: it goes on at the target while its memory follows it. */

const SLOW = ["--bandwidth", "20M"];
const moveSchema = z.object({ result: z.string(), reason: z.string(), pauseMs: z.number().nullable(), bytes: z.number().nullable(), detail: z.string().nullable() });

const lab = await Lab.start({ witnessed: true, dirtyMb: 32 });
const witness = new Witness(lab);
t.teardown(async () => {
  witness.close();
  await lab.close();
});
await lab.startGuest("host-a");
const traffic = await lab.traffic({ pps: 200, bulkMbit: 0 });
let at: HostName = "host-a";

async function move(t: Test, words: readonly string[]): Promise<{ readonly move: z.infer<typeof moveSchema>; readonly said: string }> {
  const to: HostName = at === "host-a" ? "host-b" : "host-a";
  const ran = await lab.careof(["migrate", PLAN.guest.name, to, "--output", "json", ...words], 120_000);
  const found = moveSchema.parse(JSON.parse(ran.stdout));
  t.comment(`${words.join(" ")}: ${ran.stdout.trim()}`);
  t.equal(found.result, "completed");
  t.equal(ran.code, 0);
  if (found.result === "completed") at = to;
  t.match(await lab.where(), { state: "bound", host: at });
  t.strictSame(witness.doubles(), [], "the guest never ran twice");
  await lab.until("only the new host has it", 10_000, () => Promise.resolve(witness.running().join() === at));
  t.strictSame(traffic.broken, [], "no session broke");
  return { move: found, said: ran.stderr };
}

await t.test("there and back, whatever it writes", async (t) => {
  for (const round of [1, 2]) {
    await traffic.idle();
    await traffic.mark(`before${String(round)}`);
    const { move: moved, said } = await move(t, [...SLOW, "--postcopy"]);
    t.match(said, / postcopy /, "and it is told");
    t.ok((moved.pauseMs ?? Infinity) < 3000, "it stood for the change-over, not for the copy");
    await traffic.idle();
    await traffic.mark(`after${String(round)}`);
    const { sentDown, receivedDown, sentUp, receivedUp, serviceGapDownMs } = await traffic.window(`before${String(round)}`, `after${String(round)}`);
    t.same({ receivedDown, receivedUp }, { receivedDown: sentDown, receivedUp: sentUp }, "no packet was lost");
    t.comment(`longest silence ${String(serviceGapDownMs)} ms`);
  }
});

await t.test("one that converges needs none", async (t) => {
  const { said } = await move(t, ["--downtime-limit", "2000", "--postcopy"]);
  t.notMatch(said, / postcopy /);
});

await t.test("what it cannot do is refused", async (t) => {
  const ran = await lab.careof(["migrate", PLAN.guest.name, at === "host-a" ? "host-b" : "host-a", "--postcopy", "--channels", "2"], 20_000);
  t.equal(ran.code, 1);
  t.match(ran.stderr, /multifd.*unsupported/);
});

await t.test("it was one guest all the time", async (t) => {
  await traffic.idle();
  t.equal((await traffic.quit()).survived, true);
  t.strictSame(await lab.close(), []);
});
