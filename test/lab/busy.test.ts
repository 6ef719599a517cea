import t, { type Test } from "tap";
import { readFileSync } from "node:fs";
import { z } from "zod";
import type { HostName } from "../../deploy/lab/plan.js";
import { BusyGuest, type Moved } from "./busy-guest.js";
import { leaving, type Left } from "./leaving.js";
import { wayOf, Watched } from "./watched.js";

/**
 * A guest that writes to its memory as fast as it can: by itself its copy never ends where the bandwidth is smaller than what it writes. How fast anything is, is the
 * benchmark's matter (`npm run bench -- migrate`).
 */

const DIRTY_MB = 32;
/** Less than any emulated guest writes. */
const SLOW_RATE = 40_000_000;
const SLOW = ["--bandwidth", `${String(SLOW_RATE / 1e6)}M`];
/** TLS, TCP, IP, the lab's own traffic, and QEMU's turns of a tenth of a second. */
const OVERHEAD = 1.25;
/** With more than one channel QEMU itself sends more than the limit: a third more was seen. */
const OVERHEAD_OF_CHANNELS = 1.75;
/** The pause is longer than what was allowed for the memory by what QEMU did not foresee, on a machine whose processors are all busy. */
const UNFORESEEN_MS = 2000;
/** What only memory comes to. */
const MUCH = 2 ** 20;

const guest = await BusyGuest.start(t, DIRTY_MB);
const watched = await Watched.start(t, guest.lab);

interface Seen extends Moved {
  readonly from: HostName;
  readonly left: Left;
  /** In percent, the most that was told. */
  readonly heldBack: number;
}

async function move(t: Test, words: readonly string[], result: "completed" | "failed"): Promise<Seen> {
  const from = guest.at;
  const { result: moved, left } = await leaving(guest.lab, from, guest.other, () => guest.move(t, words, result, 240_000));
  t.strictSame(guest.witness.running(), [guest.at]);
  const { migration } = moved.move;
  await guest.lab.until("watch has told the end", 10_000, () => Promise.resolve(wayOf(watched.moves, migration).at(-1) === result));
  const heldBack = Math.max(...watched.moves.filter((each) => each.migration === migration).map((each) => each.progress?.throttlePercent ?? 0));
  t.comment(JSON.stringify({ left, heldBack, way: wayOf(watched.moves, migration), lead: causeOfLead(from, migration) }));
  t.equal(heldBack > 0, words.includes("--auto-converge"), "its processor time is taken away if that was asked for, and else not", { found: heldBack });
  return { ...moved, from, left, heldBack };
}

const entry = z.looseObject({ msg: z.string(), migration: z.string().optional(), to: z.string().optional(), cause: z.string().optional() });

/** What made the source go over, by its agent's log: `timer`, the time was over; anything else, little enough was left. `null`: it never did. */
function causeOfLead(host: HostName, migration: string): string | null {
  const lines = readFileSync(guest.lab.part(host).logFile, "utf8").split("\n").filter((line) => line.includes(migration) && line.endsWith("}"));
  return lines.map((line) => entry.parse(JSON.parse(line))).find(({ msg, migration: of, to }) => msg === "source" && of === migration && to === "leading")?.cause ?? null;
}

function wasForced(t: Test, { move: moved, said, from }: Seen, afterMs: number): void {
  t.match(said, /^it does not converge: /m, "it would not have ended by itself");
  t.equal(causeOfLead(from, moved.migration), "timer", "its time was over when it was stopped");
  t.ok((moved.totalMs ?? 0) >= afterMs, "and not before", { found: moved.totalMs });
}

function hadRoom(t: Test, { move: moved, from }: Seen, downtimeLimitMs: number): void {
  const cause = causeOfLead(from, moved.migration);
  t.ok(cause !== null && cause !== "timer", "little enough was left, and the time was not over", { found: cause });
  // Between two hosts' clocks; on a machine under load their comparison may fail, and then it is null.
  t.ok(moved.pauseMs === null || moved.pauseMs < downtimeLimitMs + UNFORESEEN_MS, "it stood about as long as it may", { found: moved.pauseMs });
}

function keptTo(t: Test, { left }: Seen, overhead: number, ms: number): void {
  const most = SLOW_RATE * (ms / 1000) * overhead;
  t.ok(left.bytes < most, `no more than ${String(most / 1e6)} MB have left the host`, { found: left.bytes });
  t.ok(left.bytes > DIRTY_MB * 2 ** 20, "the memory went this way", { found: left.bytes });
}

await t.test("never done: after its time it stays, and is told why and what would help", async (t) => {
  const seen = await move(t, [...SLOW, "--timeout", "9"], "failed");
  const { move: moved, said, left } = seen;
  t.equal(moved.reason, "timed-out");
  t.match(moved.detail, /not completed within 9000 ms; it does not converge: the guest writes .* are copied.*--auto-converge.*--bandwidth.*--downtime-limit.*--on-timeout force/);
  t.match(said, /^it does not converge: the guest writes .* What helps: /m, "while it lasts, too");
  t.match(said, / copy .* writes [0-9.]+ MB\/s$/m);
  keptTo(t, seen, OVERHEAD, 9000);
  t.equal(left.connections.length, 1, "one connection", { found: left });
});

await t.test("forced: it is stopped after its time, and has moved", async (t) => {
  const seen = await move(t, [...SLOW, "--timeout", "7", "--on-timeout", "force"], "completed");
  wasForced(t, seen, 7000);
  t.match(seen.move, { reason: "accepted", detail: /^forced: not completed within 7000 ms, so that the guest was stopped/ });
  t.ok((seen.move.bytes ?? 0) > DIRTY_MB * 2 ** 20, "everything was copied, and the rest again");
});

await t.test("slowed down by the hypervisor, it moves in time", async (t) => {
  hadRoom(t, await move(t, ["--bandwidth", "80M", "--downtime-limit", "200", "--auto-converge", "--timeout", "180"], "completed"), 200);
});

await t.test("two channels, where it may stand for a moment", async (t) => {
  hadRoom(t, await move(t, ["--channels", "2", "--downtime-limit", "1000", "--timeout", "120"], "completed"), 1000);
});

await t.test("two channels, and a bandwidth that is never enough", async (t) => {
  const stays = await move(t, ["--channels", "2", ...SLOW, "--timeout", "9"], "failed");
  t.equal(stays.move.reason, "timed-out");
  keptTo(t, stays, OVERHEAD_OF_CHANNELS, 9000);
  t.equal(stays.left.connections.length, 3, "two beside that of the guest's state", { found: stays.left });
  t.equal(stays.left.connections.filter((bytes) => bytes > MUCH).length, 2, "each of the two has carried memory", { found: stays.left });
  wasForced(t, await move(t, ["--channels", "2", ...SLOW, "--timeout", "7", "--on-timeout", "force"], "completed"), 7000);
});

await t.test("it was one guest all the time", async (t) => {
  t.equal(await watched.end(), 0);
  await guest.wasOne(t);
});
