import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { join } from "node:path";
import type { Test } from "tap";
import { inNamespace } from "../../deploy/lab/command.js";
import type { Lab } from "../../deploy/lab/lab.js";
import { REPOSITORY } from "../../deploy/lab/program.js";

export const TERMINAL = { columns: 80, rows: 24 } as const;
const CAREOF = [process.execPath, join(REPOSITORY, "dist", "cli", "main.js")];
const CTRL_C = "\u0003";

type Ends = Pick<Test, "teardown">;

/** `careof` as an operator runs it, beside the test: with its output in a pipe, or on a terminal. It may be interrupted. */
export class Running {
  /** Its exit code. */
  readonly ended: Promise<number | null>;
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #interrupt: () => void;
  #out = "";
  #err = "";

  private constructor(t: Ends, words: readonly string[], interrupt: (child: ChildProcessWithoutNullStreams) => void) {
    const [program = "", ...rest] = words;
    const child = spawn(program, rest, { stdio: ["pipe", "pipe", "pipe"], detached: true, env: { ...process.env, SHELL: "/bin/sh", COLUMNS: String(TERMINAL.columns) } });
    this.#child = child;
    this.#interrupt = (): void => { interrupt(child); };
    child.stdout.setEncoding("utf8").on("data", (text: string) => { this.#out += text; });
    child.stderr.setEncoding("utf8").on("data", (text: string) => { this.#err += text; });
    // Nobody reads a command that has ended: its exit code tells.
    child.stdin.on("error", () => undefined);
    this.ended = new Promise((resolve, reject) => { child.on("error", reject).on("close", resolve); });
    this.ended.catch(() => undefined);
    t.teardown(() => { child.kill("SIGKILL"); });
  }

  static piped(t: Ends, lab: Lab, words: readonly string[]): Running {
    const running = new Running(t, inNamespace(lab.namespace("h"), [...CAREOF, ...words]), (child) => { child.kill("SIGINT"); });
    running.#child.stdin.end();
    return running;
  }

  /**
   * One command after the other. What they write to standard error is on the same screen. The last one takes the shell's place: a shell that stays is interrupted as
   * well, and with dash (not with bash) the exit code is then the shell's, 130.
   */
  static onTerminal(t: Ends, lab: Lab, ...commands: readonly (readonly string[])[]): Running {
    const lines = commands.map((words, at) => `${at === commands.length - 1 ? "exec " : ""}${[...CAREOF, ...words].map((word) => `'${word}'`).join(" ")}`);
    lines.unshift(`stty cols ${String(TERMINAL.columns)} rows ${String(TERMINAL.rows)}`);
    return new Running(t, inNamespace(lab.namespace("h"), ["script", "--quiet", "--return", "--command", lines.join(" && "), "/dev/null"]), (child) => { child.stdin.write(CTRL_C); });
  }

  /** Standard output so far, or the screen's. */
  get out(): string {
    return this.#out;
  }

  /** Whole lines of standard output so far. */
  get lines(): readonly string[] {
    return wholeLines(this.#out);
  }

  /** Whole lines of standard error so far. */
  get said(): readonly string[] {
    return wholeLines(this.#err);
  }

  /** Ctrl-C. */
  interrupt(): void {
    this.#interrupt();
  }
}

function wholeLines(text: string): readonly string[] {
  return text.split(/\r?\n/).slice(0, -1);
}
