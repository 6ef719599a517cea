import { readFileSync } from "node:fs";
import { toCareofError } from "../../model/errors.js";
import { probeClock, probeForwarding, probeKernel, probeNetfilter, probeReversePath, probeUplink, type Probe } from "../../net/probe.js";
import { planFor, type DoctorPlan } from "./plan.js";
import { probePorts } from "./ports-check.js";
import { probeQemu } from "./qemu-check.js";

export interface DoctorOptions {
  readonly output: "text" | "json";
  /** A home agent's or a host agent's file: then its interface and its ports are what is looked at. */
  readonly config?: string;
}

/**
 * `careof doctor`: looks at everything on this machine that careof rests on and says how to mend what is wrong. Changes nothing.
 * Returns the exit code: 1 when something is wrong, 0 when there are warnings at most.
 */
export async function runDoctor(options: DoctorOptions, write: (text: string) => void = (text) => process.stdout.write(text)): Promise<number> {
  const probes = await examine(options.config);
  write(options.output === "json" ? `${JSON.stringify(probes, null, 2)}\n` : report(probes));
  return probes.some((probe) => probe.ok === false) ? 1 : 0;
}

async function examine(config: string | undefined): Promise<readonly Probe[]> {
  let plan: DoctorPlan;
  const probes: Probe[] = [];
  try {
    plan = planFor(config);
    if (config !== undefined) probes.push({ name: "configuration", ok: true, found: `${config} (${plan.role})`, mend: "" });
  } catch (thrown) {
    plan = planFor(undefined);
    probes.push({ name: "configuration", ok: false, found: toCareofError(thrown).message, mend: "mend the file; README.md lists what it may hold" });
  }
  probes.push({ name: "node", ok: true, found: process.version, mend: "" }, ...attempt("kernel", probeKernel));
  const uplink = plan.uplink ?? defaultRouteInterface();
  if (uplink === null) probes.push({ name: "uplink", ok: "warn", found: "this machine has no default route and no configuration was given", mend: "give the part's file: careof doctor --config FILE" });
  else probes.push(...attempt("uplink", () => [probeUplink(uplink), probeReversePath(uplink)]));
  probes.push(...attempt("forwarding", () => [probeForwarding()]), await probeNetfilter(), ...await probePorts(plan.ports));
  if (plan.qemu !== null) probes.push(...await probeQemu(plan.qemu.binary, plan.qemu.accel));
  probes.push(...attempt("clock", () => [probeClock()]));
  return probes;
}

/** A probe that cannot be made is a finding too, and the others go on. */
function attempt(name: string, probe: () => readonly Probe[]): readonly Probe[] {
  try {
    return probe();
  } catch (thrown) {
    return [{ name, ok: false, found: `cannot be examined: ${toCareofError(thrown).message}`, mend: "run as root on Linux 5.10 or later" }];
  }
}

/** Name of the interface of the IPv4 default route, `null` without one. */
function defaultRouteInterface(): string | null {
  const rows = readFileSync("/proc/net/route", "utf8").split("\n").slice(1).map((row) => row.split("\t"));
  return rows.find((row) => row[1] === "00000000" && row[7] === "00000000")?.[0] ?? null;
}

const MARK = new Map<Probe["ok"], string>([[true, "ok  "], ["warn", "warn"], [false, "FAIL"]]);

/** For people, at most 80 columns. */
export function report(probes: readonly Probe[]): string {
  const width = Math.max(...probes.map((probe) => probe.name.length));
  const lines = probes.flatMap((probe) => [
    ...wrapped(`${MARK.get(probe.ok) ?? ""}  ${probe.name.padEnd(width)}  `, probe.found, width + 8),
    ...(probe.mend === "" ? [] : wrapped(`${" ".repeat(width + 8)}→ `, probe.mend, width + 10)),
  ]);
  const wrong = probes.filter((probe) => probe.ok === false).length;
  const warnings = probes.filter((probe) => probe.ok === "warn").length;
  return `${lines.join("\n")}\n\n${String(probes.length - wrong - warnings)} fine, ${String(warnings)} ${warnings === 1 ? "warning" : "warnings"}, ${String(wrong)} to mend\n`;
}

const COLUMNS = 80;

function wrapped(first: string, text: string, indent: number): string[] {
  const lines = [first];
  let fresh = true;
  for (const word of text.split(/\s+/)) {
    const last = lines.at(-1) ?? "";
    if (!fresh && last.length + 1 + word.length > COLUMNS) lines.push(`${" ".repeat(indent)}${word}`);
    else lines[lines.length - 1] = fresh ? `${last}${word}` : `${last} ${word}`;
    fresh = false;
  }
  return lines;
}
