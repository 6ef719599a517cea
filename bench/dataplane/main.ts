import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { cleanAbandoned } from "../../deploy/lab/lab.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { record } from "../results.js";
import { measureIpip, type IpipResult } from "./ipip.js";
import { METRICS, sample, spreadSample, type Metric, type Round, type Sample, type Times } from "./measure.js";
import { bindingsResult, notMeasured, VARIANTS, variantResult, type BindingsResult, type VariantName, type VariantResult } from "./outcome.js";
import { timed, timesOf, type TrafficTimes } from "./program-times.js";
import { report } from "./report.js";
import { targets, type Target } from "./targets.js";
import { ours, plain, vxlan, wireguard, type Path } from "./variants.js";

const MANY = 10_000;

interface Extent extends Times {
  readonly rounds: number;
  /** Rounds in user-mode-linux. */
  readonly umlRounds: number;
}

const FULL: Extent = { rounds: 15, umlRounds: 15, warmMs: 150, windowMs: 400 };
/** From six on there is an interval. */
const QUICK: Extent = { rounds: 8, umlRounds: 0, warmMs: 100, windowMs: 300 };

export interface DataplaneResult {
  readonly rounds: number;
  readonly variants: readonly VariantResult[];
  readonly bindings: BindingsResult | null;
  readonly ipip: IpipResult | null;
  readonly targets: readonly Target[];
  readonly programTimes: readonly TrafficTimes[];
}

/** What a round yields: every path in turn, metric by metric, so that what is compared lies as close together as it can. */
interface Yield {
  readonly samples: ReadonlyMap<string, Round>;
  readonly all: Readonly<Record<"plain" | "many", Sample>>;
}

/** `npm run bench -- dataplane`. Returns the exit code: 1 when a variant yields nothing at all. */
export async function benchDataplane(args: readonly string[]): Promise<number> {
  let options: { readonly json: string | undefined; readonly quick: boolean; readonly ipipOnly: boolean };
  try {
    const { values } = parseArgs({ args: [...args], options: { json: { type: "string" }, quick: { type: "boolean", default: false }, only: { type: "string" } } });
    if (values.only !== undefined && values.only !== "ipip") throw new CareofError("unknown-case", `--only takes ipip, not "${values.only}"`);
    options = { json: values.json, quick: values.quick, ipipOnly: values.only === "ipip" };
  } catch (thrown) {
    process.stderr.write(`bench dataplane: ${toCareofError(thrown).message}\n`);
    return 2;
  }
  await cleanAbandoned();
  const say = (line: string): void => { process.stderr.write(`${line}\n`); };
  const extent = options.quick ? QUICK : FULL;
  const result = options.ipipOnly ? await ipipOnly(extent, say) : await measure(extent, say);
  if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(result, null, 2)}\n`);
  const body = report(result);
  process.stdout.write(`\n${body}\n`);
  if (options.ipipOnly && result.ipip === null) return 1; // nothing to keep
  record({ title: `dataplane${options.quick ? " (quick)" : ""}`, command: `npm run bench -- dataplane ${args.join(" ")}`, body, raw: result });
  return result.variants.every((each) => each.notMeasured !== undefined || each.tcpDownGbps !== null) ? 0 : 1;
}

export async function measure(extent: Extent, say: (line: string) => void): Promise<DataplaneResult> {
  const paths = new Map<string, Path>();
  try {
    const make: readonly (readonly [VariantName | "many", () => Promise<Path>])[] = [
      ["plain", plain], ["bpf", () => ours("bpf", 1)], ["many", () => ours("bpf", MANY)], ["vxlan", vxlan], ["wireguard-go", wireguard],
    ];
    for (const [name, open] of make) paths.set(name, await open());
    const yields: Yield[] = [];
    for (let n = 1; n <= extent.rounds; n++) {
      yields.push(await round(paths, extent));
      const last = yields.at(-1);
      say(`round ${String(n)} of ${String(extent.rounds)}: ${[...last?.samples ?? []].map(([name, of]) => `${name} ${figure(of.tcpDown.rate)}/${figure(of.tcpUp.rate)} Gbit/s`).join(", ")}`);
    }
    const of = (name: string): Round[] => yields.flatMap(({ samples }) => samples.get(name) ?? []);
    const programTimes = await times(require(paths, "bpf"), require(paths, "many"), extent);
    const ipip = extent.umlRounds === 0 ? "left out of --quick: it takes minutes in user-mode-linux" : await measureIpip(extent.umlRounds, extent, say);
    const variants = VARIANTS.map((name): VariantResult => {
      if (paths.has(name)) return variantResult(name, of(name), of("plain"));
      return typeof ipip === "string" ? notMeasured(name, ipip) : ipip.ipip;
    });
    const bindings = bindingsResult(MANY, of("many"), of("bpf"), yields.map(({ all }) => all.many), yields.map(({ all }) => all.plain));
    const beside = typeof ipip === "string" ? null : ipip;
    return { rounds: extent.rounds, variants, bindings, ipip: beside, targets: targets(variants, bindings, beside), programTimes };
  } finally {
    for (const path of paths.values()) await path.close();
  }
}

/** What user-mode-linux is for, without the rest. */
async function ipipOnly(extent: Extent, say: (line: string) => void): Promise<DataplaneResult> {
  const found = await measureIpip(extent.rounds, extent, say);
  const ipip = typeof found === "string" ? null : found;
  const variants = VARIANTS.map((name) => (name === "ipip" && ipip !== null ? ipip.ipip : notMeasured(name, name === "ipip" && typeof found === "string" ? found : "left out by --only ipip")));
  return { rounds: extent.rounds, variants, bindings: null, ipip, targets: targets([], null, ipip), programTimes: [] };
}

async function round(paths: ReadonlyMap<string, Path>, extent: Times): Promise<Yield> {
  const found = new Map<string, Partial<Record<Metric, Sample>>>();
  for (const metric of METRICS) {
    for (const [name, path] of paths) found.set(name, { ...found.get(name), [metric]: await sample(path, metric, extent) });
  }
  const nothing: Sample = { rate: null, cpuNs: null };
  const empty: Round = { tcpDown: nothing, tcpUp: nothing, tcp8Down: nothing, tcp8Up: nothing, ppsDown: nothing, ppsUp: nothing };
  const all = { plain: await spreadSample(require(paths, "plain"), MANY, extent), many: await spreadSample(require(paths, "many"), MANY, extent) };
  return { samples: new Map([...found].map(([name, part]) => [name, { ...empty, ...part }])), all };
}

/** After the rounds, so that the statistics cost none of them anything. */
async function times(one: Path, many: Path, extent: Times): Promise<TrafficTimes[]> {
  const found = await timesOf(one, 1, METRICS, extent);
  found.push(...await timesOf(many, MANY, ["tcpDown", "tcpUp", "ppsDown", "ppsUp"], extent));
  found.push(await timed(many, "ppsAll", MANY, () => spreadSample(many, MANY, extent)));
  return found;
}

function require(paths: ReadonlyMap<string, Path>, name: string): Path {
  const found = paths.get(name);
  if (found === undefined) throw toCareofError(new Error(`there is no path "${name}"`));
  return found;
}

function figure(value: number | null): string {
  return value === null ? "–" : value.toFixed(1);
}
