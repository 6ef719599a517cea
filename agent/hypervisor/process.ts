import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { getPriority, setPriority } from "node:os";
import type { Clock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { millis } from "../../model/ids.js";

/** As this process was started. */
const ORDINARY_PRIORITY = getPriority();

/** How often a process that shall end is looked at. */
const LOOK_MS = millis(5);
/** After SIGKILL a process is gone at once, unless the kernel keeps it in uninterruptible sleep. */
const KILL_LIMIT_MS = 10_000;

/** A process that is told from a later one with the same number. */
export interface ProcessIdentity {
  readonly pid: number;
  readonly startTicks: string;
  readonly bootId: string;
}

/** `null` when there is no such process (a zombie counts as none: it executes nothing). */
export function identifyProcess(pid: number): ProcessIdentity | null {
  const stat = readOrNull(`/proc/${String(pid)}/stat`);
  if (stat === null) return null;
  // The name stands in parentheses and may contain anything: count fields behind the last one.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const startTicks = fields[19];
  if (startTicks === undefined || fields[0] === "Z" || fields[0] === "X") return null;
  return { pid, startTicks, bootId: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim() };
}

export function isAlive(identity: ProcessIdentity): boolean {
  const now = identifyProcess(identity.pid);
  return now !== null && now.startTicks === identity.startTicks && now.bootId === identity.bootId;
}

/** The arguments of a living process; empty when there is none. */
export function commandLine(pid: number): readonly string[] {
  return (readOrNull(`/proc/${String(pid)}/cmdline`) ?? "").split("\0").filter((word) => word !== "");
}

/**
 * Ends the process for certain and only this one; resolves when it is gone.
 * @throws CareofError `stop-failed` when the kernel does not let it go within `limitMs`
 */
export async function endProcess(identity: ProcessIdentity, clock: Clock, limitMs = KILL_LIMIT_MS): Promise<void> {
  const end = clock.monotonic() + limitMs;
  while (isAlive(identity)) {
    signal(identity.pid, "SIGKILL");
    if (clock.monotonic() > end) throw new CareofError("stop-failed", `process ${String(identity.pid)} does not end`);
    await pause(clock);
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (thrown) {
    // Gone between the look and the signal: that is what was wanted.
    if (!(thrown instanceof Error && "code" in thrown && thrown.code === "ESRCH")) throw thrown;
  }
}

/** Waits one look's time. */
export function pause(clock: Clock): Promise<void> {
  return new Promise((resolve) => { clock.after("process-look", LOOK_MS, resolve); });
}

export interface Spawned {
  readonly identity: ProcessIdentity;
  /** Resolves with what to tell people when the process ends, while this process is its parent. */
  readonly ended: Promise<string>;
}

/**
 * Starts a program that outlives this process; its output goes to `logFile`, which is made anew.
 * @throws CareofError `start-failed`
 */
export async function spawnDetached(binary: string, args: readonly string[], logFile: string): Promise<Spawned> {
  const log = openSync(logFile, "w", 0o600);
  try {
    const child = spawn(binary, args, { detached: true, stdio: ["ignore", log, log] });
    const ended = new Promise<string>((resolve) => {
      child.once("exit", (code, killedBy) => { resolve(killedBy === null ? `exit status ${String(code)}` : `killed by ${killedBy}`); });
    });
    await new Promise<void>((resolve, reject) => {
      child.once("spawn", resolve);
      child.once("error", (cause) => { reject(new CareofError("start-failed", `cannot start ${binary}: ${cause.message}`, { cause })); });
    });
    child.unref();
    // Whoever starts it may be in a hurry just then (migration/urgency.ts), and it would be for ever. To be in less of one needs no right.
    if (child.pid !== undefined && getPriority() < ORDINARY_PRIORITY) calmDown(child.pid);
    const identity = child.pid === undefined ? null : identifyProcess(child.pid);
    if (identity === null) throw new CareofError("start-failed", `${binary} ended at once: ${tail(logFile)}`);
    return { identity, ended };
  } finally {
    closeSync(log);
  }
}

function calmDown(pid: number): void {
  try {
    setPriority(pid, ORDINARY_PRIORITY);
  } catch (thrown) {
    // It is gone already, and is told from a running one right behind this. Whatever else it is, a guest that runs must not count as one that could not be started.
    process.emitWarning(`process ${String(pid)} keeps this one's priority: ${thrown instanceof Error ? thrown.message : String(thrown)}`);
  }
}

/** The last lines of a log, for an error's message. */
export function tail(logFile: string): string {
  return (readOrNull(logFile) ?? "").trim().split("\n").slice(-3).join(" | ").slice(-500);
}

function readOrNull(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch (thrown) {
    const code = thrown instanceof Error && "code" in thrown ? thrown.code : "";
    if (code === "ENOENT" || code === "ESRCH") return null;
    throw thrown;
  }
}
