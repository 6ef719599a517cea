import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, openSync, readFileSync, statSync, readSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { CareofError, toCareofError } from "../../model/errors.js";

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** A process of the lab, with its output in a file. In a process group of its own: Ctrl-C is for the program that looks after it. */
export class Part {
  readonly name: string;
  readonly logFile: string;
  /** Wall clock, ms. */
  readonly startedAt = Date.now();
  readonly ended: Promise<Ended>;
  readonly #child: ChildProcess;
  #end: Ended | null = null;

  /** @throws CareofError `no-command` through `ended` if it cannot be started */
  constructor(name: string, words: readonly string[], logFile: string) {
    this.name = name;
    this.logFile = logFile;
    const log = openSync(logFile, "a");
    const [program = "", ...rest] = words;
    this.#child = spawn(program, rest, { stdio: ["ignore", log, log], detached: true });
    closeSync(log);
    this.ended = new Promise((resolve, reject) => {
      this.#child.on("error", (cause) => {
        reject(new CareofError("no-command", `cannot start ${name}: ${cause.message}`, { cause }));
      });
      this.#child.on("exit", (code, signal) => {
        this.#end = { code, signal };
        resolve(this.#end);
      });
    });
    // Whoever waits for it learns of the failure; a part that nobody waits for must not end the program.
    this.ended.catch((thrown: unknown) => {
      this.#end = { code: 127, signal: null };
      return toCareofError(thrown);
    });
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** How it ended; `null` while it runs. */
  get end(): Ended | null {
    return this.#end;
  }

  get running(): boolean {
    return this.#end === null;
  }

  /** Sends the signal and waits for the end. @throws CareofError `timed-out` if it is still there after `limitMs` */
  async stop(signal: NodeJS.Signals, limitMs = 30_000): Promise<Ended> {
    if (this.running) this.#child.kill(signal);
    const limit = new AbortController();
    try {
      const end = await Promise.race([this.ended, sleep(limitMs, null, { signal: limit.signal })]);
      if (end === null) throw new CareofError("timed-out", `${this.name} did not end within ${String(limitMs)} ms of ${signal}`);
      return end;
    } finally {
      limit.abort();
    }
  }

  signal(signal: NodeJS.Signals): void {
    if (this.running) this.#child.kill(signal);
  }

  /** Lets this program end while the part goes on. */
  leave(): void {
    this.#child.unref();
  }

  /** The last `lines` lines of its output. */
  tail(lines: number): string {
    return tailOf(this.logFile, lines);
  }
}

export function tailOf(file: string, lines: number): string {
  const most = 64 * 1024;
  let size: number;
  try {
    size = statSync(file).size;
  } catch {
    return "";
  }
  if (size <= most) return lastLines(readFileSync(file, "utf8"), lines);
  const handle = openSync(file, "r");
  const buffer = Buffer.alloc(most);
  readSync(handle, buffer, 0, most, size - most);
  closeSync(handle);
  return lastLines(buffer.toString("utf8"), lines);
}

function lastLines(text: string, lines: number): string {
  return text.trimEnd().split("\n").slice(-lines).join("\n");
}
