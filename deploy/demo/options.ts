import { parseArgs } from "node:util";
import { CareofError } from "../../model/errors.js";

export interface DemoOptions {
  /** File for the figures; `null` for none. */
  readonly json: string | null;
  readonly report: string;
  /** File for the plot alone; `null` for none. */
  readonly svg: string | null;
  /** Packets per second and direction. */
  readonly pps: number;
  /** Mbit/s and direction. */
  readonly bulkMbit: number;
  /** Counting before and after each move, milliseconds. */
  readonly marginMs: number;
  readonly keep: boolean;
}

export const USAGE = `usage: careof demo [--json FILE] [--report FILE] [--svg FILE] [--pps N] [--bulk-mbit N] [--quick] [--keep]

Moves a real guest between two hosts in different subnets and back, all in network namespaces of this machine,
while a correspondent talks to it, and says what that cost.

  --json FILE      writes the figures as JSON
  --report FILE    writes the report there instead of demo-report.html
  --svg FILE       writes the report's plot alone, as SVG
  --pps N          numbered UDP packets per second each way, 10 to 10000 (1000)
  --bulk-mbit N    TCP bulk each way in Mbit/s, 1 to 200 (30)
  --quick          2.5 instead of 4 seconds of traffic before and after each move
  --keep           leaves everything running for a look; the next run removes it
`;

/** @throws CareofError `usage`; `null` when help is asked for */
export function demoOptions(args: readonly string[]): DemoOptions | null {
  const values = parsedValues(args);
  if (values.help === true) return null;
  return {
    json: values.json ?? null,
    report: values.report ?? "demo-report.html",
    svg: values.svg ?? null,
    pps: whole("--pps", values.pps ?? "1000", 10, 10_000),
    bulkMbit: whole("--bulk-mbit", values["bulk-mbit"] ?? "30", 1, 200),
    marginMs: values.quick === true ? 2500 : 4000,
    keep: values.keep ?? false,
  };
}

function parsedValues(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: {
        json: { type: "string" }, report: { type: "string" }, svg: { type: "string" }, pps: { type: "string" }, "bulk-mbit": { type: "string" },
        quick: { type: "boolean" }, keep: { type: "boolean" }, help: { type: "boolean", short: "h" },
      },
    }).values;
  } catch (cause) {
    throw new CareofError("usage", cause instanceof Error ? cause.message : String(cause), { cause });
  }
}

function whole(name: string, text: string, least: number, most: number): number {
  const value = /^[0-9]{1,6}$/.test(text) ? Number(text) : NaN;
  if (!(value >= least && value <= most)) throw new CareofError("usage", `${name} takes a whole number from ${String(least)} to ${String(most)}, not "${text}"`);
  return value;
}
