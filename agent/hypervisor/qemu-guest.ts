import { statSync, truncateSync } from "node:fs";
import { z } from "zod";
import type { Clock, Timer } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis, type VmId } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";
import type { Guest, GuestEvent, GuestIdentity, GuestStatus, StreamOptions, StreamProgress, StreamStatus } from "./driver.js";
import { LastingMonitor, type Monitor } from "./monitor.js";
import { endProcess, isAlive, pause } from "./process.js";
import { QemuDisks } from "./qemu-disks.js";
import type { QmpEvent } from "./qmp.js";

const COMMAND_LIMIT = millis(3000);
/** A process of somebody else has so long to end by itself: it may have disks to close, and others that wait for it. */
const QUIT_MS = 5000;
/** After its QMP connection broke, a process is looked at for so long before it is ended: nothing could ever be asked of it again. */
const LINGER_MS = 2000;
const EXIT_STATUS_MS = millis(500);
const CONSOLE_LOOK_MS = millis(10_000);
const CONSOLE_MAX_BYTES = 1024 * 1024;
/** `max-bandwidth` for "unlimited": above what any link carries, below where QEMU's arithmetic ends. */
const UNLIMITED_BANDWIDTH = 4 * 1024 ** 3;
/** QEMU's own maximum: whatever is left, it may be copied while the guest stands. */
const ANY_DOWNTIME_MS = 2_000_000;

const STREAM: Readonly<Record<string, StreamStatus>> = {
  none: "none", setup: "setup", active: "active", "pre-switchover": "pre-switchover", device: "device", "postcopy-active": "postcopy-active", "postcopy-paused": "postcopy-paused", completed: "completed", failed: "failed", cancelling: "cancelling", cancelled: "cancelled",
};
const runState = z.looseObject({ status: z.string(), running: z.boolean() });
const migration = z.looseObject({
  status: z.string().optional(),
  "error-desc": z.string().optional(),
  "expected-downtime": z.number().optional(),
  "cpu-throttle-percentage": z.number().optional(),
  ram: z.looseObject({
    transferred: z.number(), remaining: z.number(), total: z.number(), "dirty-sync-count": z.number(), mbps: z.number(),
    "dirty-pages-rate": z.number().optional(), "page-size": z.number().optional(),
  }).optional(),
});

export interface QemuGuestOptions {
  readonly vm: VmId;
  readonly identity: GuestIdentity;
  readonly monitor: Monitor;
  readonly clock: Clock;
  readonly log: Logger;
  /** How the process ended, where this process is its parent. */
  readonly ended: Promise<string> | null;
  /** False for a process that somebody else has started: it is asked to go before it is made to. */
  readonly ours: boolean;
  /** Removes the files of a guest that is gone. */
  forget(): void;
}

/** One QEMU process and its monitor. */
export class QemuGuest implements Guest {
  readonly vm: VmId;
  readonly identity: GuestIdentity;
  readonly disks: QemuDisks;
  readonly #options: QemuGuestOptions;
  readonly #monitor: Monitor;
  readonly #listeners = new Set<(event: GuestEvent) => void>();
  readonly #gone: Promise<string>;
  #isGone = false;
  #released = false;
  #consoleTimer: Timer | null = null;

