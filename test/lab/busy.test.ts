import t, { type Test } from "tap";
import { z } from "zod";
import { Lab } from "../../deploy/lab/lab.js";
import { PLAN, type HostName } from "../../deploy/lab/plan.js";
import { Witness } from "../../deploy/lab/witness.js";

/**
 * A guest that writes to its memory as fast as it can: by itself its copy never ends where the bandwidth is smaller than what it writes. How fast anything is, is the
 * benchmark's matter (`npm run bench -- migrate`).
 */

const DIRTY_MB = 32;
/** 40 MB/s: less than any emulated guest writes. */
const SLOW = ["--bandwidth", "40M"];
const moveSchema = z.object({ result: z.string(), reason: z.string(), pauseMs: z.number().nullable(), bytes: z.number().nullable(), detail: z.string().nullable() });

const lab = await Lab.start({ witnessed: true, dirtyMb: DIRTY_MB });
const witness = new Witness(lab);
t.teardown(async () => {
  witness.close();
  await lab.close();
});
await lab.startGuest("host-a");
const traffic = await lab.traffic({ pps: 200, bulkMbit: 0 });
let at: HostName = "host-a";

/** Moves it to the other host, and checks what holds however it ends. */
async function move(t: Test, words: readonly string[], result: "completed" | "failed"): Promise<{ readonly move: z.infer<typeof moveSchema>; readonly said: string }> {
  const to: HostName = at === "host-a" ? "host-b" : "host-a";
  const ran = await lab.careof(["migrate", PLAN.guest.name, to, "--output", "json", ...words], 240_000);
  const found = moveSchema.parse(JSON.parse(ran.stdout));
  t.comment(`${words.join(" ")}: ${ran.stdout.trim()}`);
  t.equal(found.result, result);
  t.equal(ran.code, result === "completed" ? 0 : 1);
  if (found.result === "completed") at = to;
  t.match(await lab.where(), { state: "bound", host: at });
  t.strictSame(witness.doubles(), [], "the guest never ran twice");
  t.strictSame(witness.running(), [at]);
  t.strictSame(traffic.broken, [], "no session broke");
  return { move: found, said: ran.stderr };
}

await t.test("never done: after its time it stays, and is told why and what would help", async (t) => {
  const { move: moved, said } = await move(t, [...SLOW, "--timeout", "9"], "failed");
  t.equal(moved.reason, "timed-out");
  t.match(moved.detail, /not completed within 9000 ms; it does not converge: the guest writes .* are copied.*--auto-converge.*--bandwidth.*--downtime-limit.*--on-timeout force/);
  t.match(said, /^it does not converge: the guest writes .* What helps: /m, "while it lasts, too");
  t.match(said, / copy .* writes [0-9.]+ MB\/s$/m);
});

await t.test("forced: it is stopped after its time, and has moved", async (t) => {
  const { move: moved } = await move(t, [...SLOW, "--timeout", "7", "--on-timeout", "force"], "completed");
  t.ok((moved.bytes ?? 0) > DIRTY_MB * 2 ** 20, "everything was copied, and the rest again");
});

await t.test("slowed down by the hypervisor, it moves in time", async (t) => {
  await move(t, ["--bandwidth", "80M", "--downtime-limit", "200", "--auto-converge", "--timeout", "180"], "completed");
});

await t.test("two channels, where it may stand for a moment", async (t) => {
  await move(t, ["--channels", "2", "--downtime-limit", "1000", "--timeout", "120"], "completed");
});

await t.test("two channels, and a bandwidth that is never enough", async (t) => {
  t.equal((await move(t, ["--channels", "2", ...SLOW, "--timeout", "9"], "failed")).move.reason, "timed-out");
  await move(t, ["--channels", "2", ...SLOW, "--timeout", "7", "--on-timeout", "force"], "completed");
});

await t.test("it was one guest all the time", async (t) => {
  await traffic.idle();
  t.equal((await traffic.quit()).survived, true);
  t.strictSame(await lab.close(), []);
});
