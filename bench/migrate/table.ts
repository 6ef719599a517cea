import type { Spread } from "../statistics.js";
import { TARGET, type CaseResult, type Side } from "./cases.js";
import { PHASES } from "./phases.js";

/** What RESULTS.md gets: the comparison, and where the time goes. */
export function caseTable(results: readonly CaseResult[]): string {
  const rows = results.map((result) => [
    result.name, String(result.channels), String(result.careof.totalMs.n), ms(result.careof.totalMs), ms(result.bare.totalMs), goal(result.totalRatio, TARGET.totalRatio, 2), ms(result.bareTls.totalMs), plain(result.totalRatioTls, 2),
    ms(result.careof.pauseMs), ms(result.bare.pauseMs), goal(result.pauseLongerMs, TARGET.pauseLongerMs, 1), ms(result.bareTls.pauseMs), plain(result.pauseLongerTlsMs, 1), mb(result.careof.bytes), mb(result.bare.bytes),
  ]);
  const head = ["guest", "channels", "moves", "total", "bare total", "ratio", "bare-tls total", "ratio", "pause", "bare pause", "longer", "bare-tls pause", "longer", "MB", "bare MB"];
  return [
    `Milliseconds are median / 90 % / longest. Targets, beside the bare QEMU by plain TCP over the same links: total at most ${String(TARGET.totalRatio)} of its, pause at most ${String(TARGET.pauseLongerMs)} ms longer. ` +
      "bare-tls: the same with QEMU's own TLS-PSK, because careof encrypts unless it is told otherwise (in clear: `--no-encrypt`). Totals begin before the target's QEMU is started; careof's ends when the home agent has the last word of both hosts, the bare QEMU's when the guest runs.",
    "", ...table(head, rows), "", ...breakdown(results), "", ...results.flatMap(missed),
  ].join("\n").trimEnd();
}

function breakdown(results: readonly CaseResult[]): string[] {
  const cell = ({ phases }: Side, name: string): string => (phases[name] === undefined ? "" : phases[name].toFixed(0));
  const rows = results.flatMap((result) => [
    [result.name, String(result.channels), "careof", ...PHASES.map((name) => cell(result.careof, name))],
    ...([["bare", result.bare], ["bare-tls", result.bareTls]] as const).map(([name, side]) => [result.name, String(result.channels), name, ...PHASES.map((phase) => cell(side, phase === "state" ? "pause" : phase))]),
  ]);
  return [
    "Where the time goes, medians in milliseconds. request and answer (the command's own) are no part of the total; qemu is part of prepare: until the target's QEMU answers. drain: what the relay has read goes on to the target while the guest runs. " +
      "The pause is state and resume; a bare QEMU's stands under state.",
    "", ...table(["guest", "channels", "by", ...PHASES], rows),
  ];
}

/** For each target that is missed: what takes longer than in a bare QEMU, the most first. */
function missed({ name, channels, careof, bare, totalRatio, pauseLongerMs }: CaseResult): string[] {
  const of = ({ phases }: Side, ...names: readonly string[]): number => names.reduce((sum, each) => sum + (phases[each] ?? 0), 0);
  const where = `${name}, ${String(channels)} channel${channels === 1 ? "" : "s"}`;
  const lines: string[] = [];
  if (totalRatio !== null && totalRatio > TARGET.totalRatio) {
    const longer = ([
      ["preparing", of(careof, "prepare") - of(bare, "prepare")], ["beginning", of(careof, "begin")], ["copying the disk", of(careof, "disks") - of(bare, "disks")],
      ["copying", of(careof, "copy", "drain") - of(bare, "copy")], ["lead and stop", of(careof, "lead", "stop")], ["the pause", of(careof, "state", "resume") - of(bare, "pause")], ["settling", of(careof, "settle")],
    ] as const).filter(([, by]) => by >= 1).sort(([, one], [, other]) => other - one);
    lines.push(`${where}: the total is ${((careof.totalMs.median ?? 0) - (bare.totalMs.median ?? 0)).toFixed(0)} ms longer: ${longer.map(([what, by]) => `${what} ${by.toFixed(0)} ms`).join(", ")}.`);
  }
  if (pauseLongerMs !== null && pauseLongerMs > TARGET.pauseLongerMs) {
    lines.push(`${where}: the pause is ${pauseLongerMs.toFixed(1)} ms longer: ${of(careof, "state").toFixed(0)} ms until QEMU says completed, ${of(careof, "resume").toFixed(0)} ms from there by RELEASE to the guest.`);
  }
  return lines.flatMap((line) => [line, ""]);
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  return [head, head.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |`);
}

function ms({ median, p90, max }: Spread): string {
  return [median, p90, max].map((value) => (value === null ? "–" : value.toFixed(0))).join(" / ");
}

function mb({ median }: Spread): string {
  return median === null ? "–" : (median / 1e6).toFixed(1);
}

function plain(value: number | null, digits: number): string {
  return value === null ? "–" : value.toFixed(digits);
}

function goal(value: number | null, limit: number, digits: number): string {
  return value === null ? "–" : `${value.toFixed(digits)}${value <= limit ? "" : " (missed)"}`;
}
