import { spread, type Spread } from "../statistics.js";

/** What the guest does meanwhile. */
export interface Load {
  readonly name: string;
  /** Memory that it writes to all the time, as fast as it can. */
  readonly dirtyMb: number;
  /** A disk of its own, which moves with it (disk.ts). */
  readonly disk: boolean;
  /** So long that a bare QEMU's copy of it ends on two cores. */
  readonly downtimeLimitMs: number;
}

export const LOADS: readonly Load[] = [
  { name: "idle", dirtyMb: 0, disk: false, downtimeLimitMs: 20 },
  { name: "busy", dirtyMb: 16, disk: false, downtimeLimitMs: 1000 },
  { name: "disk", dirtyMb: 0, disk: true, downtimeLimitMs: 20 },
];
export const CHANNELS: readonly number[] = [1, 2];

/** One move; milliseconds, `null` where it was not measured. */
export interface Measured {
  readonly totalMs: number | null;
  readonly pauseMs: number | null;
  readonly bytes: number | null;
  /** What was not gone through is not there. */
  readonly phases: Readonly<Record<string, number>>;
}

export interface Side {
  readonly totalMs: Spread;
  readonly pauseMs: Spread;
  readonly bytes: Spread;
  /** Medians in milliseconds. */
  readonly phases: Readonly<Record<string, number>>;
}

export interface CaseResult {
  readonly name: string;
  readonly channels: number;
  readonly careof: Side;
  /** By TCP, as it is. */
  readonly bare: Side;
  /** By TCP with QEMU's own TLS: encrypted like careof. */
  readonly bareTls: Side;
  /** Of the medians: careof's by the bare QEMU's. */
  readonly totalRatio: number | null;
  readonly bytesRatio: number | null;
  /** Of the medians: careof's less the bare QEMU's. */
  readonly pauseLongerMs: number | null;
  /** The same beside the encrypted one; no target. */
  readonly totalRatioTls: number | null;
  readonly pauseLongerTlsMs: number | null;
}

/** At most so much of a bare QEMU's time, and a pause so much longer. */
export const TARGET = { totalRatio: 1.05, pauseLongerMs: 5 } as const;

export type Moves = Readonly<Record<"careof" | "bare" | "bareTls", readonly Measured[]>>;

export function caseResult(name: string, channels: number, moves: Moves): CaseResult {
  const careof = side(moves.careof);
  const bare = side(moves.bare);
  const bareTls = side(moves.bareTls);
  const ratio = (one: number, other: number): number => one / other;
  const difference = (one: number, other: number): number => one - other;
  return {
    name, channels, careof, bare, bareTls,
    totalRatio: both(careof.totalMs, bare.totalMs, ratio), bytesRatio: both(careof.bytes, bare.bytes, ratio), pauseLongerMs: both(careof.pauseMs, bare.pauseMs, difference),
    totalRatioTls: both(careof.totalMs, bareTls.totalMs, ratio), pauseLongerTlsMs: both(careof.pauseMs, bareTls.pauseMs, difference),
  };
}

function side(of: readonly Measured[]): Side {
  const names = new Set(of.flatMap(({ phases }) => Object.keys(phases)));
  const medians = [...names].map((name) => [name, spread(of.map(({ phases }) => phases[name] ?? null)).median ?? 0] as const);
  return { totalMs: spread(of.map((each) => each.totalMs)), pauseMs: spread(of.map((each) => each.pauseMs)), bytes: spread(of.map((each) => each.bytes)), phases: Object.fromEntries(medians) };
}

function both(one: Spread, other: Spread, combine: (one: number, other: number) => number): number | null {
  return one.median === null || other.median === null ? null : combine(one.median, other.median);
}
