import { writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { cleanAbandoned } from "../../deploy/lab/lab.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { record } from "../results.js";
import { Bare } from "./bare.js";
import { caseResult, CHANNELS, LOADS, type CaseResult, type Load, type Measured } from "./cases.js";
import { Ours } from "./ours.js";
import { caseTable } from "./table.js";

const MOVES = 6;
const QUICK_MOVES = 3;
/** Rounds that are not counted: the agents' code is compiled in their first moves, as it is in agents that have run for a while. */
const WARM_UP = 1;
/** Between two moves: what the last one left behind is over, and the guest runs at its own speed again. */
const REST_MS = 1000;
/** The bare guest boots. */
const BOOT_MS = 5000;

/** `npm run bench -- migrate`. Returns the exit code. */
export async function benchMigrate(args: readonly string[]): Promise<number> {
  let options: { readonly json?: string | undefined; readonly quick: boolean; readonly only?: string | undefined };
  let loads: readonly Load[];
  try {
    options = parseArgs({ args: [...args], options: { json: { type: "string" }, quick: { type: "boolean", default: false }, only: { type: "string" } } }).values;
    loads = chosen(options.only);
  } catch (thrown) {
    process.stderr.write(`bench migrate: ${toCareofError(thrown).message}\n`);
    return 2;
  }
  await cleanAbandoned();
  const results: CaseResult[] = [];
  const ended: string[] = [];
  for (const load of loads) {
    results.push(...await series(load, options.quick ? QUICK_MOVES : MOVES, (why) => { ended.push(`${load.name}: ended before its time, ${why}`); }));
    if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify({ cases: results, ended }, null, 2)}\n`);
  }
  const table = [caseTable(results), ...ended].join("\n\n");
  process.stdout.write(`\n${table}\n`);
  record({ title: `migrate${options.quick ? " (quick)" : ""}`, command: `npm run bench -- migrate ${args.join(" ")}`, body: table, raw: { cases: results, ended } });
  return ended.length === 0 ? 0 : 1;
}

function chosen(only: string | undefined): readonly Load[] {
  const names = only?.split(",") ?? LOADS.map(({ name }) => name);
  const unknown = names.find((name) => LOADS.every((load) => load.name !== name));
  if (unknown !== undefined) throw new CareofError("unknown-case", `no case "${unknown}": ${LOADS.map(({ name }) => name).join(" ")}`);
  return LOADS.filter(({ name }) => names.includes(name));
}

/** What was measured over one number of channels, in the order of the rounds. */
type Counted = Readonly<Record<"careof" | "clear" | "bare" | "bareTls", Measured[]>>;

/** `ended` is told why it ended before its time: what was measured before a guest died, or a move failed, counts all the same. */
async function series(load: Load, moves: number, ended: (why: string) => void): Promise<readonly CaseResult[]> {
  process.stderr.write(`${load.name}: ${String(moves)} moves for each number of channels\n`);
  const ours = await Ours.open(load);
  try {
    ours.freeze();
    const bare = await Bare.open(ours.lab, load, ours.disk);
    await sleep(BOOT_MS);
    bare.freeze();
    ours.thaw();
    const counted = new Map<number, Counted>(CHANNELS.map((channels) => [channels, { careof: [], clear: [], bare: [], bareTls: [] }]));
    try {
      for (let i = -WARM_UP; i < moves; i++) for (const [channels, into] of counted) await turn({ ours, bare, load, channels, round: i, into });
    } catch (thrown) {
      if ([...counted.values()].some(({ bareTls }) => bareTls.length === 0)) throw thrown;
      ended(toCareofError(thrown).message);
    }
    return [...counted].flatMap(([channels, { clear, ...each }]) => [caseResult(load.name, channels, each), caseResult(`${load.name}, in clear`, channels, { ...each, careof: clear })]);
  } finally {
    await ours.close();
  }
}

interface Turn {
  readonly ours: Ours;
  readonly bare: Bare;
  readonly load: Load;
  readonly channels: number;
  readonly round: number;
  readonly into: Counted;
}

/** One after the other, each while the other side's guest stands still: the machine has two cores, and a busy guest takes one. */
async function turn({ ours, bare, load, channels, round, into }: Turn): Promise<void> {
  await sleep(REST_MS);
  const plainFirst = round % 2 === 0;
  const one = await ours.migrate(load, channels, !plainFirst);
  await sleep(REST_MS);
  const other = await ours.migrate(load, channels, plainFirst);
  ours.freeze();
  bare.thaw();
  await sleep(REST_MS);
  const first = await bare.migrate(channels, plainFirst ? "tcp" : "tls");
  await sleep(REST_MS);
  const second = await bare.migrate(channels, plainFirst ? "tls" : "tcp");
  bare.freeze();
  ours.thaw();
  if (round < 0) return;
  const [tcp, tls] = plainFirst ? [first, second] : [second, first];
  const [clear, careof] = plainFirst ? [one, other] : [other, one];
  into.careof.push(careof);
  into.clear.push(clear);
  into.bare.push(tcp);
  into.bareTls.push(tls);
  process.stderr.write(`  ${String(channels)} channel${channels === 1 ? "" : "s"}: ${line(careof)}; in clear ${line(clear)}; bare ${line(tcp)}; with TLS ${line(tls)}\n`);
}

function line({ totalMs, pauseMs, bytes }: Measured): string {
  const value = (number: number | null): string => number?.toFixed(0) ?? "–";
  return `${value(totalMs)} ms, pause ${value(pauseMs)} ms, ${value((bytes ?? 0) / 1e6)} MB`;
}
