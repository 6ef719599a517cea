import { toCareofError } from "../../model/errors.js";
import type { Probe } from "../../net/probe.js";
import { checkHypervisor, checkNode, checkPort, checkUser, fine, type Machine } from "./checks.js";
import { configured } from "./configured.js";
import { fix, persist, type Fix } from "./fix.js";
import { ThisMachine } from "./machine.js";

export interface DoctorOptions {
  readonly output: "text" | "json";
  /** Of the home agent or of a host agent; null looks at the machine alone. */
  readonly configFile: string | null;
  /** Sets what a sysctl can mend; `persist` also for the machine's next start. */
  readonly fix: boolean;
  readonly persist: boolean;
  readonly write: (text: string) => void;
}

/**
 * Looks at everything, says how to mend what is missing, and mends it where it is asked to and a sysctl can. Resolves to the exit code: 1 when a check failed, or
 * what should be mended could not be; warnings do not count.
 */
export async function runDoctor(options: DoctorOptions, machine: Machine = new ThisMachine()): Promise<number> {
  const rows: Probe[] = [];
  const say = (text: string): void => { if (options.output === "text") options.write(text); };
  const add = (more: readonly Probe[]): void => {
    rows.push(...more);
    for (const row of more) say(line(row));
  };
  const config = configured(options.configFile);
  add([checkNode(machine), checkUser(machine), ...config.rows]);
  const look = (): Promise<readonly Probe[]> => guarded("network", () => machine.network(config.uplink, config.home, config.dataPlane));
  let network = await look();
  const mended = options.fix ? mendBySysctl(network, machine, options.persist) : null;
  for (const each of mended?.fixes ?? []) say(fixLine(each));
  if (mended?.fixes.some(({ done }) => done) === true) network = await look();
  add(network);
  add(await guarded("qemu", () => checkHypervisor(machine, config.qemu)));
  for (const port of config.ports) add([await checkPort(machine, port)]);
  if (mended !== null) add(mended.rows);
  const failed = rows.filter((row) => row.ok === false).length;
  const checks = rows.map(({ name, ok, found, mend }) => ({ name, ok, found, mend }));
  if (options.output === "json") options.write(`${JSON.stringify(mended === null ? checks : { checks, fixes: mended.fixes, file: mended.file })}\n`);
  else options.write(closing(failed, rows.filter((row) => row.ok === "warn").length));
  return failed === 0 ? 0 : 1;
}

interface Mended {
  readonly fixes: readonly Fix[];
  /** Where the settings stand for the next start, null where they do not. */
  readonly file: string | null;
  readonly rows: readonly Probe[];
}

function mendBySysctl(network: readonly Probe[], { settings }: Machine, lasting: boolean): Mended {
  const fixes = fix(network, settings);
  const refused = fixes.filter(({ done }) => !done);
  const rows: Probe[] = [refused.length > 0
    ? { name: "fix", ok: false, found: `${refused.map(({ sysctl }) => sysctl).join(", ")} could not be set: ${refused[0]?.reason ?? ""}`, mend: "run doctor as root; in a container, set it on the machine below" }
    : fine("fix", fixes.length === 0 ? "no sysctl had to be set" : `${fixes.map(({ sysctl, to }) => `${sysctl}=${to}`).join(", ")}${lasting ? "" : ", until this machine starts anew (--persist makes it last)"}`)];
  if (!lasting) return { fixes, file: null, rows };
  try {
    const changed = persist(network, settings);
    return { fixes, file: settings.file, rows: [...rows, fine("sysctl.d", `${settings.file} ${changed ? "has it for the next start" : "said so already"}`)] };
  } catch (thrown) {
    return { fixes, file: null, rows: [...rows, { name: "sysctl.d", ok: false, found: toCareofError(thrown).message, mend: "run doctor as root" }] };
  }
}

/** A check that cannot even be made is a failed one, and the others go on. */
async function guarded(name: string, check: () => Promise<readonly Probe[]>): Promise<readonly Probe[]> {
  try {
    return await check();
  } catch (thrown) {
    return [{ name, ok: false, found: `cannot be checked: ${toCareofError(thrown).message}`, mend: "run doctor as root" }];
  }
}

const NAME_WIDTH = 13;

function line(row: Probe): string {
  const verdict = row.ok === true ? "ok  " : row.ok === "warn" ? "warn" : "FAIL";
  return `${verdict}  ${row.name.padEnd(NAME_WIDTH)}  ${row.found}\n${row.mend === "" ? "" : `${" ".repeat(NAME_WIDTH + 8)}→ ${row.mend}\n`}`;
}

function fixLine({ sysctl, from, to, done, reason }: Fix): string {
  return done ? `set   ${sysctl.padEnd(NAME_WIDTH)}  ${from} → ${to}\n` : `FAIL  ${sysctl.padEnd(NAME_WIDTH)}  not set to ${to}: ${reason}\n`;
}

function closing(failed: number, warned: number): string {
  if (failed > 0) return `\n${String(failed)} to mend before careof can run here${warned > 0 ? `, ${String(warned)} worth a look` : ""}.\n`;
  return warned > 0 ? `\nReady; ${String(warned)} worth a look.\n` : "\nReady.\n";
}
