import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { cleanAbandoned } from "../../deploy/lab/lab.js";
import { toCareofError } from "../../model/errors.js";
import { record } from "../results.js";
import { underLoad } from "./load.js";
import { repointReport, repointResult, type RepointResult } from "./outcome.js";
import { restore } from "./restore.js";
import { TwoHosts } from "./two-hosts.js";
import { bpfWay, ipipWay, spawnWay, type Way } from "./ways.js";

/** How much of each is done. */
export interface RepointExtent {
  readonly repoints: number;
  readonly spawned: number;
  readonly bindings: number;
  readonly restores: number;
  readonly underLoad: number;
  readonly pps: number;
}

const FULL: RepointExtent = { repoints: 100_000, spawned: 300, bindings: 100_000, restores: 7, underLoad: 1000, pps: 5000 };
const QUICK: RepointExtent = { ...FULL, repoints: 20_000, spawned: 100, restores: 3 };

/** `npm run bench -- repoint`. Returns the exit code: 1 when a packet was lost. */
export async function benchRepoint(args: readonly string[]): Promise<number> {
  let options: { readonly json: string | undefined; readonly quick: boolean };
  try {
    const { values } = parseArgs({ args: [...args], options: { json: { type: "string" }, quick: { type: "boolean", default: false } } });
    options = { json: values.json, quick: values.quick };
  } catch (thrown) {
    process.stderr.write(`bench repoint: ${toCareofError(thrown).message}\n`);
    return 2;
  }
  await cleanAbandoned();
  const result = await measureRepoint(options.quick ? QUICK : FULL, (line) => { process.stderr.write(`${line}\n`); });
  if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(result, null, 2)}\n`);
  const body = repointReport(result);
  process.stdout.write(`\n${body}\n`);
  record({ title: `repoint${options.quick ? " (quick)" : ""}`, command: `npm run bench -- repoint ${args.join(" ")}`, body, raw: result });
  return result.load.lostDown + result.load.lostUp === 0 ? 0 : 1;
}

export async function measureRepoint(extent: RepointExtent, say: (line: string) => void): Promise<RepointResult> {
  const two = await TwoHosts.make();
  try {
    const ways: Way[] = [];
    for (const [run, n] of [[bpfWay, extent.repoints], [ipipWay, extent.repoints], [spawnWay, extent.spawned]] as const) {
      const found = await run(two, n);
      ways.push(found);
      say(`${found.name}: ${String(found.p50Us)} µs, 99 % within ${String(found.p99Us)} µs`);
    }
    const restored = await restore(two, extent.bindings, extent.restores);
    say(`${String(restored.bindings)} bindings: ${String(restored.emptyMs)} ms, ${String(restored.keptMs)} ms where the kernel has them`);
    const load = await underLoad(two, extent.underLoad, extent.pps);
    return repointResult(ways, restored, load);
  } finally {
    await two.close();
  }
}
