import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Test } from "tap";
import type { Guest, GuestSpec, HypervisorDriver, StreamOptions } from "../../../agent/hypervisor/driver.js";
import { epoch, millis } from "../../../model/ids.js";
import { recorder, until } from "../rig.js";
import type { Kind } from "./machines-here.js";

/** Drivers, each with a directory of its own. What their guests leave behind goes when the tests are over. */
export class Drivers {
  readonly #directories: string[] = [];
  readonly #drivers: HypervisorDriver[] = [];

  constructor(t: Pick<Test, "teardown">) {
    t.teardown(async () => {
      for (const driver of this.#drivers) await driver.cleanUp([]);
      for (const directory of this.#directories) rmSync(directory, { recursive: true, force: true });
    });
  }

  directory(): string {
    const directory = mkdtempSync(join(tmpdir(), "co-"));
    this.#directories.push(directory);
    return directory;
  }

  make(kind: Kind, directory = this.directory()): HypervisorDriver {
    const driver = kind.make(directory);
    this.#drivers.push(driver);
    return driver;
  }

  /** A guest that runs with one driver, and one with another that waits for it. */
  async pair(kind: Kind): Promise<Pair> {
    const [a, b] = [this.make(kind), this.make(kind)];
    const socket = join(this.directory(), "stream.sock");
    const source = await a.start(specOf(kind, 1));
    const target = await b.incoming(specOf(kind, 2));
    const heard = { source: recorder(), target: recorder() };
    source.subscribe(heard.source.take);
    target.subscribe(heard.target.take);
    return { source, target, heard, stream: { socket, lead: false, maxBandwidth: 0, downtimeLimitMs: millis(300), autoConverge: false, postcopy: false, channels: 1 } };
  }
}

export interface Pair {
  readonly source: Guest;
  readonly target: Guest;
  /** What each has told. */
  readonly heard: { readonly source: ReturnType<typeof recorder>; readonly target: ReturnType<typeof recorder> };
  readonly stream: StreamOptions;
}

export function specOf({ spec: { vm, mac, qemu } }: Kind, number: number): GuestSpec {
  if (qemu === null) throw new Error("no qemu");
  return { vm, epoch: epoch(number), mac, port: null, qemu };
}

/** The stream flows, as slowly as `maxBandwidth` says, and the source has stopped to go over before its memory is there. */
export async function stopForPostcopy({ source, target, heard, stream }: Pair, maxBandwidth: number): Promise<void> {
  const slow = { ...stream, maxBandwidth, postcopy: true };
  await target.receive(slow);
  await source.send(slow);
  await until("active", () => heard.source.words.includes("active"));
  await source.startPostcopy();
  await until("pre-switchover", () => heard.source.words.includes("pre-switchover"));
}
