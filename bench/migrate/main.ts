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
  for (const load of loads) {
    results.push(...await series(load, options.quick ? QUICK_MOVES : MOVES));
    if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify({ cases: results }, null, 2)}\n`);
  }
  const table = caseTable(results);
  process.stdout.write(`\n${table}\n`);
  record({ title: `migrate${options.quick ? " (quick)" : ""}`, command: `npm run bench -- migrate ${args.join(" ")}`, body: table, raw: { cases: results } });
  return 0;
}

function chosen(only: string | undefined): readonly Load[] {
  const names = only?.split(",") ?? LOADS.map(({ name }) => name);
  const unknown = names.find((name) => LOADS.every((load) => load.name !== name));
  if (unknown !== undefined) throw new CareofError("unknown-case", `no case "${unknown}": ${LOADS.map(({ name }) => name).join(" ")}`);
  return LOADS.filter(({ name }) => names.includes(name));
}

/** In turns, each while the other side's guest stands still: the machine has two cores, and a busy guest takes one. */
async function series(load: Load, moves: number): Promise<readonly CaseResult[]> {
  process.stderr.write(`${load.name}: ${String(moves)} moves for each number of channels\n`);
  const ours = await Ours.open(load);
  try {
    ours.freeze();
    const bare = await Bare.open(ours.lab, load, ours.disk);
    await sleep(BOOT_MS);
    bare.freeze();
    ours.thaw();
    const counted = new Map(CHANNELS.map((channels) => [channels, { careof: [] as Measured[], bare: [] as Measured[], bareTls: [] as Measured[] }]));
    for (let i = -WARM_UP; i < moves; i++) {
      for (const [channels, { careof, bare: tcp, bareTls }] of counted) {
        await sleep(REST_MS);
        const round: { readonly into: Measured[]; readonly one: Measured }[] = [{ into: careof, one: await ours.migrate(load, channels) }];
        ours.freeze();
        bare.thaw();
        for (const way of i % 2 === 0 ? ["tcp", "tls"] as const : ["tls", "tcp"] as const) {
          await sleep(REST_MS);
          round.push({ into: way === "tcp" ? tcp : bareTls, one: await bare.migrate(channels, way) });
        }
        bare.freeze();
        ours.thaw();
        if (i < 0) continue;
        for (const { into, one } of round) into.push(one);
        process.stderr.write(`  ${String(channels)} channel${channels === 1 ? "" : "s"}: ${line(careof.at(-1))}; bare ${line(tcp.at(-1))}; with TLS ${line(bareTls.at(-1))}\n`);
      }
    }
    return [...counted].map(([channels, each]) => caseResult(load.name, channels, each));
  } finally {
    await ours.close();
  }
}

function line(one: Measured | undefined): string {
  const value = (number: number | null | undefined): string => number?.toFixed(0) ?? "–";
  return `${value(one?.totalMs)} ms, pause ${value(one?.pauseMs)} ms, ${value((one?.bytes ?? 0) / 1e6)} MB`;
}
