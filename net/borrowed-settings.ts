import { readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { toCareofError } from "../model/errors.js";
import { readSysctl, writeSysctl, type SysctlName } from "./sysctl.js";

/** So much of a broken line is worth reading. */
const MAX_QUOTED = 80;

/** A setting of somebody else's interface, as it was and as we have set it. */
interface Borrowed {
  readonly name: SysctlName;
  readonly former: string;
  readonly ours: string;
}

/**
 * Settings of an interface that is not ours, which shall be as they were when we have no use for it any more: when the mode has changed, or the interface in the configuration, also by a later process. What they were stands in a
 * file, which goes with a restart of the machine as the settings do. What of that file makes no sense, or cannot be put back, keeps nobody from starting.
 */
export class BorrowedSettings {
  readonly #file: string;
  readonly #warn: (detail: string) => void;
  /** Said already: the file is read again and again. */
  readonly #warned = new Set<string>();

  /** `warn`: what could not be read or put back, once each. */
  constructor(file: string, warn: (detail: string) => void) {
    this.#file = file;
    this.#warn = warn;
  }

  /** @throws CareofError `kernel-refused` */
  borrow(name: SysctlName, ours: string): void {
    const known = this.#read();
    const former = readSysctl(name);
    // Written down before the deed: what was never changed is left alone when it is given back.
    if (former !== null && former !== ours && !known.some((each) => same(each.name, name))) this.#write([...known, { name, former, ours }]);
    writeSysctl(name, ours);
  }

  /** Puts back what was borrowed but `kept`; what somebody else has changed since, or is gone, is left alone. What the kernel does not take back is tried again by the next. */
  giveBack(kept: readonly SysctlName[] = []): void {
    const known = this.#read();
    const [stay, go] = [known.filter((each) => kept.some((name) => same(name, each.name))), known.filter((each) => !kept.some((name) => same(name, each.name)))];
    const refused = go.filter((each) => !this.#putBack(each));
    if (refused.length < go.length) this.#write([...stay, ...refused]);
  }

  #putBack({ name, former, ours }: Borrowed): boolean {
    try {
      if (readSysctl(name) === ours) writeSysctl(name, former);
      return true;
    } catch (thrown) {
      this.#say(`${name.join("/")} stays as it is: ${toCareofError(thrown).message}`);
      return false;
    }
  }

  /** A line for each. One that makes no sense was cut off by a crash (an earlier version wrote in place), or is of another version. */
  #read(): Borrowed[] {
    let text: string;
    try {
      text = readFileSync(this.#file, "utf8");
    } catch (thrown) {
      if (!(thrown instanceof Error && "code" in thrown && thrown.code === "ENOENT")) this.#say(`${this.#file} cannot be read: ${toCareofError(thrown).message}`);
      return [];
    }
    const lines = text.split("\n").filter((line) => line !== "");
    return lines.flatMap((line) => {
      const known = parsed(line);
      if (known === null) this.#say(`${this.#file} has a line that makes no sense: ${JSON.stringify(line.slice(0, MAX_QUOTED))}`);
      return known ?? [];
    });
  }

  #say(detail: string): void {
    if (this.#warned.has(detail)) return;
    this.#warned.add(detail);
    this.#warn(detail);
  }

  /** Whole, or not at all: a crash of the process in between leaves the old file. One of the machine takes the settings along. */
  #write(settings: readonly Borrowed[]): void {
    const next = `${this.#file}.new`;
    try {
      if (settings.length === 0) rmSync(this.#file, { force: true });
      else {
        writeFileSync(next, settings.map(({ name, former, ours }) => `${name.join("/")} ${former} ${ours} .\n`).join(""), { mode: 0o600 });
        renameSync(next, this.#file);
      }
    } catch (thrown) {
      throw toCareofError(thrown);
    }
  }
}

function parsed(line: string): Borrowed | null {
  const [path = "", former, ours, end, ...more] = line.split(" ");
  const name = path.split("/");
  if (name[0] !== "net" || name.some((part) => part === "" || part === "." || part === "..")) return null;
  return former === undefined || ours === undefined || end !== "." || more.length > 0 ? null : { name, former, ours };
}

function same(a: SysctlName, b: SysctlName): boolean {
  return a.join("/") === b.join("/");
}
