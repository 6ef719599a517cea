import type { UnderLoad } from "./load.js";
import type { Restore } from "./restore.js";
import type { Way } from "./ways.js";

export interface RepointTarget {
  readonly target: string;
  readonly measured: number | null;
  /** `null`: not measured. */
  readonly met: boolean | null;
}

export interface RepointResult {
  readonly ways: readonly Way[];
  readonly restore: Restore;
  readonly load: UnderLoad;
  readonly targets: readonly RepointTarget[];
}

const LIMITS_US = { bpf: { p50Us: 5, p99Us: 50 }, ipip: { p50Us: 20, p99Us: 200 } } as const;
const RESTORE_MS = 1000;

export function repointResult(ways: readonly Way[], restore: Restore, load: UnderLoad): RepointResult {
  const limits = (["bpf", "ipip"] as const).flatMap((name) => {
    const found = ways.find((each) => each.name === name);
    return (["p50Us", "p99Us"] as const).map((at) => atMost(`${name} ${at} ≤ ${String(LIMITS_US[name][at])}`, found?.[at] ?? null, LIMITS_US[name][at]));
  });
  return {
    ways, restore, load,
    targets: [
      ...limits,
      atMost(`${String(restore.bindings)} bindings restored in under ${String(RESTORE_MS)} ms`, restore.emptyMs, RESTORE_MS),
      atMost(`${String(restore.bindings)} bindings that the kernel has kept, in under ${String(RESTORE_MS)} ms`, restore.keptMs, RESTORE_MS),
      atMost(`packets lost over ${String(load.repoints)} re-points = 0`, load.lostDown + load.lostUp, 0),
    ],
  };
}

function atMost(target: string, measured: number | null, limit: number): RepointTarget {
  return { target, measured, met: measured === null ? null : measured <= limit };
}

/** The text of RESULTS.md. */
export function repointReport({ load, restore, targets, ways }: RepointResult): string {
  const us = (value: number | null): string => (value === null ? "–" : value.toFixed(value < 100 ? 1 : 0));
  const ms = (value: number | null): string => (value === null ? "not measured" : `${String(value)} ms`);
  const word = (met: boolean | null): string => (met === null ? "not measured" : met ? "yes" : "**no**");
  return [
    "From the decision to the kernel's acknowledgement, one binding of a thousand after the other:", "",
    ...table(["way", "p50 µs", "p99 µs", "re-points"], ways.map((each) => [each.device === undefined ? each.name : `${each.name} over ${each.device}`, us(each.p50Us), us(each.p99Us), String(each.n)])), "",
    `${String(restore.bindings)} bindings at start: ${ms(restore.emptyMs)} into an empty kernel, ${ms(restore.keptMs)} where the kernel has kept them (median of ${String(restore.n)}).`, "",
    `${String(load.repoints)} re-points under ${String(load.pps)} packets/s each way: lost ${String(load.lostDown)} of ${String(load.sentDown)} down, ${String(load.lostUp)} of ${String(load.sentUp)} up, ${String(load.duplicated)} doubled, ${String(load.reordered)} overtaken.`, "",
    ...table(["target", "measured", "met"], targets.map(({ measured, met, target }) => [target, measured === null ? "–" : String(measured), word(met)])),
  ].join("\n");
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  return [head, head.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |`);
}
