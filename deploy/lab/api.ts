import { spawn, type ChildProcessByStdio } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { z } from "zod";
import { CareofError } from "../../model/errors.js";
import { inNamespace } from "./command.js";
import { REPOSITORY } from "./program.js";

const answerSchema = z.object({ id: z.number(), status: z.number(), text: z.string(), error: z.string().nullable() });
const LIMIT_MS = 30_000;

export interface HttpAnswer {
  readonly status: number;
  /** Decoded JSON, `null` for an empty body. */
  readonly body: unknown;
}

/** HTTP requests from inside a namespace, as any client there would send them; one process for all of them. */
export class NamespaceHttp {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #waiting = new Map<number, { readonly resolve: (answer: HttpAnswer) => void; readonly reject: (error: CareofError) => void }>();
  #id = 0;

  constructor(namespace: string) {
    const words = inNamespace(namespace, [process.execPath, join(REPOSITORY, "dist", "deploy", "lab", "run-fetch.js")]);
    this.#child = spawn(words[0] ?? "", words.slice(1), { stdio: ["pipe", "pipe", "inherit"], detached: true });
    createInterface({ input: this.#child.stdout }).on("line", (line) => { this.#take(line); });
    // Writing to a process that is gone: its end says so to whoever waits.
    this.#child.stdin.on("error", () => undefined);
    this.#child.on("error", (cause) => { this.#fail(new CareofError("no-command", cause.message, { cause })); });
    this.#child.on("close", () => { this.#fail(new CareofError("no-answer", "the HTTP client of the namespace ended")); });
  }

  /** @throws CareofError `no-answer` (retryable) when nobody answers */
  async request(method: string, url: string, body: string | null): Promise<HttpAnswer> {
    const id = ++this.#id;
    const limit = setTimeout(() => { this.#settle(id)?.reject(new CareofError("no-answer", `${method} ${url}: no answer within ${String(LIMIT_MS)} ms`, { retryable: true })); }, LIMIT_MS);
    try {
      return await new Promise<HttpAnswer>((resolve, reject) => {
        this.#waiting.set(id, { resolve, reject });
        this.#child.stdin.write(`${JSON.stringify({ id, method, url, body })}\n`);
      });
    } finally {
      clearTimeout(limit);
    }
  }

  close(): void {
    this.#child.kill("SIGKILL");
  }

  #take(line: string): void {
    const { id, status, text, error } = answerSchema.parse(JSON.parse(line));
    const waiting = this.#settle(id);
    if (error === null) waiting?.resolve({ status, body: text === "" ? null : json(text) });
    else waiting?.reject(new CareofError("no-answer", error, { retryable: true }));
  }

  #settle(id: number): { readonly resolve: (answer: HttpAnswer) => void; readonly reject: (error: CareofError) => void } | undefined {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    return waiting;
  }

  #fail(error: CareofError): void {
    for (const id of [...this.#waiting.keys()]) this.#settle(id)?.reject(error);
  }
}

/** What is no JSON (metrics, a page) is given as text. */
function json(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
