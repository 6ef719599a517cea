import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { inNamespace } from "../../deploy/lab/command.js";
import { moveSchema, type Lab, type Move } from "../../deploy/lab/lab.js";
import { REPOSITORY } from "../../deploy/lab/program.js";

export interface Answer {
  readonly code: number | null;
  readonly move: Move | null;
  /** The last line on standard error. */
  readonly said: string;
}

/** `careof migrate` as a person runs it, who may press Ctrl-C. */
export class Operator {
  readonly ended: Promise<Answer>;
  readonly #child: ChildProcessWithoutNullStreams;
  #over = false;

  constructor(lab: Lab, vm: string, host: string, options: readonly string[] = []) {
    const words = inNamespace(lab.namespace("h"), [process.execPath, join(REPOSITORY, "dist", "cli", "main.js"), "migrate", vm, host, "--output", "json", ...options]);
    this.#child = spawn(words[0] ?? "", words.slice(1), { stdio: ["pipe", "pipe", "pipe"], detached: true });
    this.#child.stdin.end();
    let out = "";
    let err = "";
    this.#child.stdout.setEncoding("utf8").on("data", (text: string) => { out += text; });
    this.#child.stderr.setEncoding("utf8").on("data", (text: string) => { err = (err + text).slice(-4000); });
    this.ended = new Promise((resolve, reject) => {
      this.#child.on("error", reject);
      this.#child.on("close", (code) => {
        this.#over = true;
        resolve({ code, move: read(out), said: err.trim().split("\n").at(-1) ?? "" });
      });
    });
  }

  get over(): boolean {
    return this.#over;
  }

  interrupt(): void {
    this.#child.kill("SIGINT");
  }

  /** `null`: it has not ended within the limit. */
  async within(limitMs: number): Promise<Answer | null> {
    const limit = new AbortController();
    return Promise.race([this.ended, sleep(limitMs, null, { signal: limit.signal })]).finally(() => { limit.abort(); });
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }
}

function read(out: string): Move | null {
  try {
    return moveSchema.parse(JSON.parse(out));
  } catch {
    return null; // nothing, or a refusal: exit code and standard error tell
  }
}
