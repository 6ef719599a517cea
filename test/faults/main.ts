import { writeFileSync } from "node:fs";
import { runCell, type Outcome } from "./cell.js";
import { cells, FAULTS, isFault, isPhase, PHASES } from "./matrix.js";
import { line, markdown, table } from "./report.js";
import { Stage } from "./stage.js";

/**
 * `npm run test:faults [-- --half] [--only FAULT[:PHASE]|:PHASE] [--markdown FILE]`: breaks one thing at one moment of a move, cell by cell, in a lab with a real guest.
 * Closes with `N passed, N failed`; exit 1 when a cell failed, 2 on wrong usage.
 */
const USAGE = `usage: npm run test:faults [-- [--half] [--only FAULT[:PHASE]|:PHASE] [--markdown FILE]]
faults: ${Object.keys(FAULTS).join(" ")}
phases: ${Object.keys(PHASES).join(" ")}\n`;

interface Choice {
  readonly half: boolean;
  readonly only: readonly [string, string | null] | null;
  readonly markdown: string | null;
}

function readArguments(words: readonly string[]): Choice | null {
  let choice: Choice = { half: false, only: null, markdown: null };
  for (let at = 0; at < words.length; at++) {
    const value = words[at + 1];
    if (words[at] === "--half") choice = { ...choice, half: true };
    else if (words[at] === "--only" && value !== undefined) choice = { ...choice, only: [value.split(":")[0] ?? "", value.split(":")[1] ?? null] };
    else if (words[at] === "--markdown" && value !== undefined) choice = { ...choice, markdown: value };
    else return null;
    if (words[at] !== "--half") at++;
  }
  return choice;
}

async function run(): Promise<number> {
  const choice = readArguments(process.argv.slice(2));
  const [named, phase] = choice?.only ?? [null, null];
  const fault = named === "" ? null : named;
  if (choice === null || (fault !== null && !isFault(fault)) || (phase !== null && !isPhase(phase))) {
    process.stderr.write(USAGE);
    return 2;
  }
  const interrupt = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => { interrupt.abort(); });
  const stage = new Stage();
  const outcomes: Outcome[] = [];
  try {
    for (const cell of cells({ half: choice.half, fault, phase })) {
      if (interrupt.signal.aborted) break;
      const outcome = await runCell(stage, cell);
      outcomes.push(outcome);
      process.stdout.write(`${line(outcome)}\n`);
      if (outcome.problems.length === 0) continue;
      process.stdout.write(`    logs: ${stage.keepLogs(`${cell.fault}-${cell.phase}`)}\n`);
      // What comes after a failure begins anew: it must not inherit it.
      await stage.close();
    }
  } finally {
    const left = await stage.close();
    stage.end();
    if (left.length > 0) process.stdout.write(`left over by the lab: ${left.join(", ")}\n`);
  }
  const failed = outcomes.filter(({ problems }) => problems.length > 0).length;
  process.stdout.write(`\n${table(outcomes)}\n`);
  if (choice.markdown !== null) writeFileSync(choice.markdown, markdown(outcomes));
  process.stdout.write(`${interrupt.signal.aborted ? "interrupted: " : ""}${String(outcomes.length - failed)} passed, ${String(failed)} failed\n`);
  return failed > 0 || interrupt.signal.aborted || outcomes.length === 0 ? 1 : 0;
}

process.exitCode = await run();
