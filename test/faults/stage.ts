import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parse, stringify } from "yaml";
import { z } from "zod";
import { Lab, type PartName, type Where } from "../../deploy/lab/lab.js";
import { HOSTS, PLAN, type HostName } from "../../deploy/lab/plan.js";
import { REPOSITORY } from "../../deploy/lab/program.js";
import type { Traffic } from "../../deploy/lab/traffic.js";
import { Witness } from "../../deploy/lab/witness.js";
import { isSlow, type Phase } from "./matrix.js";

export const VM = PLAN.guest.name;

/** The home agent notices a dead link within three of these, and an agent that gets no processor for so long. */
const KEEP_ALIVE_MS = 500;
/** Short, so that every decision which needs patience falls within a cell; only the gate is not to open by itself before something is broken. */
const HANDOVER = { holdMaxMs: 8000, targetGoneMs: 1500, sourceGoneMs: 3000, lostAfterMs: 2500 };
/** Some 80 MB of guest take about six seconds. */
const SLOW_BANDWIDTH = 14_000_000;

const configSchema = z.looseObject({ handover: z.looseObject({}) });

/** A lab with a guest and traffic that serves cell after cell, as long as everything in it is well. */
export class Stage {
  readonly holds = mkdtempSync(join(tmpdir(), "careof-holds-"));
  #lab: Lab | null = null;
  #witness: Witness | null = null;
  #traffic: Traffic | null = null;
  #bandwidth = 0;

  constructor() {
    // The parts inherit it: only what a Lab of this process starts is ever held.
    process.env["CAREOF_HOLD"] = this.holds;
  }

  get lab(): Lab {
    if (this.#lab === null) throw new Error("there is no lab");
    return this.#lab;
  }

  get witness(): Witness {
    if (this.#witness === null) throw new Error("there is no witness");
    return this.#witness;
  }

  get traffic(): Traffic {
    if (this.#traffic === null) throw new Error("there is no traffic");
    return this.#traffic;
  }

  /** Whole again: everything runs, the guest too, and traffic flows. Says where it is. */
  async ready(): Promise<{ readonly where: Where; readonly from: HostName; readonly to: HostName }> {
    if (this.#lab === null) {
      this.#lab = await Lab.start({ witnessed: true, homeAgent: { timing: { keepAliveMs: KEEP_ALIVE_MS, graceMs: 1000 }, handover: HANDOVER } });
      this.#witness = new Witness(this.#lab);
      this.#bandwidth = 0;
    }
    let where = await this.lab.where();
    if (where.host === null) {
      this.#traffic?.kill();
      this.#traffic = null;
      await this.lab.startGuest("host-a");
      where = await this.lab.where();
    }
    this.#traffic ??= await this.lab.traffic({ pps: 500, bulkMbit: 2 });
    const from = HOSTS.find((host) => host === where.host);
    if (where.state !== "bound" || from === undefined) throw new Error(`the guest is not ready: ${JSON.stringify(where)}`);
    return { where, from, to: from === "host-a" ? "host-b" : "host-a" };
  }

  /** The copy's bandwidth for a phase; the home agent takes it over while it runs. */
  async useBandwidth(phase: Phase): Promise<void> {
    const wanted = isSlow(phase) ? SLOW_BANDWIDTH : 0;
    if (wanted === this.#bandwidth) return;
    const file = this.lab.files.homeAgent;
    const config = configSchema.parse(parse(readFileSync(file, "utf8")));
    writeFileSync(file, stringify({ ...config, handover: { ...config.handover, maxBandwidth: wanted } }));
    const from = this.logSize("home-agent");
    this.lab.part("home-agent").signal("SIGHUP");
    await this.lab.until("the home agent has taken the bandwidth over", 60_000, () => Promise.resolve(this.logSince("home-agent", from).includes("configuration taken over")));
    this.#bandwidth = wanted;
  }

  /** From now on agents stand still at this point. */
  hold(point: Phase): void {
    writeFileSync(join(this.holds, point), "");
  }

  letGo(point: Phase): void {
    rmSync(join(this.holds, point), { force: true });
  }

  logSize(part: PartName): number {
    const file = this.lab.part(part).logFile;
    return existsSync(file) ? statSync(file).size : 0;
  }

  logSince(part: PartName, offset: number): string {
    return readFileSync(this.lab.part(part).logFile).subarray(offset).toString("utf8");
  }

  /** Traffic whose sessions have broken is of no further use. */
  dropTraffic(): void {
    this.#traffic?.kill();
    this.#traffic = null;
  }

  /** Keeps the logs of a failed cell and says where. */
  keepLogs(name: string): string {
    const directory = join(REPOSITORY, ".cache", "faults", name);
    rmSync(directory, { recursive: true, force: true });
    mkdirSync(directory, { recursive: true });
    for (const part of ["home-agent", ...HOSTS] as const) writeFileSync(join(directory, `${part}.log`), readFileSync(this.lab.part(part).logFile));
    for (const host of HOSTS) {
      const guests = join(this.lab.directory, host, "run", "guests");
      const consoles = existsSync(guests) ? readdirSync(guests).filter((file) => file.endsWith(".log")) : [];
      for (const file of consoles) writeFileSync(join(directory, `${host}-${file}`), readFileSync(join(guests, file)));
    }
    writeFileSync(join(directory, "witness.json"), this.witness.sightings.map((each) => JSON.stringify(each)).join("\n"));
    return directory;
  }

  /** Says what of the lab is left: nothing, unless the kernel refuses. */
  async close(): Promise<string[]> {
    this.dropTraffic();
    this.#witness?.close();
    const left = (await this.#lab?.close()) ?? [];
    this.#lab = null;
    this.#witness = null;
    return left;
  }

  end(): void {
    rmSync(this.holds, { recursive: true, force: true });
  }
}
