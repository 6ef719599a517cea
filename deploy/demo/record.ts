import { readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import type { Move } from "../lab/lab.js";
import { REPOSITORY } from "../lab/program.js";
import type { TrafficSample, TrafficWindow } from "../lab/traffic.js";

/** One move as the demo's JSON has it. Unmeasured is `null`, never 0; durations in milliseconds, counts of packets. */
export interface DemoMove {
  readonly vm: string;
  readonly from: string;
  readonly to: string;
  readonly result: Move["result"];
  readonly pauseMs: number | null;
  readonly gapDownMs: number | null;
  readonly gapUpMs: number | null;
  readonly serviceGapDownMs: number | null;
  readonly serviceGapUpMs: number | null;
  readonly tcpStallMs: number | null;
  readonly sentDown: number;
  readonly receivedDown: number;
  readonly sentUp: number;
  readonly receivedUp: number;
  readonly lostDown: number;
  readonly lostUp: number;
  readonly duplicated: number;
  readonly reordered: number;
}

export interface DemoResult {
  readonly qemu: string;
  readonly accel: string;
  readonly dataPlane: string;
  readonly moves: readonly DemoMove[];
  readonly tcp: { readonly survived: boolean; readonly bytes: number };
}

/** The points of the paper's Figure 1, of one of our moves, in CLOCK_MONOTONIC milliseconds. */
export interface Points {
  /** The migration is decided: `careof migrate` is called. */
  readonly a: number;
  /** The guest falls silent. */
  readonly b: number | null;
  /** The guest is heard again. */
  readonly c: number | null;
  /** The bulk stream is as fast as before again. */
  readonly d: number | null;
}

/** Everything that the report shows. */
export interface DemoRecord {
  readonly result: DemoResult;
  /** One for each of `result.moves`. */
  readonly points: readonly Points[];
  readonly totals: readonly { readonly totalMs: number | null; readonly bytes: number | null }[];
  readonly samples: readonly TrafficSample[];
  readonly pps: number;
  readonly bulkMbit: number;
  readonly machine: string;
  /** ISO 8601. */
  readonly at: string;
}

/** How the move went by the home agent, and by the correspondent. */
export function demoMove(move: Move, window: TrafficWindow): DemoMove {
  return {
    vm: move.vm,
    from: move.from,
    to: move.to,
    result: move.result,
    pauseMs: move.pauseMs,
    gapDownMs: move.gapDownMs,
    gapUpMs: move.gapUpMs,
    serviceGapDownMs: window.serviceGapDownMs,
    serviceGapUpMs: window.serviceGapUpMs,
    tcpStallMs: longest(window.tcpStallDownMs, window.tcpStallUpMs),
    sentDown: window.sentDown,
    receivedDown: window.receivedDown,
    sentUp: window.sentUp,
    receivedUp: window.receivedUp,
    lostDown: window.sentDown - window.receivedDown,
    lostUp: window.sentUp - window.receivedUp,
    duplicated: window.duplicatedDown + window.duplicatedUp,
    reordered: window.reorderedDown + window.reorderedUp,
  };
}

function longest(one: number | null, other: number | null): number | null {
  return one === null || other === null ? null : Math.max(one, other);
}

/** A window of steady traffic before a move, and the fraction of it that counts as "as before". */
const BEFORE_MS = 2000;
const STEADY = 0.9;

/** Point D: the end of the first 100 ms after `from` in which the guest received as much as it did before `decided`. */
export function steadyAgain(samples: readonly TrafficSample[], decided: number, from: number): number | null {
  const bytes = (sample: TrafficSample): number => sample.bulkDown.reduce((sum, each) => sum + each, 0);
  const before = samples.filter((sample) => sample.t > decided - BEFORE_MS && sample.t <= decided).map(bytes).sort((one, other) => one - other);
  const median = before[Math.floor(before.length / 2)];
  if (median === undefined || median === 0) return null;
  // The first whole sample that begins behind `from`: the one that holds the burst of what had waited is longer than its share.
  return samples.find((sample) => sample.t - 100 >= from && bytes(sample) >= STEADY * median)?.t ?? null;
}

const paperSchema = z.object({
  source: z.string(),
  silence: z.object({ fromSecond: z.number(), toSecond: z.number() }),
  kbitPerSecond: z.array(z.number()).length(120),
});
export type Paper = z.infer<typeof paperSchema>;

/** The iperf trace behind the paper's Figure 1. */
export function paperSeries(): Paper {
  return paperSchema.parse(JSON.parse(readFileSync(join(REPOSITORY, "deploy", "demo", "kullberg-2009.json"), "utf8")));
}
