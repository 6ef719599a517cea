import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { cleanAbandoned } from "../../deploy/lab/lab.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { record } from "../results.js";
import { CASES, type HandoverCase } from "./cases.js";
import { Control } from "./control.js";
import { MARGIN_MS, Moves } from "./moves.js";
import { EXTERNAL, externalCases } from "./external.js";
import { caseResult, caseTable, type CaseResult, type ControlCounted, type Counted } from "./outcome.js";

const MOVES = 50;
const QUICK_MOVES = 5;
/** Moves at a stretch before it is the control's turn. */
const TURN = 5;
/** After a case's last move, before the TCP session is used that has been idle since before the first one of its turn; in the quick series only in the first case, beside its control's turn. */
const IDLE_MS = 60_000;

const KNOWN: readonly string[] = [...CASES.map((each) => each.name), EXTERNAL];

interface Options {
  readonly json: string | undefined;
  readonly quick: boolean;
  readonly cases: readonly HandoverCase[];
  readonly external: boolean;
}

/** `npm run bench -- handover`. Returns the exit code: 1 when a move did not complete. */
export async function benchHandover(args: readonly string[]): Promise<number> {
  let options: Options;
  try {
    options = parse(args);
  } catch (thrown) {
    process.stderr.write(`bench handover: ${toCareofError(thrown).message}\n`);
    return 2;
  }
  await cleanAbandoned();
  const results: CaseResult[] = [];
  const keep = (...more: readonly CaseResult[]): void => {
    results.push(...more);
    if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify({ cases: results }, null, 2)}\n`);
  };
  for (const each of options.cases) keep(await series(each, options.quick));
  if (options.external) keep(...await externalCases(options.quick));
  const table = caseTable(results);
  process.stdout.write(`\n${table}\n`);
  record({ title: `handover${options.quick ? " (quick)" : ""}`, command: `npm run bench -- handover ${args.join(" ")}`, body: table, raw: { cases: results } });
  return results.every((result) => result.completed === result.moves) ? 0 : 1;
}

function parse(args: readonly string[]): Options {
  const { values } = parseArgs({ args: [...args], options: { json: { type: "string" }, quick: { type: "boolean", default: false }, only: { type: "string" } } });
  const names = values.only?.split(",") ?? KNOWN;
  const cases = names.filter((name) => name !== EXTERNAL).map((name) => {
    const found = CASES.find((each) => each.name === name);
    if (found === undefined) throw new CareofError("unknown-case", `no case "${name}": ${KNOWN.join(", ")}`);
    return found;
  });
  return { json: values.json, quick: values.quick, cases, external: names.includes(EXTERNAL) };
}

async function series(of: HandoverCase, quick: boolean): Promise<CaseResult> {
  const moves = quick ? QUICK_MOVES : MOVES;
  process.stderr.write(`${of.name}: ${String(of.pps)} packets/s each way, ${String(moves)} moves\n`);
  const lab = await Moves.open(of);
  let control: Control | null = null;
  try {
    if (of.control) control = await Control.open(of);
    const counted: Counted[] = [];
    const controls: ControlCounted[] = [];
    let survived = true;
    while (counted.length < moves) {
      const some = Math.min(TURN, moves - counted.length);
      const last = counted.length + some === moves && (!quick || of === CASES[0]);
      const how = { moves: some, marginMs: MARGIN_MS, idleMs: last ? IDLE_MS : 0 };
      const part = await lab.run(how, (one) => { process.stderr.write(line(one)); });
      counted.push(...part.counted);
      const rest = part.rest();
      if (!quick) survived &&= await rest;
      if (control !== null) controls.push(...await control.run(how, (one) => { process.stderr.write(`  control: silent ${ms(one.serviceGapDownMs)} down, ${ms(one.serviceGapUpMs)} up\n`); }));
      survived &&= await rest;
    }
    return caseResult(of, counted, controls, survived);
  } finally {
    await control?.close();
    await lab.close();
  }
}

function line({ move, window }: Counted): string {
  const lost = window.sentDown - window.receivedDown + window.sentUp - window.receivedUp;
  return `  ${move.result}: lost ${String(lost)} of ${String(window.sentDown + window.sentUp)}, pause ${ms(move.pauseMs)}, gap ${ms(move.gapDownMs)} down, ${ms(move.gapUpMs)} up, silent ${ms(window.serviceGapDownMs)} down, ${ms(window.serviceGapUpMs)} up\n`;
}

function ms(value: number | null): string {
  return value === null ? "not measured" : `${value.toFixed(1)} ms`;
}
