import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { cleanAbandoned } from "../../deploy/lab/lab.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { record } from "../results.js";
import { CASES, type HandoverCase } from "./cases.js";
import { Control } from "./control.js";
import { MARGIN_MS, Moves } from "./moves.js";
import { EXTERNAL, EXTERNAL_NAMES, externalCases } from "./external.js";
import { caseResult, caseTable, type CaseResult, type ControlCounted, type Counted } from "./outcome.js";

const MOVES = 50;
const QUICK_MOVES = 5;
/** Moves at a stretch before it is the control's turn. */
const TURN = 5;
/** After a case's last move, before the TCP session is used that has been idle since before the first one of its turn; in the quick series only in the first case. */
const IDLE_MS = 60_000;

const KNOWN: readonly string[] = [...CASES.map((each) => each.name), EXTERNAL];
/** In the order of the results. */
const NAMES: readonly string[] = [...CASES.map((each) => each.name), ...EXTERNAL_NAMES];

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
    results.sort((one, other) => NAMES.indexOf(one.name) - NAMES.indexOf(other.name));
    if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify({ cases: results }, null, 2)}\n`);
  };
  const waiting: (() => Promise<CaseResult>)[] = [];
  const finishAll = async (): Promise<void> => {
    for (const finish of waiting.splice(0)) keep(await finish());
  };
  try {
    for (const each of options.cases) {
      const finish = await series(each, options.quick);
      await finishAll();
      waiting.push(finish);
      // In the quick series a guest that waits for its idle session does so beside the next case.
      if (!options.quick || each !== CASES[0]) await finishAll();
    }
    if (options.external) keep(...await externalCases(options.quick));
  } finally {
    await finishAll();
  }
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

/** A case's moves are over when this resolves; what is left is to wait for the session that is idle for a minute, and to clean up. */
async function series(of: HandoverCase, quick: boolean): Promise<() => Promise<CaseResult>> {
  const moves = quick ? QUICK_MOVES : MOVES;
  process.stderr.write(`${of.name}: ${String(of.pps)} packets/s each way, ${String(moves)} moves\n`);
  const lab = await Moves.open(of);
  let control: Control | null = null;
  const close = async (): Promise<void> => {
    await control?.close();
    await lab.close();
  };
  try {
    if (of.control) control = await Control.open(of);
    const counted: Counted[] = [];
    const controls: ControlCounted[] = [];
    let rest: () => Promise<boolean> = () => Promise.resolve(true);
    let survived = true;
    while (counted.length < moves) {
      survived &&= await rest();
      const some = Math.min(TURN, moves - counted.length);
      const last = counted.length + some === moves && (!quick || of === CASES[0]);
      const how = { moves: some, marginMs: MARGIN_MS, idleMs: last ? IDLE_MS : 0, shared: quick };
      const part = await lab.run(how, (one) => { process.stderr.write(line(one)); });
      counted.push(...part.counted);
      rest = part.rest;
      if (control !== null) controls.push(...await control.run(how, (one) => { process.stderr.write(`  control: silent ${ms(one.serviceGapDownMs)} down, ${ms(one.serviceGapUpMs)} up\n`); }));
    }
    return async () => {
      try {
        return caseResult(of, counted, controls, (await rest()) && survived, lab.gates);
      } finally {
        await close();
      }
    };
  } catch (thrown) {
    await close();
    throw thrown;
  }
}

function line({ move, window, portDropped }: Counted): string {
  const lost = window.sentDown - window.receivedDown + window.sentUp - window.receivedUp;
  const full = (portDropped ?? 0) + window.guestRefused === 0 ? "" : ` (${String(portDropped ?? 0)} at the full queue of the port, ${String(move.overflowed ?? 0)} of them while the guest stood; ${String(window.guestRefused)} at the guest's full socket)`;
  return `  ${move.result}: lost ${String(lost)} of ${String(window.sentDown + window.sentUp)}${full}, pause ${ms(move.pauseMs)}, gap ${ms(move.gapDownMs)} down, ${ms(move.gapUpMs)} up, silent ${ms(window.serviceGapDownMs)} down, ${ms(window.serviceGapUpMs)} up\n`;
}

function ms(value: number | null): string {
  return value === null ? "not measured" : `${value.toFixed(1)} ms`;
}
