import { toCareofError } from "../../model/errors.js";
import type { Probe } from "../../net/probe.js";
import { checkHypervisor, checkNode, checkPort, checkUser, type Machine } from "./checks.js";
import { configured } from "./configured.js";
import { ThisMachine } from "./machine.js";

export interface DoctorOptions {
  readonly output: "text" | "json";
  /** Of the home agent or of a host agent; null looks at the machine alone. */
  readonly configFile: string | null;
  readonly write: (text: string) => void;
}

/** Looks at everything, says how to mend what is missing. Resolves to the exit code: 1 when a check failed; warnings do not count. */
export async function runDoctor(options: DoctorOptions, machine: Machine = new ThisMachine()): Promise<number> {
  const rows: Probe[] = [];
  const add = (more: readonly Probe[]): void => {
    rows.push(...more);
    if (options.output === "text") for (const row of more) options.write(line(row));
  };
  const config = configured(options.configFile);
  add([checkNode(machine), checkUser(machine), ...config.rows]);
  add(await guarded("network", () => machine.network(config.uplink)));
  add(await guarded("qemu", () => checkHypervisor(machine, config.qemu)));
  for (const port of config.ports) add([await checkPort(machine, port)]);
  const failed = rows.filter((row) => row.ok === false).length;
  if (options.output === "json") options.write(`${JSON.stringify(rows)}\n`);
  else options.write(closing(failed, rows.filter((row) => row.ok === "warn").length));
  return failed === 0 ? 0 : 1;
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

function closing(failed: number, warned: number): string {
  if (failed > 0) return `\n${String(failed)} to mend before careof can run here${warned > 0 ? `, ${String(warned)} worth a look` : ""}.\n`;
  return warned > 0 ? `\nReady; ${String(warned)} worth a look.\n` : "\nReady.\n";
}
