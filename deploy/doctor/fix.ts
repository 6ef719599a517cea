import { CareofError, toCareofError } from "../../model/errors.js";
import type { Probe } from "../../net/probe.js";
import { sysctlText, type Setting, type SysctlName } from "../../net/sysctl.js";

/** Of the machine: its kernel's settings, and the file that sets them when it starts. */
export interface Settings {
  /** Null where the kernel has no such setting. */
  read(name: SysctlName): string | null;
  /** @throws CareofError `kernel-refused` */
  write(name: SysctlName, value: string): void;
  /** Where lasting settings stand, which careof alone writes. */
  readonly file: string;
  /** Empty where there is none. @throws CareofError `file-refused` */
  readFile(): string;
  /** Whole or not at all. @throws CareofError `file-refused` */
  writeFile(text: string): void;
}

/** One setting that was not as it should be. */
export interface Fix {
  readonly sysctl: string;
  readonly from: string;
  readonly to: string;
  readonly done: boolean;
  /** Why not. */
  readonly reason: string;
}

/** Sets what the rows ask for and is not so yet; what is right already is left alone. */
export function fix(rows: readonly Probe[], settings: Settings): Fix[] {
  return wanted(rows).flatMap(({ name, value }): Fix[] => {
    const from = settings.read(name);
    // Null: of an interface that is not there, which has a row of its own.
    if (from === value || from === null) return [];
    const result = { sysctl: sysctlText(name), from, to: value };
    try {
      settings.write(name, value);
      return [{ ...result, done: true, reason: "" }];
    } catch (thrown) {
      return [{ ...result, done: false, reason: toCareofError(thrown).message }];
    }
  });
}

const HEADING = "# Written by `careof doctor --fix --persist`, which changes and adds lines and removes none.";

/** Everything that the rows ask for goes into the file, in which other settings stay. False: it says so already. @throws CareofError `file-refused` */
export function persist(rows: readonly Probe[], settings: Settings): boolean {
  const before = settings.readFile();
  const lines = new Map<string, string>();
  for (const line of before.split("\n")) {
    const match = /^\s*([^#;=\s][^=]*?)\s*=\s*(.*?)\s*$/.exec(line);
    if (match?.[1] !== undefined && match[2] !== undefined) lines.set(match[1], match[2]);
  }
  for (const { name, value } of wanted(rows)) if (settings.read(name) !== null) lines.set(sysctlText(name), value);
  const after = `${[HEADING, ...[...lines].sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, value]) => `${key} = ${value}`)].join("\n")}\n`;
  if (after === before) return false;
  settings.writeFile(after);
  return true;
}

function wanted(rows: readonly Probe[]): readonly Setting[] {
  const byName = new Map(rows.flatMap((row) => row.settings ?? []).map((setting) => [sysctlText(setting.name), setting]));
  return [...byName.values()];
}

export function fileRefused(file: string, thrown: unknown): CareofError {
  return new CareofError("file-refused", `${file}: ${toCareofError(thrown).message}`, { cause: thrown });
}
