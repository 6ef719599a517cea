import t, { type Test } from "tap";
import { BusyGuest, type Moved } from "./busy-guest.js";

/**
 * A guest that writes to its memory as fast as it can: by itself its copy never ends where the bandwidth is smaller than what it writes. How fast anything is, is the
 * benchmark's matter (`npm run bench -- migrate`).
 */

const DIRTY_MB = 32;
/** 40 MB/s: less than any emulated guest writes. */
const SLOW = ["--bandwidth", "40M"];

const guest = await BusyGuest.start(t, DIRTY_MB);

async function move(t: Test, words: readonly string[], result: "completed" | "failed"): Promise<Moved> {
  return guest.move(t, words, result, 240_000);
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
  t.match(moved, { reason: "accepted", detail: /^forced: not completed within 7000 ms, so that the guest was stopped/ });
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
  await guest.wasOne(t);
});
