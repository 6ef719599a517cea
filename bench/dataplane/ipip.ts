import { spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { z } from "zod";
import { compiled, REPOSITORY } from "../../deploy/lab/program.js";
import { compare, variantResult, type Compared, type VariantResult } from "./outcome.js";
import { METRICS, type Times } from "./measure.js";
import type { TrafficTimes } from "./program-times.js";

/** The ipip driver and the bare device, in a kernel that has it: user-mode-linux, with one processor. */
export interface IpipResult {
  readonly kernel: string;
  readonly rounds: number;
  /** Ratios to plain forwarding in the same kernel. */
  readonly ipip: VariantResult;
  readonly device: VariantResult;
  /** The driver's ratios to the bare device. */
  readonly besideDevice: Compared;
  /** Of the driver's programs. This kernel has no compiler for them: it interprets every instruction. */
  readonly programTimes: readonly TrafficTimes[];
}

const sampleSchema = z.object({ rate: z.number().nullable(), cpuNs: z.number().nullable() });
const roundSchema = z.object({ tcpDown: sampleSchema, tcpUp: sampleSchema, tcp8Down: sampleSchema, tcp8Up: sampleSchema, ppsDown: sampleSchema, ppsUp: sampleSchema });
const timesSchema = z.array(z.object({
  traffic: z.enum(METRICS), bindings: z.number(), share: z.number(), programs: z.array(z.object({ program: z.string(), runs: z.number(), nsPerRun: z.number() })),
}));
const saidSchema = z.object({ kernel: z.string(), rounds: z.array(z.object({ plain: roundSchema, device: roundSchema, ipip: roundSchema })), times: timesSchema });

/** Generous: a sample takes about a second there, of which most is starting processes. */
const LIMIT_MS_A_ROUND = 60_000;

/** Measures in user-mode-linux; where it does not run, why. */
export async function measureIpip(rounds: number, { warmMs, windowMs }: Times, say: (line: string) => void): Promise<IpipResult | string> {
  // Before: the compiler would take its time inside.
  await compiled(join("bench", "dataplane"), "flood");
  const words = [join(REPOSITORY, "test", "uml", "boot.sh"), process.execPath, join(REPOSITORY, "dist", "bench", "dataplane", "in-uml.js"), rounds, warmMs, windowMs].map(String);
  const child = spawn("bash", words, { stdio: ["ignore", "pipe", "pipe"] });
  const timer = setTimeout(() => { child.kill("SIGTERM"); }, rounds * LIMIT_MS_A_ROUND);
  const ended = new Promise<void>((resolve) => { child.once("close", () => { resolve(); }); });
  const ways: { result: z.infer<typeof saidSchema> | null; last: string } = { result: null, last: "" };
  const heard = (line: string): void => {
    if (line.startsWith("{")) ways.result = saidSchema.parse(JSON.parse(line));
    else if (line.trim() !== "") ways.last = line;
    if (line.startsWith("round ")) say(line);
  };
  createInterface({ input: child.stdout }).on("line", heard);
  createInterface({ input: child.stderr }).on("line", heard);
  await ended;
  clearTimeout(timer);
  if (ways.result === null) return `user-mode-linux did not measure it: ${ways.last}`;
  const { kernel, rounds: found, times } = ways.result;
  const [plain, device, ipip] = (["plain", "device", "ipip"] as const).map((name) => found.map((round) => round[name]));
  return outcome(kernel, { plain: plain ?? [], device: device ?? [], ipip: ipip ?? [] }, times);
}

type Rounds = Parameters<typeof compare>[0];

export function outcome(kernel: string, { device, ipip, plain }: { readonly plain: Rounds; readonly device: Rounds; readonly ipip: Rounds }, programTimes: readonly TrafficTimes[] = []): IpipResult {
  const measuredIn = `user-mode-linux, Linux ${kernel}`;
  return {
    kernel, rounds: plain.length,
    ipip: { ...variantResult("ipip", ipip, plain), measuredIn }, device: { ...variantResult("device", device, plain), measuredIn },
    besideDevice: compare(ipip, device), programTimes,
  };
}
