import { execFile } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import type { Clock } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis } from "../../model/ids.js";
import type { VmId } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";
import { chooseAccelerator, type AcceleratorChoice, type AcceleratorWish } from "./accelerator.js";
import type { DriverFacts, Guest, GuestIdentity, GuestSpec, HypervisorDriver } from "./driver.js";
import { meet } from "./foreign.js";
import { listensOn } from "./listener.js";
import { LastingMonitor } from "./monitor.js";
import { commandLine, endProcess, identifyProcess, isAlive, pause, spawnDetached, tail, type Spawned } from "./process.js";
import { qemuArgs, type QemuFiles } from "./qemu-args.js";
import { QemuGuest } from "./qemu-guest.js";
import { Qmp } from "./qmp.js";

/** From exec to QMP's greeting; QEMU allocates the guest's memory before. */
const START_LIMIT_MS = 10_000;
/** Reading the program and its libraries from a cold or slow disk counts; a program that hangs must not. */
const VERSION_LIMIT_MS = 60_000;
const CONNECT_LIMIT = millis(2000);

export interface QemuOptions {
  readonly binary: string;
  readonly accel: AcceleratorWish;
  /** A kernel that the KVM probe may boot; `null` looks in /boot. */
  readonly probeKernel: string | null;
  /** Sockets, pid files and consoles of the guests; belongs to this agent alone. */
  readonly directory: string;
  readonly clock: Clock;
  readonly log: Logger;
}

/** QEMU processes, driven by QMP. They are detached: the agent's end is not theirs. */
export class QemuDriver implements HypervisorDriver {
  readonly name = "qemu";
  readonly #options: QemuOptions;
  #facts: Promise<DriverFacts> | null = null;

  constructor(options: QemuOptions) {
    this.#options = options;
    mkdirSync(options.directory, { recursive: true, mode: 0o700 });
  }

  facts(): Promise<DriverFacts> {
    this.#facts ??= this.#probe().catch((thrown: unknown) => { this.#facts = null; throw thrown; });
    return this.#facts;
  }

  start(spec: GuestSpec): Promise<Guest> {
    return this.#launch(spec, false);
  }

  incoming(spec: GuestSpec): Promise<Guest> {
    return this.#launch(spec, true);
  }

