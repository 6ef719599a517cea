import { spawn, type ChildProcessByStdio } from "node:child_process";
import { join } from "node:path";
import { createInterface, type Interface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { z } from "zod";
import { CareofError } from "../../model/errors.js";
import { inNamespace } from "./command.js";
import { REPOSITORY } from "./program.js";

const answers = z.array(z.object({
  address: z.string(),
  /** Questions that the guest's end has answered since it started. */
  counter: z.number().nullable(),
  /** Drawn when the guest's end started: the same as long as it is the same process. */
  instance: z.string().nullable(),
  error: z.string().nullable(),
}));

export type SessionAnswer = z.infer<typeof answers>[number];

/** One open TCP session to each of several guests, which is used only when it is asked for. */
export class Sessions {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: Interface;
  readonly #ended: Promise<never>;

  private constructor(namespace: string, addresses: readonly string[]) {
    const words = inNamespace(namespace, [process.execPath, join(REPOSITORY, "dist", "deploy", "lab", "run-sessions.js"), ...addresses]);
    this.#child = spawn(words[0] ?? "", words.slice(1), { stdio: ["pipe", "pipe", "inherit"], detached: true });
    this.#lines = createInterface({ input: this.#child.stdout });
    // Writing to a process that is gone: its end says why.
    this.#child.stdin.on("error", () => undefined);
    this.#ended = new Promise((_resolve, reject) => {
      this.#child.on("error", reject).on("close", (code) => { reject(new CareofError("sessions-ended", `the sessions' process ended with ${String(code)}`)); });
    });
    this.#ended.catch(() => undefined);
  }

  /** Resolves when all are open. @throws CareofError `sessions-ended` when a guest does not answer */
  static async open(namespace: string, addresses: readonly string[]): Promise<Sessions> {
    const sessions = new Sessions(namespace, addresses);
    await sessions.#line();
    return sessions;
  }

  /** Asks on every session, and says what each guest answered. @throws CareofError `sessions-ended` */
  async ask(): Promise<readonly SessionAnswer[]> {
    const line = this.#line();
    this.#child.stdin.write("ask\n");
    return answers.parse(JSON.parse(await line));
  }

  close(): void {
    this.#child.kill("SIGKILL");
  }

  async #line(): Promise<string> {
    return Promise.race([this.#ended, new Promise<string>((resolve) => { this.#lines.once("line", resolve); })]);
  }
}
