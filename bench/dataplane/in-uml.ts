import { release } from "node:os";
import { toCareofError } from "../../model/errors.js";
import { METRICS, sample, type Metric, type Sample } from "./measure.js";
import { timesOf } from "./program-times.js";
import { device, ours as driver, plain, type Path } from "./variants.js";

/*
 * Runs in user-mode-linux (ipip.ts): in-uml.js ROUNDS WARM_MS WINDOW_MS. Measures the paths that need the kernel's ipip device, one after another in every round, and says
 * one line of JSON at the end.
 */

const [rounds = 0, warmMs = 0, windowMs = 0] = process.argv.slice(2).map(Number);
const paths: (readonly [name: "plain" | "device" | "ipip", path: Path])[] = [];
try {
  for (const [name, open] of [["plain", plain], ["device", device], ["ipip", () => driver("ipip", 1)]] as const) paths.push([name, await open()]);
  const found: Record<string, Partial<Record<Metric, Sample>>>[] = [];
  for (let n = 1; n <= rounds; n++) {
    const round: Record<string, Partial<Record<Metric, Sample>>> = {};
    for (const metric of METRICS) {
      for (const [name, path] of paths) round[name] = { ...round[name], [metric]: await sample(path, metric, { warmMs, windowMs }) };
    }
    found.push(round);
    process.stdout.write(`round ${String(n)} of ${String(rounds)} in user-mode-linux\n`);
  }
  const ours = paths.find(([name]) => name === "ipip")?.[1];
  const times = ours === undefined ? [] : await timesOf(ours, 1, METRICS, { warmMs, windowMs });
  process.stdout.write(`${JSON.stringify({ kernel: release(), rounds: found, times })}\n`);
} catch (thrown) {
  process.stdout.write(`in-uml: ${toCareofError(thrown).message}\n`);
  process.exitCode = 1;
} finally {
  for (const [, path] of paths) await path.close();
}
