import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Lab, moveSchema } from "../../deploy/lab/lab.js";
import { OWN_DISKS } from "../../deploy/lab/files.js";
import { HOSTS, PLAN, type HostName } from "../../deploy/lab/plan.js";
import { CareofError } from "../../model/errors.js";
import type { Load, Measured } from "./cases.js";
import { makeDisk } from "./disk.js";
import { PhaseReader } from "./phases.js";

const DISK = "web1.raw";

/** careof in the lab, with a guest that is moved to and fro. */
export class Ours {
  readonly lab: Lab;
  /** Of the guest, before it has started; `null` without one. */
  readonly disk: string | null;
  readonly #phases: PhaseReader;
  #at: HostName = "host-a";

  private constructor(lab: Lab, disk: string | null) {
    this.lab = lab;
    this.disk = disk;
    this.#phases = new PhaseReader(lab.files.logs);
  }

  static async open({ dirtyMb, disk }: Load): Promise<Ours> {
    const lab = await Lab.make({ dirtyMb, ...(disk ? { disks: [{ path: join(OWN_DISKS, DISK), shared: false, format: "raw" }], idleDisks: true } : {}) });
    try {
      const image = disk ? join(lab.disksOf("host-a"), DISK) : null;
      if (image !== null) await makeDisk(image);
      for (const part of ["home-agent", ...HOSTS] as const) lab.startPart(part);
      await lab.connected(HOSTS, 20_000);
      await lab.startGuest("host-a");
      await lab.until("a heartbeat from inside the guest", 30_000, async () => (await lab.where()).lastHeartbeat !== null);
      return new Ours(lab, image);
    } catch (thrown) {
      await lab.close();
      throw thrown;
    }
  }

  /** As an operator does it. @throws CareofError `careof-failed` unless it completed */
  async migrate({ downtimeLimitMs }: Load, channels: number, encrypt: boolean): Promise<Measured> {
    const to: HostName = this.#at === "host-a" ? "host-b" : "host-a";
    const begun = Date.now();
    const ran = await this.lab.careof(["migrate", PLAN.guest.name, to, "--output", "json", "--channels", String(channels), "--downtime-limit", String(downtimeLimitMs), "--timeout", "60", encrypt ? "--encrypt" : "--no-encrypt"], 120_000);
    const ended = Date.now();
    if (ran.code !== 0) throw new CareofError("careof-failed", `careof migrate ended with ${String(ran.code)}: ${ran.stdout.trim()} ${ran.stderr.trim().split("\n").at(-1) ?? ""}`);
    this.#at = to;
    const { totalMs, pauseMs, bytes } = moveSchema.parse(JSON.parse(ran.stdout));
    return { totalMs, pauseMs, bytes, phases: this.#phases.of(begun, ended) };
  }

  /** Takes the guest's processor away, so that it does not disturb the other side's turn. Its binding outlives that. */
  freeze(): void {
    for (const pid of this.#qemus()) process.kill(pid, "SIGSTOP");
  }

  thaw(): void {
    for (const pid of this.#qemus()) process.kill(pid, "SIGCONT");
  }

  async close(): Promise<void> {
    this.thaw();
    const left = await this.lab.close();
    if (left.length > 0) process.stderr.write(`left over: ${left.join(", ")}\n`);
  }

  /** By their command lines, which name their agent's directory. */
  #qemus(): number[] {
    return readdirSync("/proc").filter((name) => /^[0-9]+$/.test(name)).map(Number).filter((pid) => {
      const line = commandLine(pid);
      return line.includes("qemu-system") && HOSTS.some((host) => line.includes(`${join(this.lab.directory, host)}/`));
    });
  }
}

function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${String(pid)}/cmdline`, "utf8");
  } catch (thrown) {
    if (thrown instanceof Error && "code" in thrown && (thrown.code === "ENOENT" || thrown.code === "ESRCH")) return ""; // ended meanwhile
    throw thrown;
  }
}
