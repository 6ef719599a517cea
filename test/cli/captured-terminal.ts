import { SystemClock } from "../../model/clock.js";
import { millis } from "../../model/ids.js";
import type { ApiLimits } from "../../cli/api-client.js";
import type { Context } from "../../cli/context.js";
import type { Parts } from "../../cli/parts.js";
import { run } from "../../cli/program.js";
import type { Terminal } from "../../cli/terminal.js";

/** Keeps what is written, and presses Ctrl-C when told. */
export class CapturedTerminal implements Terminal {
  stdout = "";
  stderr = "";
  outIsLive = false;
  errIsLive = false;
  columns: number | null = null;
  rows: number | null = null;
  errColumns: number | null = null;
  /** Called after every write, so that a test can react to what it sees. */
  onWrite: () => void = () => undefined;
  readonly #listeners = new Set<() => void>();

  out(text: string): void {
    this.stdout += text;
    this.onWrite();
  }

  err(text: string): void {
    this.stderr += text;
    this.onWrite();
  }

  onInterrupt(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => { this.#listeners.delete(listener); };
  }

  interrupt(): void {
    for (const listener of this.#listeners) listener();
  }

  get listens(): boolean {
    return this.#listeners.size > 0;
  }

  /** Resolves when what was written so far fulfils `wanted`. */
  async until(wanted: (terminal: this) => boolean): Promise<void> {
    if (wanted(this)) return;
    await new Promise<void>((resolve) => {
      this.onWrite = () => {
        if (wanted(this)) resolve();
      };
    });
  }
}

export interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

const refuse = (): never => {
  throw new Error("this part is not part of the test");
};

export const noParts: Parts = { homeAgent: refuse, agent: refuse, heartbeat: refuse, demo: refuse, doctor: refuse };

/** Short enough for a test that waits for them. */
export const shortLimits: Partial<ApiLimits> = { answer: millis(300), sign: millis(100), silence: millis(400) };

export interface RunOptions {
  readonly terminal?: CapturedTerminal;
  readonly parts?: Partial<Parts>;
  readonly limits?: Partial<ApiLimits>;
}

export async function careof(args: readonly string[], options: RunOptions = {}): Promise<Ran> {
  const terminal = options.terminal ?? new CapturedTerminal();
  const context: Context = {
    terminal, clock: new SystemClock({ keepAlive: true }), version: "9.9.9", exitCode: 0, parts: { ...noParts, ...options.parts },
    ...(options.limits === undefined ? {} : { apiLimits: options.limits }),
  };
  const code = await run(args, context);
  return { code, stdout: terminal.stdout, stderr: terminal.stderr };
}
