import type { Outcome } from "./cell.js";
import { FAULTS, isFault, phaseNames, PHASES, type Fault, type Phase } from "./matrix.js";

/** For the eye that follows. */
export function line(outcome: Outcome): string {
  const { cell, problems, tookMs } = outcome;
  const head = `${problems.length === 0 ? "ok  " : "FAIL"} ${cell.fault.padEnd(13)} ${cell.phase.padEnd(10)} ${ending(outcome).padEnd(22)} ${told(outcome).padEnd(36)} ${silence(outcome).padEnd(14)} ${seconds(tookMs)}`;
  return [head.trimEnd(), ...problems.map((problem) => `    ${problem}`)].join("\n");
}

/** fault × phase → outcome */
export function table(outcomes: readonly Outcome[]): string {
  const phases = phaseNames().filter((phase) => outcomes.some(({ cell }) => cell.phase === phase));
  const rows = [["", ...phases], ...faults(outcomes).map((fault) => [fault, ...phases.map((phase) => short(find(outcomes, fault, phase)))])];
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0))) ?? [];
  return rows.map((row) => row.map((word, column) => word.padEnd(widths[column] ?? 0)).join("  ").trimEnd()).join("\n");
}

/** The table as ARCHITECTURE.md has it. */
export function markdown(outcomes: readonly Outcome[]): string {
  const phases = phaseNames().filter((phase) => outcomes.some(({ cell }) => cell.phase === phase));
  const cellText = (outcome: Outcome | null): string => {
    if (outcome === null) return "–";
    const { answer } = outcome;
    const reason = answer?.move?.reason ?? answer?.said ?? "no answer";
    return [`${outcome.problems.length === 0 ? "" : "**FAILED** "}${ending(outcome)}`, `exit ${String(answer?.code ?? "–")}, ${reason}`, silence(outcome)].filter((part) => part !== "").join("<br>");
  };
  return [
    `| fault | ${phases.join(" | ")} |`,
    `|---|${phases.map(() => "---").join("|")}|`,
    ...faults(outcomes).map((fault) => `| **${fault}**: ${FAULTS[fault]} | ${phases.map((phase) => cellText(find(outcomes, fault, phase))).join(" | ")} |`),
    "",
    ...phases.map((phase) => `* \`${phase}\`: ${PHASES[phase]}`),
    "",
  ].join("\n");
}

function ending({ ending: end, lost }: Outcome): string {
  if (end === null) return "unsettled";
  return lost === "no" ? end : lost === "resolved" ? `LOST, resolved: ${end}` : `LOST, then ${end}`;
}

function told({ answer }: Outcome): string {
  if (answer === null) return "no answer";
  return `exit ${String(answer.code)} ${answer.move === null ? answer.said : `${answer.move.result} (${answer.move.reason})`}`;
}

function silence({ silentMs }: Outcome): string {
  return silentMs === null ? "" : `silent ${seconds(silentMs)}`;
}

function short(outcome: Outcome | null): string {
  if (outcome === null) return "";
  return `${outcome.problems.length === 0 ? "" : "FAIL "}${outcome.lost === "no" ? "" : "LOST→"}${outcome.ending ?? "?"}${outcome.silentMs === null ? "" : ` ${seconds(outcome.silentMs)}`}`;
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}

function faults(outcomes: readonly Outcome[]): Fault[] {
  return Object.keys(FAULTS).filter(isFault).filter((fault) => outcomes.some(({ cell }) => cell.fault === fault));
}

function find(outcomes: readonly Outcome[], fault: Fault, phase: Phase): Outcome | null {
  return outcomes.find(({ cell }) => cell.fault === fault && cell.phase === phase) ?? null;
}
