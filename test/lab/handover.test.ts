import t, { type Test } from "tap";
import type { HandoverCase } from "../../bench/handover/cases.js";
import { Moves } from "../../bench/handover/moves.js";

/**
 * The benchmark's series in short (`npm run bench -- handover` has them in full, with the figures): nothing is lost, doubled or overtaken when a guest moves to and fro.
 * How long anything takes is the benchmark's matter.
 */

const MARGIN_MS = 1000;
const far = { thereUs: 20_000, backUs: 20_000 };
const CASES: readonly (HandoverCase & { readonly idleMs: number })[] = [
  { name: "two subnets", pps: 1000, delayMs: 0, wires: {}, pauseMs: 0, bulkMbit: 5, control: false, idleMs: 0 },
  { name: "20 ms to one host, none to the other, and a pause of a second", pps: 500, delayMs: 20, wires: { "host-a": far }, pauseMs: 1000, bulkMbit: 0, control: false, idleMs: 10_000 },
];

async function series(t: Test, of: (typeof CASES)[number]): Promise<void> {
  const lab = await Moves.open(of);
  try {
    const { counted, rest } = await lab.run({ moves: 2, marginMs: MARGIN_MS, idleMs: of.idleMs, shared: false }, () => undefined);
    for (const { move, window } of counted) {
      t.equal(move.result, "completed");
      t.ok(window.sentDown > of.pps && window.sentUp > of.pps / 2, `enough was sent: ${String(window.sentDown)} down, ${String(window.sentUp)} up`);
      t.match(window, { receivedDown: window.sentDown, receivedUp: window.sentUp, duplicatedDown: 0, duplicatedUp: 0, reorderedDown: 0, reorderedUp: 0 }, "each packet once, in order");
      t.type(move.gapDownMs, "number", "the gap was measured");
      t.type(move.gapUpMs, "number");
      t.ok((move.pauseMs ?? 0) >= of.pauseMs, "the pause was measured");
      t.comment(`pause ${String(move.pauseMs)} ms, gap ${String(move.gapDownMs)} ms down, ${String(move.gapUpMs)} ms up`);
    }
    t.ok(await rest(), "every session lives, and the one that was idle all the time can be used");
  } finally {
    await lab.close();
  }
}

for (const each of CASES) await t.test(each.name, { timeout: 400_000 }, (t) => series(t, each));
