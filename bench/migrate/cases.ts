import { spread, type Spread } from "../statistics.js";

/** What the guest does meanwhile. */
export interface Load {
  readonly name: string;
  /** Memory that it writes to all the time, as fast as it can. */
  readonly dirtyMb: number;
  /** So long that a bare QEMU's copy of it ends on two cores. */
  readonly downtimeLimitMs: number;
}

export const LOADS: readonly Load[] = [
  { name: "idle", dirtyMb: 0, downtimeLimitMs: 20 },
  { name: "busy", dirtyMb: 16, downtimeLimitMs: 1000 },
];
export const CHANNELS: readonly number[] = [1, 2];

/** One move; milliseconds, `null` where it was not measured. */
export interface Measured {
  readonly totalMs: number | null;
  readonly pauseMs: number | null;
  readonly bytes: number | null;
}

export interface Side {
  readonly totalMs: Spread;
  readonly pauseMs: Spread;
  readonly bytes: Spread;
}

export interface CaseResult {
  readonly name: string;
  readonly channels: number;
  readonly careof: Side;
  readonly bare: Side;
  /** Of the medians: careof's by the bare QEMU's. */
  readonly totalRatio: number | null;
  readonly bytesRatio: number | null;
  /** Of the medians: careof's less the bare QEMU's. */
  readonly pauseLongerMs: number | null;
}

/** At most so much of a bare QEMU's time, and a pause so much longer. */
export const TARGET = { totalRatio: 1.05, pauseLongerMs: 5 } as const;

export function caseResult(name: string, channels: number, careof: readonly Measured[], bare: readonly Measured[]): CaseResult {
  const side = (of: readonly Measured[]): Side => ({
    totalMs: spread(of.map((each) => each.totalMs)), pauseMs: spread(of.map((each) => each.pauseMs)), bytes: spread(of.map((each) => each.bytes)),
  });
  const ours = side(careof);
  const theirs = side(bare);
  return {
    name, channels, careof: ours, bare: theirs,
    totalRatio: both(ours.totalMs, theirs.totalMs, (one, other) => one / other),
    bytesRatio: both(ours.bytes, theirs.bytes, (one, other) => one / other),
    pauseLongerMs: both(ours.pauseMs, theirs.pauseMs, (one, other) => one - other),
  };
}

function both(one: Spread, other: Spread, combine: (one: number, other: number) => number): number | null {
  return one.median === null || other.median === null ? null : combine(one.median, other.median);
}

/** The table of RESULTS.md. */
export function caseTable(results: readonly CaseResult[]): string {
  const ms = ({ median, p90, max }: Spread): string => [median, p90, max].map((value) => (value === null ? "–" : value.toFixed(0))).join(" / ");
  const mb = ({ median }: Spread): string => (median === null ? "–" : (median / 1e6).toFixed(1));
  const goal = (value: number | null, limit: number, digits: number): string => (value === null ? "–" : `${value.toFixed(digits)}${value <= limit ? "" : " (missed)"}`);
  const rows = results.map((result) => [
    result.name, String(result.channels), String(result.careof.totalMs.n), ms(result.careof.totalMs), ms(result.bare.totalMs), goal(result.totalRatio, TARGET.totalRatio, 2),
    ms(result.careof.pauseMs), ms(result.bare.pauseMs), goal(result.pauseLongerMs, TARGET.pauseLongerMs, 1), mb(result.careof.bytes), mb(result.bare.bytes), result.bytesRatio?.toFixed(2) ?? "–",
  ]);
  const head = ["guest", "channels", "moves", "total", "bare total", "ratio", "pause", "bare pause", "longer", "MB", "bare MB", "ratio"];
  return [
    `Milliseconds are median / 90 % / longest. Targets: total at most ${String(TARGET.totalRatio)} of the bare QEMU's, pause at most ${String(TARGET.pauseLongerMs)} ms longer. ` +
      "Totals begin before the target's QEMU is started; careof's ends when the home agent has the last word of both hosts, the bare QEMU's when the guest runs.",
    "", ...[head, head.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |`),
  ].join("\n");
}