  constructor(options: QemuGuestOptions) {
    this.vm = options.vm;
    this.identity = options.identity;
    this.#options = options;
    this.#monitor = options.monitor;
    this.disks = new QemuDisks({
      pid: options.identity.pid, clock: options.clock, emit: (event) => { this.#emit(event); }, execute: (command, parameters, limit) => this.#execute(command, parameters, limit),
    });
    this.#monitor.subscribe((event) => { this.#take(event); });
    if (this.#monitor instanceof LastingMonitor) this.#monitor.onChange((reachable) => { this.#emit({ kind: "monitor", reachable }); });
    this.#gone = this.#watch();
    this.#boundConsole();
  }

  get reachable(): boolean {
    return this.#monitor.reachable;
  }

  subscribe(listener: (event: GuestEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => { this.#listeners.delete(listener); };
  }

  async status(): Promise<GuestStatus> {
    try {
      const { status, running } = runState.parse(await this.#execute("query-status", {}));
      if (running) return await this.#runs();
      if (status === "postmigrate") return "handed-over";
      if (status !== "inmigrate" && status !== "prelaunch" && status !== "paused") return "halted";
      // With -S an incoming guest says `inmigrate` until it has everything, and then `paused`.
      if (status === "inmigrate") return "incoming";
      const { status: stream } = await this.progress();
      return stream === "completed" || stream === "postcopy-active" ? "loaded" : stream === "postcopy-paused" ? "stranded" : "halted";
    } catch (thrown) {
      if (!isAlive(this.identity)) return "gone";
      throw thrown;
    }
  }

  async #runs(): Promise<GuestStatus> {
    const { status: stream } = await this.progress();
    return stream === "postcopy-active" ? "fetching" : stream === "postcopy-paused" ? "stranded" : "running";
  }

  async progress(): Promise<StreamProgress> {
    const answer = migration.parse(await this.#execute("query-migrate", {}));
    const { ram } = answer;
    return {
      status: STREAM[answer.status ?? "none"] ?? "active",
      transferred: ram?.transferred ?? 0,
      remaining: ram?.remaining ?? 0,
      total: ram?.total ?? 0,
      passes: ram?.["dirty-sync-count"] ?? 0,
      bytesPerSecond: ((ram?.mbps ?? 0) * 1e6) / 8,
      dirtyBytesPerSecond: (ram?.["dirty-pages-rate"] ?? 0) * (ram?.["page-size"] ?? 4096),
      expectedDowntimeMs: answer["expected-downtime"] === undefined ? null : millis(Math.max(0, answer["expected-downtime"])),
      throttlePercent: Math.min(100, Math.max(0, answer["cpu-throttle-percentage"] ?? 0)),
      error: answer["error-desc"] ?? "",
    };
  }

  async receive(options: StreamOptions): Promise<void> {
    await this.#capabilities(options, "target");
    if (options.channels > 1) await this.#execute("migrate-set-parameters", { "multifd-channels": options.channels });
    await this.#execute("migrate-incoming", { uri: `unix:${options.socket}` });
  }

  async send(options: StreamOptions): Promise<void> {
    await this.#capabilities(options, "source");
    await this.#execute("migrate-set-parameters", {
      "max-bandwidth": options.maxBandwidth === 0 ? UNLIMITED_BANDWIDTH : options.maxBandwidth,
      "downtime-limit": Math.min(ANY_DOWNTIME_MS, Math.round(options.downtimeLimitMs)),
      ...(options.channels > 1 ? { "multifd-channels": options.channels } : {}),
      ...(options.postcopy ? { "max-postcopy-bandwidth": options.maxBandwidth } : {}),
      // What an earlier move of this guest may have preferred: without the gate it would make a long pause.
      ...(this.#isOlderThan(8, 2) ? {} : { "avail-switchover-bandwidth": 0 }),
    });
    await this.#execute("migrate", { uri: `unix:${options.socket}` });
  }

  /** A stalled stream looks slow, and QEMU would wait until next to nothing is left (parameter of QEMU 8.2 and later). */
  async preferSwitchover(): Promise<void> {
    await this.#execute("migrate-set-parameters", { "avail-switchover-bandwidth": UNLIMITED_BANDWIDTH });
  }

  async forceSwitchover(): Promise<void> {
    await this.#execute("migrate-set-parameters", { "downtime-limit": ANY_DOWNTIME_MS });
    // By itself the first is enough; the second is there where the stream stood still just now and looks slow.
    if (!this.#isOlderThan(8, 2)) await this.preferSwitchover();
  }

  async halt(): Promise<void> {
    await this.#execute("stop", {});
  }

  /** Stopped first: QEMU remembers that, and does not let the guest run again when the way over fails. It is for the machines to say. */
  async startPostcopy(): Promise<void> {
    await this.halt();
    await this.#execute("migrate-start-postcopy", {});
  }

  async continueSwitchover(): Promise<void> {
    await this.#execute("migrate-continue", { state: "pre-switchover" });
  }

  async cancelSend(): Promise<void> {
    await this.#execute("migrate_cancel", {});
  }

  async resume(): Promise<void> {
    await this.#execute("cont", {});
  }

  async powerDown(): Promise<void> {
    await this.#execute("system_powerdown", {});
  }

  async destroy(): Promise<void> {
    if (!this.#options.ours) await this.#askToQuit();
    await endProcess(this.identity, this.#options.clock);
    this.#monitor.close();
    await this.#gone;
  }

  async release(): Promise<void> {
    this.#released = true;
    this.#consoleTimer?.cancel();
    this.#listeners.clear();
    this.#monitor.close();
    await this.#gone;
  }

  /** What it is that has started it, and what else it does, is not known: killing is for one that does not go. */
  async #askToQuit(): Promise<void> {
    const { clock, identity, log } = this.#options;
    if (!isAlive(identity)) return;
    try {
      await this.#execute("quit", {});
    } catch (thrown) {
      log.warn({ vm: this.vm, pid: identity.pid, reason: toCareofError(thrown).code }, "a process that somebody else has started cannot be asked to end: it is killed");
      return;
    }
    const end = clock.monotonic() + QUIT_MS;
    while (isAlive(identity) && clock.monotonic() < end) await pause(clock);
    log.info({ vm: this.vm, pid: identity.pid, killed: isAlive(identity) }, "the process that somebody else has started is ended: its guest is not here any more");
  }

  /** All are set each time: a guest that arrived as a target keeps what it was told then. */
  async #capabilities({ lead, channels, autoConverge, postcopy }: StreamOptions, side: "source" | "target"): Promise<void> {
    // Before 10.0 the source says postcopy-active before the target has anything.
    if (postcopy && this.#isOlderThan(10, 0)) throw new CareofError("unsupported", `postcopy wants QEMU 10.0 or later on both hosts, and here is ${this.#monitor.version}`);
    const source = side === "source";
    const wanted: Readonly<Record<string, boolean>> = {
      events: true, "return-path": true, "switchover-ack": lead, "pause-before-switchover": source, "auto-converge": source && autoConverge, multifd: channels > 1, "postcopy-ram": postcopy,
    };
    const withoutAck = this.#isOlderThan(8, 1);
    const capabilities = Object.entries(wanted).filter(([capability]) => !(withoutAck && capability === "switchover-ack")).map(([capability, state]) => ({ capability, state }));
    await this.#execute("migrate-set-capabilities", { capabilities });
  }

  #isOlderThan(major: number, minor: number): boolean {
    const [ours = 0, oursMinor = 0] = this.#monitor.version.split(".").map(Number);
    return ours < major || (ours === major && oursMinor < minor);
  }

  async #execute(command: string, parameters: Readonly<Record<string, unknown>>, limit = COMMAND_LIMIT): Promise<unknown> {
    try {
      return await this.#monitor.execute(command, parameters, limit);
    } catch (cause) {
      if (this.#isGone || !isAlive(this.identity)) throw new CareofError("guest-gone", `${this.vm} has no QEMU any more`, { cause });
      throw cause;
    }
  }

  #take(event: QmpEvent): void {
    this.disks.take(event);
    if (event.name === "STOP") this.#emit({ kind: "stopped", at: event.at });
    else if (event.name === "RESUME") this.#emit({ kind: "resumed", at: event.at });
    else if (event.name === "MIGRATION") {
      const status = typeof event.data["status"] === "string" ? STREAM[event.data["status"]] : undefined;
      if (status !== undefined) this.#emit({ kind: "stream", status });
    } else if (event.name === "MIGRATION_PASS" && typeof event.data["pass"] === "number") this.#emit({ kind: "pass", passes: event.data["pass"], at: event.at });
  }

  #emit(event: GuestEvent): void {
    for (const listener of [...this.#listeners]) listener(event);
  }

  /**
   * Waits for the monitor's end, then for the process's. A QEMU of ours that lives on without QMP (its socket broke) is unreachable for good and ended; the monitor of somebody else's
   * ends with its process.
   */
  async #watch(): Promise<string> {
    const error = await this.#monitor.closed;
    if (this.#released) return "released";
    const { clock, identity, log, ended } = this.#options;
    const end = clock.monotonic() + LINGER_MS;
    while (isAlive(identity) && clock.monotonic() < end) await pause(clock);
    if (isAlive(identity)) {
      log.error({ vm: this.vm, pid: identity.pid, reason: error.code }, "the guest's QMP connection broke and its process lives on: it is ended");
      await endProcess(identity, clock);
    }
    const detail = await Promise.race([ended ?? "the process is gone", this.#exitStatusTime()]);
    this.#isGone = true;
    this.#consoleTimer?.cancel();
    this.#options.forget();
    this.#emit({ kind: "gone", detail });
    return detail;
  }

  /** A process is gone before its parent hears how it ended. */
  #exitStatusTime(): Promise<string> {
    return new Promise((resolve) => { this.#options.clock.after("exit-status", EXIT_STATUS_MS, () => { resolve("the process is gone"); }); });
  }

  /** A guest that writes without end must not fill the disk; the file is opened for appending, so it may be cut under QEMU's hands. */
  #boundConsole(): void {
    this.#consoleTimer = this.#options.clock.after("console-bound", CONSOLE_LOOK_MS, () => {
      const { console: file } = this.identity;
      if ((statSync(file, { throwIfNoEntry: false })?.size ?? 0) > CONSOLE_MAX_BYTES) truncateSync(file);
      this.#boundConsole();
    });
  }
}