  async adopt(vm: VmId, identity: GuestIdentity): Promise<Guest | null> {
    // Its files are `cleanUp`'s: a process that is not the one of this identity may still be ours.
    if (!isAlive(identity)) return null;
    if (!this.#isOurs(identity.control)) return this.#foreign(vm, identity, await this.#reach(identity).catch(() => null));
    const qmp = await Qmp.connect(identity.control, this.#options.clock, CONNECT_LIMIT);
    // Whoever asks for it has a record of it: it was not let go of when an earlier life ended in the midst of that.
    rmSync(givenBackMark(identity.control), { force: true });
    return this.#ours(vm, identity, qmp, null);
  }

  async takeOver(vm: VmId, control: string, memoryBytes: number): Promise<Guest> {
    const { identity, qmp } = await meet(vm, control, memoryBytes, this.#options.clock);
    this.#options.log.info({ vm, pid: identity.pid, control }, "guest process of somebody else taken over");
    return this.#isOurs(control) ? this.#ours(vm, identity, qmp, null) : this.#foreign(vm, identity, qmp);
  }

  async giveBack(guest: Guest, record: () => void): Promise<{ readonly control: string }> {
    const { control } = guest.identity;
    const mark = givenBackMark(control);
    // The socket stays where it is: a listener is known to the kernel by the name that it was bound to. The mark needs no sync: a reboot that could lose it ends the process as well.
    if (this.#isOurs(control)) writeFileSync(mark, "");
    try {
      record();
    } catch (thrown) {
      if (this.#isOurs(control)) rmSync(mark, { force: true });
      throw thrown;
    }
    await guest.release();
    return { control };
  }

  #isOurs(control: string): boolean {
    return dirname(control) === this.#options.directory;
  }

  #ours(vm: VmId, identity: GuestIdentity, monitor: Qmp, ended: Promise<string> | null): QemuGuest {
    const { clock, log } = this.#options;
    return new QemuGuest({ vm, identity, monitor, clock, log, ended, ours: true, forget: () => { this.#forget(identity.control); } });
  }

  /** `qmp`: `null` while its monitor does not answer. */
  #foreign(vm: VmId, identity: GuestIdentity, qmp: Qmp | null): QemuGuest {
    const { clock, log } = this.#options;
    if (qmp === null) log.error({ vm, pid: identity.pid, control: identity.control, reason: "guest-unreachable" }, "the monitor of a guest that somebody else has started does not answer: it is tried again");
    const monitor = new LastingMonitor({ name: vm, identity, connect: () => this.#reach(identity), clock, log }, qmp);
    return new QemuGuest({ vm, identity, monitor, clock, log, ended: null, ours: false, forget: () => undefined });
  }

  /** What is named by the path meanwhile may be another process's. @throws CareofError `adopt-failed`, as `Qmp.connect` */
  async #reach(identity: GuestIdentity): Promise<Qmp> {
    if (!listensOn(identity.control, identity.pid)) throw new CareofError("adopt-failed", `process ${String(identity.pid)} does not listen on ${identity.control}`);
    return Qmp.connect(identity.control, this.#options.clock, CONNECT_LIMIT);
  }

  async cleanUp(keep: readonly GuestIdentity[]): Promise<readonly string[]> {
    const kept = new Set(keep.map((identity) => identity.control));
    const ended: string[] = [];
    for (const name of this.#names()) {
      const files = this.#files(name);
      if (kept.has(files.control)) continue;
      // A QEMU that ended by itself has removed its pid file, and not its socket.
      const pid = existsSync(files.pidFile) ? Number(readFileSync(files.pidFile, "utf8").trim()) : 0;
      // The number may have gone to somebody else: only a process with our socket in its arguments is ours.
      const ours = Number.isSafeInteger(pid) && pid > 1 && commandLine(pid).some((word) => word === files.pidFile);
      const identity = ours ? identifyProcess(pid) : null;
      if (identity !== null && existsSync(givenBackMark(files.control))) continue;
      if (identity !== null) {
        await endProcess(identity, this.#options.clock);
        ended.push(name);
      }
      this.#forget(files.control);
    }
    return ended;
  }

  async #launch(spec: GuestSpec, incoming: boolean): Promise<Guest> {
    const { binary, clock, log } = this.#options;
    const { accelerator } = await this.facts();
    if (accelerator === "none") throw new CareofError("start-failed", "no accelerator");
    const name = `${spec.vm}@${String(spec.epoch)}`;
    const files = this.#files(name);
    await this.cleanUp(await this.#others(name));
    const args = qemuArgs(spec, files, { accelerator, incoming });
    const spawned = await spawnDetached(binary, args, `${files.console}.qemu`);
    const identity: GuestIdentity = { ...spawned.identity, control: files.control, console: files.console };
    try {
      const qmp = await this.#connect(spawned, files);
      log.info({ vm: spec.vm, epoch: spec.epoch, pid: identity.pid, accelerator, incoming }, "guest process started");
      return this.#ours(spec.vm, identity, qmp, spawned.ended);
    } catch (cause) {
      // However long it takes: whoever hears of a failed start may start the guest elsewhere.
      await endProcess(identity, clock, Infinity);
      const words = tail(`${files.console}.qemu`);
      this.#forget(files.control);
      throw new CareofError("start-failed", `QEMU does not start for ${spec.vm}: ${words === "" ? String(cause) : words}`, { cause });
    }
  }

  /** Every guest of the directory but `name`, so that a left-over of this very name is cleaned up and no other. */
  async #others(name: string): Promise<readonly GuestIdentity[]> {
    const others = this.#names().filter((other) => other !== name);
    return Promise.resolve(others.map((other) => ({ ...this.#files(other), pid: 0, startTicks: "", bootId: "" })));
  }

  /** Of every guest that has left a pid file or a socket. */
  #names(): readonly string[] {
    const files = readdirSync(this.#options.directory).filter((file) => file.endsWith(".pid") || file.endsWith(".qmp"));
    return [...new Set(files.map((file) => file.slice(0, -4)))];
  }

  async #connect(spawned: Spawned, files: QemuFiles): Promise<Qmp> {
    const { clock } = this.#options;
    const end = clock.monotonic() + START_LIMIT_MS;
    for (;;) {
      try {
        return await Qmp.connect(files.control, clock, CONNECT_LIMIT);
      } catch (cause) {
        if (!isAlive(spawned.identity)) throw new CareofError("start-failed", `QEMU ended: ${await spawned.ended}`, { cause });
        if (clock.monotonic() > end) throw new CareofError("start-failed", `QEMU does not answer within ${String(START_LIMIT_MS)} ms`, { cause });
        await pause(clock);
      }
    }
  }

  #files(name: string): QemuFiles {
    const base = join(this.#options.directory, name);
    return { control: `${base}.qmp`, pidFile: `${base}.pid`, console: `${base}.log` };
  }

  /** Socket and pid file go; console and QEMU's words stay until the VM's next life here, for whoever asks why it died. */
  #forget(control: string): void {
    rmSync(control, { force: true });
    rmSync(control.replace(/\.qmp$/, ".pid"), { force: true });
    rmSync(givenBackMark(control), { force: true });
  }

  async #probe(): Promise<DriverFacts> {
    const { binary, accel, probeKernel, directory, clock, log } = this.#options;
    const version = await qemuVersion(binary);
    const choice: AcceleratorChoice = await chooseAccelerator({ binary, wish: accel, kernel: probeKernel, directory, clock });
    const major = Number(version.split(".")[0]);
    if (choice.accelerator === "tcg" && major < 9) log.warn({ version }, "QEMU before 9 can corrupt a guest that migrates under TCG: install a newer one");
    log.info({ version, accelerator: choice.accelerator, why: choice.reason }, "hypervisor");
    // switchover-ack came with QEMU 8.1.
    const canLead = major > 8 || version.startsWith("8.1.") || version.startsWith("8.2.");
    return { ownsTap: true, ownsStream: true, canLead, canHoldTarget: true, version, accelerator: choice.accelerator, acceleratorReason: choice.reason };
  }
}

/** Beside the socket of a guest that is not this agent's any more, as long as its process lives. */
function givenBackMark(control: string): string {
  return `${control}.given-back`;
}

/** As its own child, waited for: a detached one would not keep this process, which has nothing else to do yet. */
async function qemuVersion(binary: string): Promise<string> {
  let said: string;
  try {
    said = (await promisify(execFile)(binary, ["--version"], { timeout: VERSION_LIMIT_MS })).stdout;
  } catch (cause) {
    const late = cause instanceof Error && "killed" in cause && cause.killed === true;
    throw new CareofError("unsupported", late ? `${binary} --version does not answer within ${String(VERSION_LIMIT_MS)} ms` : `cannot run ${binary}: ${toCareofError(cause).message}`, { cause });
  }
  const match = /version ([0-9]+\.[0-9]+\.[0-9]+)/.exec(said);
  if (match?.[1] === undefined) throw new CareofError("unsupported", `${binary} --version says: ${said.slice(0, 200)}`);
  return match[1];
}
