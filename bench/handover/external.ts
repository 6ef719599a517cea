import { ExternalLab } from "../../deploy/lab/external.js";
import { flipsOfASilentVm, flipsUnderTraffic, type CountedWindow, type FlipSeries } from "../../deploy/lab/flips.js";
import type { LabOptions } from "../../deploy/lab/lab.js";
import { MARGIN_MS } from "./moves.js";
import { caseResult, type CaseResult } from "./outcome.js";

const FLIPS = 100;
const QUICK_FLIPS = 5;
const PPS = 1000;

interface ExternalCase {
  readonly name: string;
  readonly delayMs: number;
  readonly silent: boolean;
  readonly how: Pick<FlipSeries, "order" | "announce" | "hooks" | "cleanUpMs">;
}

/** 5 ms one way to either host. */
const FAR: LabOptions = { wires: { "host-a": { thereUs: 5000, backUs: 5000 }, "host-b": { thereUs: 5000, backUs: 5000 } } };

/** Somebody else moves the VM, a namespace whose cable is flipped; each lab is used for the cases beside it, one after the other. */
const LABS: readonly (readonly [LabOptions, readonly ExternalCase[]])[] = [
  [{}, [
    { name: "external", delayMs: 0, silent: false, how: { order: "pull" } },
    { name: "external-rarp", delayMs: 0, silent: false, how: { order: "switch", announce: "rarp" } },
    { name: "external-silent", delayMs: 0, silent: true, how: { order: "pull" } },
  ]],
  // Pulled first, the VM itself would lose what it sends while it has no cable; whatever moves it removes the old port later.
  [FAR, [{ name: "external-hooks", delayMs: 5, silent: false, how: { order: "linger", hooks: true, cleanUpMs: 800 } }]],
];

export const EXTERNAL_NAMES: readonly string[] = LABS.flatMap(([, cases]) => cases.map(({ name }) => name));

/** What `--only` may name beside the cases with a guest. */
export const EXTERNAL = "external";

export async function externalCases(quick: boolean): Promise<readonly CaseResult[]> {
  const results: CaseResult[] = [];
  const flips = quick ? QUICK_FLIPS : FLIPS;
  for (const [options, cases] of LABS) {
    const lab = await ExternalLab.start(options);
    try {
      for (const each of cases) {
        process.stderr.write(`${each.name}: ${String(PPS)} packets/s, ${String(flips)} flips\n`);
        results.push(await oneCase(lab, each, { ...each.how, flips, pps: PPS, marginMs: MARGIN_MS, shared: quick }));
      }
    } finally {
      const left = await lab.close();
      if (left.length > 0) process.stderr.write(`left over: ${left.join(", ")}\n`);
    }
  }
  return results;
}

async function oneCase(lab: ExternalLab, of: ExternalCase, series: FlipSeries): Promise<CaseResult> {
  const { windows, survived } = of.silent
    ? { windows: await flipsOfASilentVm(lab, series, say), survived: null }
    : await flipsUnderTraffic(lab, series, say);
  // A flip that does not end where the cable is throws: who comes here has moved. Its pause is the time in which the VM had no cable.
  const counted = windows.map((window) => ({ move: { result: "completed" as const, pauseMs: window.cutMs ?? null, gapDownMs: null, gapUpMs: null, overflowed: null, hold: null }, window, portDropped: null }));
  return caseResult({ name: of.name, pps: PPS, delayMs: of.delayMs }, counted, [], survived);
}

function say(window: CountedWindow): void {
  const lost = window.sentDown - window.receivedDown + window.sentUp - window.receivedUp;
  const silent = window.serviceGapDownMs === null ? "not measured" : `${window.serviceGapDownMs.toFixed(1)} ms`;
  const cut = window.cutMs === undefined ? "" : `, without a cable ${window.cutMs.toFixed(1)} ms`;
  process.stderr.write(`  lost ${String(lost)} of ${String(window.sentDown + window.sentUp)}, ${String(window.reorderedDown + window.reorderedUp)} reordered, silent ${silent} down${cut}\n`);
}
