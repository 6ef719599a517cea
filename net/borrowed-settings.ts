import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { toCareofError } from "../model/errors.js";
import { readSysctl, writeSysctl, type SysctlName } from "./sysctl.js";

/** A setting of somebody else's interface, as it was and as we have set it. */
interface Borrowed {
  readonly name: SysctlName;
  readonly former: string;
  readonly ours: string;
}

/**
 * Settings of an interface that is not ours, which shall be as they were when we have no use for it any more: when the mode has changed, or the interface in the configuration, also by a later process. What they were stands in a
 * file, which goes with a restart of the machine as the settings do.
 */
export class BorrowedSettings {
  readonly #file: string;

  constructor(file: string) {
    this.#file = file;
  }

  /** @throws CareofError `kernel-refused` */
  borrow(name: SysctlName, ours: string): void {
    const known = this.#read();
    const former = readSysctl(name);
    // Written down before the deed: what was never changed is left alone when it is given back.
    if (former !== null && former !== ours && !known.some((each) => same(each.name, name))) this.#write([...known, { name, former, ours }]);
    writeSysctl(name, ours);
  }

  /** Puts back what was borrowed but `kept`; what somebody else has changed since, or is gone, is left alone. @throws CareofError `kernel-refused` */
  giveBack(kept: readonly SysctlName[] = []): void {
    const known = this.#read();
    const [stay, go] = [known.filter((each) => kept.some((name) => same(name, each.name))), known.filter((each) => !kept.some((name) => same(name, each.name)))];
    for (const { name, former, ours } of go) if (readSysctl(name) === ours) writeSysctl(name, former);
    if (go.length > 0) this.#write(stay);
  }

  /** A line for each; one that makes no sense was cut off by a crash, before its deed. */
  #read(): Borrowed[] {
    let text: string;
    try {
      text = readFileSync(this.#file, "utf8");
    } catch {
      return [];
    }
    return text.split("\n").flatMap((line) => {
      const [path = "", former, ours, end] = line.split(" ");
      return path.startsWith("net/") && former !== undefined && ours !== undefined && end === "." ? [{ name: path.split("/"), former, ours }] : [];
    });
  }

  #write(settings: readonly Borrowed[]): void {
    try {
      if (settings.length === 0) rmSync(this.#file, { force: true });
      else writeFileSync(this.#file, settings.map(({ name, former, ours }) => `${name.join("/")} ${former} ${ours} .\n`).join(""));
    } catch (thrown) {
      throw toCareofError(thrown);
    }
  }
}

function same(a: SysctlName, b: SysctlName): boolean {
  return a.join("/") === b.join("/");
}
