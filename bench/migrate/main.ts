import { writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { cleanAbandoned } from "../../deploy/lab/lab.js";
import { toCareofError } from "../../model/errors.js";
import { record } from "../results.js";
import { Bare } from "./bare.js";
import { caseResult, caseTable, CHANNELS, LOADS, type CaseResult, type Load, type Measured } from "./cases.js";
import { Ours } from "./ours.js";

const MOVES = 20;
const QUICK_MOVES = 5;
/** Between two moves: what the last one left behind is over, and the guest runs at its own speed again. */
const REST_MS = 1500;

/** `npm run bench -- migrate`. Returns the exit code. */
export async function benchMigrate(args: readonly string[]): Promise<number> {
  let options: { readonly json?: string | undefined; readonly quick: boolean };
  try {
    options = parseArgs({ args: [...args], options: { json: { type: "string" }, quick: { type: "boolean", default: false } } }).values;
  } catch (thrown) {
    process.stderr.write(`bench migrate: ${toCareofError(thrown).message}\n`);
    return 2;
  }
  await cleanAbandoned();
  const results: CaseResult[] = [];
  for (const load of LOADS) {
    results.push(...await series(load, options.quick ? QUICK_MOVES : MOVES));
    if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify({ cases: results }, null, 2)}\n`);
  }
  const table = caseTable(results);
  process.stdout.write(`\n${table}\n`);
  record({ title: `migrate${options.quick ? " (quick)" : ""}`, command: `npm run bench -- migrate ${args.join(" ")}`, body: table, raw: { cases: results } });
  return 0;
}

/** In turns, each while the other side's guest stands still: the machine has two cores, and a busy guest takes one. */
async function series(load: Load, moves: number): Promise<readonly CaseResult[]> {
  process.stderr.write(`${load.name}: ${String(moves)} moves for each number of channels\n`);
  const ours = await Ours.open(load);
  let bare: Bare | null = null;
  try {
    bare = await Bare.open(load);
    await bare.freeze();
    const counted = new Map(CHANNELS.map((channels) => [channels, { careof: [] as Measured[], bare: [] as Measured[] }]));
    for (let i = 0; i < moves; i++) {
      for (const [channels, { careof, bare: other }] of counted) {
        await sleep(REST_MS);
        careof.push(await ours.migrate(load, channels));
        ours.freeze();
        await bare.thaw();
        await sleep(REST_MS);
        other.push(await bare.migrate(load, channels));
        await bare.freeze();
        ours.thaw();
        process.stderr.write(`  ${String(channels)} channel${channels === 1 ? "" : "s"}: ${line(careof.at(-1))}; bare ${line(other.at(-1))}\n`);
      }
    }
    return [...counted].map(([channels, { careof, bare: other }]) => caseResult(load.name, channels, careof, other));
  } finally {
    await bare?.close();
    await ours.close();
  }
}

function line(one: Measured | undefined): string {
  const value = (number: number | null | undefined): string => number?.toFixed(0) ?? "–";
  return `${value(one?.totalMs)} ms, pause ${value(one?.pauseMs)} ms, ${value((one?.bytes ?? 0) / 1e6)} MB`;
}
