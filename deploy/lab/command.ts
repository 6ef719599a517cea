import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { CareofError } from "../../model/errors.js";

export interface CommandResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Bytes of output that are kept of one command. */
const MAX_OUTPUT = 4 * 1024 * 1024;

/** `words` behind what puts a process into the network namespace; never `ip netns exec`, which hides pinned BPF objects. */
export function inNamespace(namespace: string, words: readonly string[]): string[] {
  return ["nsenter", `--net=/run/netns/${namespace}`, ...words];
}

export interface CommandOptions {
  readonly input?: string;
  readonly limitMs?: number;
  /** Called for every line of standard error as it comes. */
  readonly onStderr?: (line: string) => void;
  /** Kills it, and nothing that it still says is heard. */
  readonly signal?: AbortSignal;
}

/**
 * Runs a command to its end; an exit code is an answer, not an error.
 * @throws CareofError `no-command` (cannot be started), `timed-out` (killed after `limitMs`)
 */
export async function command(words: readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
  const limit = options.limitMs ?? 60_000;
  const [program = "", ...rest] = words;
  return new Promise((resolve, reject) => {
    const child = spawn(program, rest, { stdio: ["pipe", "pipe", "pipe"], detached: true });
    const output = { stdout: "", stderr: "" };
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      reject(new CareofError("timed-out", `${words.join(" ")} took longer than ${String(limit)} ms`, { retryable: true }));
    }, limit);
    for (const name of ["stdout", "stderr"] as const) {
      child[name].setEncoding("utf8").on("data", (text: string) => {
        if (output[name].length < MAX_OUTPUT) output[name] += text;
      });
    }
    const { onStderr, signal } = options;
    if (onStderr !== undefined) {
      createInterface({ input: child.stderr }).on("line", (line) => {
        if (signal?.aborted !== true) onStderr(line);
      });
    }
    const kill = (): void => { child.kill("SIGKILL"); };
    if (signal?.aborted === true) kill();
    else signal?.addEventListener("abort", kill, { once: true });
    // A command that ends without reading its input breaks the pipe; its exit code tells.
    child.stdin.on("error", () => undefined);
    child.stdin.end(options.input ?? "");
    child.on("error", (cause) => {
      clearTimeout(timer);
      reject(new CareofError("no-command", `cannot run ${program}: ${cause.message}`, { cause }));
    });
    child.on("close", (code) => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", kill);
      resolve({ code: code ?? 1, ...output });
    });
  });
}

/** As `command`, but an exit code other than 0 is an error. @throws CareofError `command-failed` */
export async function must(words: readonly string[], options: CommandOptions = {}): Promise<string> {
  const result = await command(words, options);
  if (result.code !== 0) {
    const said = (result.stderr.trim() === "" ? result.stdout : result.stderr).trim();
    throw new CareofError("command-failed", `${words.join(" ")} ended with ${String(result.code)}: ${said.slice(-600)}`);
  }
  return result.stdout;
}
