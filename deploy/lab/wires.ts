import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { createInterface } from "node:readline";
import { CareofError } from "../../model/errors.js";
import { must } from "./command.js";
import type { WireDelay } from "./plan.js";
import { labProgram } from "./program.js";

const ANSWER_MS = 30_000;

export interface WireEnd {
  readonly namespace: string;
  readonly name: string;
}

export interface WireOptions {
  readonly run: string;
  readonly left: WireEnd;
  readonly right: WireEnd;
  readonly delay: WireDelay;
}

/** How many cables this process has made: TAPs are born in one namespace and need names of their own there. */
let made = 0;

/**
 * A cable with a length between two namespaces (wire.c). It ends with `close`, or with this process: then its interfaces are gone.
 * @throws CareofError `command-failed`, `wire-failed` with what the program said
 */
export class Wire {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #waiting: { readonly take: (line: string) => void; readonly fail: (error: CareofError) => void }[] = [];
  #said = "";
  #ended = false;

  private constructor(child: ChildProcessWithoutNullStreams) {
    this.#child = child;
    createInterface({ input: child.stdout }).on("line", (line) => { this.#waiting.shift()?.take(line); });
    child.stderr.setEncoding("utf8").on("data", (text: string) => { this.#said = (this.#said + text).slice(-500); });
    // Writing to a program that is gone: its end says why.
    child.stdin.on("error", () => undefined);
    child.on("error", (cause) => { this.#end(new CareofError("wire-failed", `cannot start the cable: ${cause.message}`, { cause })); });
    child.on("close", (code) => { this.#end(new CareofError("wire-failed", `the cable ended with ${String(code)}: ${this.#said.trim()}`)); });
  }

  static async open(options: WireOptions): Promise<Wire> {
    const program = await labProgram("wire");
    const { left, right, delay } = options;
    const births = [0, 1].map(() => `co${options.run}${String(made++)}`);
    const wire = new Wire(spawn(program, [...births, "--delay-us", String(delay.thereUs), "--back-us", String(delay.backUs)], { stdio: "pipe", detached: true }));
    try {
      await wire.#answer("ready");
      for (const [index, end] of [left, right].entries()) await must(["ip", "link", "set", births[index] ?? "", "netns", end.namespace, "name", end.name]);
    } catch (thrown) {
      wire.#child.kill("SIGKILL");
      throw thrown;
    }
    return wire;
  }

  async delay(delay: WireDelay): Promise<void> {
    await this.#command(`delay ${String(delay.thereUs)} ${String(delay.backUs)}`);
  }

  /** From now on everything is lost, what is under way included. */
  async cut(): Promise<void> {
    await this.#command("cut");
  }

  async heal(): Promise<void> {
    await this.#command("heal");
  }

  /** Lets this program end, without waiting: a cable does not outlive it. */
  leave(): void {
    this.#child.kill("SIGTERM");
  }

  /** Idempotent. */
  async close(): Promise<void> {
    if (this.#ended) return;
    const over = new Promise<void>((resolve) => { this.#child.once("close", () => { resolve(); }); });
    this.#child.kill("SIGTERM");
    await over;
  }

  async #command(text: string): Promise<void> {
    if (this.#ended) throw new CareofError("wire-failed", "the cable is gone");
    this.#child.stdin.write(`${text}\n`);
    await this.#answer("ok");
  }

  async #answer(wanted: string): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => { reject(new CareofError("wire-failed", `the cable did not say "${wanted}"`)); }, ANSWER_MS);
      this.#waiting.push({
        take: (line) => {
          clearTimeout(timer);
          if (line === wanted) resolve();
          else reject(new CareofError("wire-failed", `the cable said "${line}" instead of "${wanted}"`));
        },
        fail: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
    });
  }

  #end(error: CareofError): void {
    this.#ended = true;
    for (const each of this.#waiting.splice(0)) each.fail(error);
  }
}
