import type { ChildProcessWithoutNullStreams } from "node:child_process";
import { createInterface, type Interface } from "node:readline";
import { z } from "zod";
import { namespacesOf, newRunId } from "../../deploy/lab/plan.js";
import { register, removeRun } from "../../deploy/lab/registry.js";
import { CareofError } from "../../model/errors.js";
import { makeBridge, spawnControlHost } from "../handover/control.js";
import type { Load, Measured } from "./cases.js";

/** A guest boots, or moves, within this. */
const ANSWER_MS = 120_000;
const answer = z.union([
  z.object({ ok: z.literal(true), totalMs: z.number().optional(), pauseMs: z.number().optional(), bytes: z.number().optional() }),
  z.object({ error: z.string() }),
]);

/** The same guest and the same QEMU without careof: from one process to another over a unix socket, neither encrypted nor watched. */
export class Bare {
  readonly #run: string;
  readonly #host: ChildProcessWithoutNullStreams;
  readonly #lines: Interface;

  private constructor(run: string, host: ChildProcessWithoutNullStreams) {
    this.#run = run;
    this.#host = host;
    this.#lines = createInterface({ input: host.stdout });
  }

  static async open({ dirtyMb }: Load): Promise<Bare> {
    const run = newRunId();
    register(run);
    try {
      const { c, h } = namespacesOf(run);
      await makeBridge(c, h);
      const bare = new Bare(run, spawnControlHost(run, dirtyMb > 0 ? [`careof.dirty=${String(dirtyMb)}`] : []));
      await bare.#answered();
      return bare;
    } catch (thrown) {
      await removeRun(run);
      throw thrown;
    }
  }

  async migrate({ downtimeLimitMs }: Load, channels: number): Promise<Measured> {
    const { totalMs = null, pauseMs = null, bytes = null } = await this.#ask(`migrate ${String(channels)} ${String(downtimeLimitMs)}`);
    return { totalMs, pauseMs, bytes };
  }

  /** Takes the guest's processor away, so that it does not disturb the other side's turn. */
  async freeze(): Promise<void> {
    await this.#ask("freeze");
  }

  async thaw(): Promise<void> {
    await this.#ask("thaw");
  }

  async close(): Promise<void> {
    this.#host.stdin.end();
    const left = await removeRun(this.#run);
    if (left.length > 0) process.stderr.write(`left over: ${left.join(", ")}\n`);
  }

  async #ask(line: string): Promise<Extract<z.output<typeof answer>, { readonly ok: true }>> {
    const answered = this.#answered();
    this.#host.stdin.write(`${line}\n`);
    return answered;
  }

  async #answered(): Promise<Extract<z.output<typeof answer>, { readonly ok: true }>> {
    const line = await new Promise<string>((resolve, reject) => {
      const timer = setTimeout(() => { reject(new CareofError("timed-out", "the bare QEMU's host does not answer")); }, ANSWER_MS);
      this.#lines.once("line", (text) => {
        clearTimeout(timer);
        resolve(text);
      });
    });
    const said = answer.parse(JSON.parse(line));
    if ("error" in said) throw new CareofError("control-failed", `the bare migration failed: ${said.error}`);
    return said;
  }
}
