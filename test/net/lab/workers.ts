import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { z } from "zod";
import type { Namespace } from "./namespaces.js";

const worker = join(import.meta.dirname, "worker.js");

/** A worker in a namespace: its lines, one after another. */
export class Worker {
  readonly #child;
  readonly #lines;

  constructor(net: Namespace, ...given: readonly (string | number)[]) {
    this.#child = net.spawn(process.execPath, worker, ...given.map(String));
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
    this.#child.stderr.pipe(process.stderr);
  }

  /** To ask, between other things, whether something still goes on. */
  static running(work: Promise<unknown>): { readonly on: () => boolean; readonly end: Promise<void> } {
    let running = true;
    const end = work.then(() => { running = false; });
    return { on: () => running, end };
  }

  async line<T>(schema: z.ZodType<T>): Promise<T> {
    const next = await this.#lines.next();
    if (next.done === true) throw new Error("the worker ended without an answer");
    return schema.parse(JSON.parse(next.value));
  }

  /** To a worker that reads lines. */
  ask(text: string): void {
    this.#child.stdin.write(`${text}\n`);
  }

  stop(): void {
    this.#child.kill("SIGTERM");
  }

  async ended(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) await once(this.#child, "exit");
  }
}

export const ready = z.object({ ready: z.literal(true) });
export const sent = z.object({ sent: z.number() });
export const received = z.object({ received: z.number(), overflowed: z.number(), duplicated: z.number(), reordered: z.number(), bytes: z.record(z.string(), z.number()) });
export const exchanged = z.object({ sent: z.number(), received: z.number(), same: z.boolean(), seconds: z.number(), datagrams: z.array(z.number()).optional() });
