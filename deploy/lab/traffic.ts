import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { createInterface } from "node:readline";
import { z } from "zod";
import { CareofError } from "../../model/errors.js";
import { inNamespace } from "./command.js";
import { labProgram } from "./program.js";

/** For the correspondent's answer; in user-mode-linux it may get no processor for seconds. */
const ANSWER_MS = 60_000;

const gap = z.number().nonnegative().nullable();
const count = z.number().int().nonnegative();

/** Between two marks; times are CLOCK_MONOTONIC milliseconds, `null` is "not measured". */
const windowSchema = z.object({
  type: z.literal("window"), from: z.string(), to: z.string(), t0: z.number(), t1: z.number(),
  sentDown: count, receivedDown: count, duplicatedDown: count, reorderedDown: count,
  sentUp: count, receivedUp: count, duplicatedUp: count, reorderedUp: count,
  /** Down packets that found the buffer of the guest's own socket full, since the window before this one. */
  guestRefused: count,
  /** Longest silence that the correspondent sees, minus the sending period. */
  serviceGapUpMs: gap, serviceGapUpAt: z.number().nullable(), serviceGapDownMs: gap, serviceGapDownAt: z.number().nullable(),
  /** Longest time without a byte of the bulk stream. */
  tcpStallUpMs: gap, tcpStallUpAt: z.number().nullable(), tcpStallDownMs: gap, tcpStallDownAt: z.number().nullable(),
  bulkUpBytes: count, bulkDownBytes: count, senderLateMs: z.number(),
});
const sampleSchema = z.object({
  type: z.literal("sample"), t: z.number(),
  /** Bytes in each 10 ms of the 100 ms that end at `t`. */
  bulkUp: z.array(count), bulkDown: z.array(count), bulkUpBytes: count, bulkDownBytes: count,
  sentDown: count, guestHighest: count, guestUnique: count, guestDuplicates: count, guestReordered: count,
  highestUp: count, uniqueUp: count, duplicatesUp: count, reorderedUp: count,
  counter: count, rttMs: z.number(), rttMaxMs: z.number(),
});
const lineSchema = z.discriminatedUnion("type", [
  windowSchema,
  sampleSchema,
  z.object({ type: z.literal("ready"), t: z.number(), counter: count, instance: z.string() }),
  z.object({ type: z.literal("mark"), name: z.string(), t: z.number(), down: count, up: count }),
  z.object({ type: z.literal("idle"), counter: count, instance: z.string(), rttMs: z.number() }),
  z.object({ type: z.literal("broken"), t: z.number(), session: z.string(), error: z.string() }),
  z.object({ type: z.literal("error"), message: z.string() }),
  z.object({ type: z.literal("end"), survived: z.boolean(), bulkUpBytes: count, bulkDownBytes: count, sentDown: count, highestUp: count, counter: count }),
]);

export type TrafficWindow = z.infer<typeof windowSchema>;
export type TrafficSample = z.infer<typeof sampleSchema>;
type Line = z.infer<typeof lineSchema>;
type LineOf<T extends Line["type"]> = Extract<Line, { readonly type: T }>;

/** @throws CareofError `command-failed` with the compiler's words */
export async function trafficProgram(): Promise<string> {
  return labProgram("traffic");
}

export interface TrafficOptions {
  readonly program: string;
  readonly namespace: string;
  readonly to: string;
  /** Packets per second and direction. */
  readonly pps: number;
  /** Mbit/s and direction; 0 for none. */
  readonly bulkMbit: number;
  /** Seconds in which the guest must answer. */
  readonly waitS: number;
  readonly onSample?: (sample: TrafficSample) => void;
}

/** The correspondent: `traffic run` in its namespace. Every call has a time limit; a session that breaks is kept in `broken`. */
export class Traffic {
  readonly broken: LineOf<"broken">[] = [];
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #waiting: { readonly type: Line["type"]; readonly take: (line: Line) => void; readonly fail: (error: CareofError) => void }[] = [];
  readonly #onSample: (sample: TrafficSample) => void;
  #said = "";
  #over: CareofError | null = null;

  constructor(options: TrafficOptions) {
    this.#onSample = options.onSample ?? (() => undefined);
    const words = inNamespace(options.namespace, [
      options.program, "run", "--to", options.to, "--pps-down", String(options.pps), "--pps-up", String(options.pps),
      "--bulk-mbit", String(options.bulkMbit), "--wait", String(options.waitS),
    ]);
    this.#child = spawn(words[0] ?? "", words.slice(1), { stdio: ["pipe", "pipe", "pipe"], detached: true });
    createInterface({ input: this.#child.stdout }).on("line", (text) => { this.#take(text); });
    this.#child.stderr.setEncoding("utf8").on("data", (text: string) => { this.#said = (this.#said + text).slice(-2000); });
    // Writing to a process that is gone: its end says why.
    this.#child.stdin.on("error", () => undefined);
    this.#child.on("error", (cause) => { this.#end(new CareofError("no-command", `cannot start the correspondent: ${cause.message}`, { cause })); });
    this.#child.on("close", (code) => { this.#end(new CareofError("traffic-ended", `the correspondent ended with ${String(code)}: ${this.#said.trim()}`)); });
  }

  /** Resolves when all sessions are open. */
  async ready(limitMs: number): Promise<LineOf<"ready">> {
    return this.#expect("ready", limitMs);
  }

  async mark(name: string): Promise<LineOf<"mark">> {
    return this.#ask(`mark ${name}`, "mark");
  }

  /** Counts and gaps between two marks; ask at least a round trip after the later one, so that what was sent has arrived. */
  async window(from: string, to: string): Promise<TrafficWindow> {
    return this.#ask(`window ${from} ${to}`, "window");
  }

  /** Uses the TCP session that has been idle since the start. */
  async idle(): Promise<LineOf<"idle">> {
    return this.#ask("idle", "idle");
  }

  async quit(): Promise<LineOf<"end">> {
    return this.#ask("quit", "end");
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }

  async #ask<T extends Line["type"]>(command: string, type: T): Promise<LineOf<T>> {
    this.#child.stdin.write(`${command}\n`);
    return this.#expect(type, ANSWER_MS);
  }

  async #expect<T extends Line["type"]>(type: T, limitMs: number): Promise<LineOf<T>> {
    if (this.#over !== null) throw this.#over;
    return new Promise<LineOf<T>>((resolve, reject) => {
      const drop = (): void => {
        clearTimeout(timer);
        this.#waiting.splice(this.#waiting.indexOf(entry), 1);
      };
      const entry = {
        type,
        take: (line: Line): void => {
          drop();
          if (isType(line, type)) resolve(line);
        },
        fail: (error: CareofError): void => {
          drop();
          reject(error);
        },
      };
      const timer = setTimeout(() => { entry.fail(new CareofError("timed-out", `the correspondent did not say "${type}" within ${String(limitMs)} ms`)); }, limitMs);
      this.#waiting.push(entry);
    });
  }

  #take(text: string): void {
    const line = lineSchema.parse(JSON.parse(text));
    if (line.type === "sample") this.#onSample(line);
    else if (line.type === "broken") this.broken.push(line);
    const failed = line.type === "error" ? new CareofError("traffic-refused", line.message) : null;
    const waiting = this.#waiting.find((entry) => failed !== null || entry.type === line.type);
    if (failed === null) waiting?.take(line);
    else waiting?.fail(failed);
  }

  #end(error: CareofError): void {
    this.#over = error;
    for (const entry of [...this.#waiting]) entry.fail(error);
  }
}

function isType<T extends Line["type"]>(line: Line, type: T): line is LineOf<T> {
  return line.type === type;
}
