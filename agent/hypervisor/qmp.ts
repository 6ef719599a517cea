import { connect, type Socket } from "node:net";
import { z } from "zod";
import type { Clock, Timer } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { millis, type Millis } from "../../model/ids.js";
import type { Monitor } from "./monitor.js";

/** What QMP says by itself. `at` is on `Clock.monotonic`, taken from QEMU's own stamp. */
export interface QmpEvent {
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
  readonly at: Millis;
}

export interface QmpLimits {
  /** Longest line in bytes; the answer of query-qmp-schema would be 200 kB, nothing that is asked here comes near 64 kB. */
  readonly maxLine: number;
  readonly maxOutstanding: number;
}

const LIMITS: QmpLimits = { maxLine: 1024 * 1024, maxOutstanding: 64 };
/** QEMU's event stamps are older than this only if the wall clock was set meanwhile. */
const MAX_EVENT_AGE_MS = 2000;

/**
 * With the gate held, QEMU may say this event 25,000 times a second: all but the first ones of a migration are dropped unread, or STOP would wait
 * behind thousands of them.
 */
const FLOOD = /"MIGRATION_PASS".*"pass": ([0-9]+)/;
const HEARD_PASSES = 64;

const message = z.looseObject({
  QMP: z.looseObject({ version: z.looseObject({ qemu: z.looseObject({ major: z.number(), minor: z.number(), micro: z.number() }) }) }).optional(),
  return: z.unknown().optional(),
  error: z.looseObject({ class: z.string(), desc: z.string() }).optional(),
  id: z.number().optional(),
  event: z.string().optional(),
  data: z.record(z.string(), z.unknown()).optional(),
  timestamp: z.looseObject({ seconds: z.number(), microseconds: z.number() }).optional(),
});
type Message = z.infer<typeof message>;

interface Waiting {
  readonly command: string;
  readonly timer: Timer;
  resolve(value: unknown): void;
  reject(error: CareofError): void;
}

/**
 * A QMP connection: newline-separated JSON, greeting first, then `qmp_capabilities`, then commands whose replies are matched by id. Each command has a
 * time limit, because a QEMU whose migration thread hangs does not answer at all. Whatever is not QMP ends the connection.
 * Errors: `qmp-closed` and `qmp-timeout` (retryable), `qmp-malformed`, `qmp-too-many`, `qmp-refused` (QEMU's answer, `detail` in the message).
 */
export class Qmp implements Monitor {
  readonly version: string;
  readonly #socket: Socket;
  readonly #clock: Clock;
  readonly #limits: QmpLimits;
  readonly #waiting = new Map<number, Waiting>();
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  readonly #closed: Promise<CareofError>;
  #end: ((error: CareofError) => void) | null = null;
  #ended: CareofError | null = null;
  #nextId = 1;

  private constructor(socket: Socket, clock: Clock, limits: QmpLimits, lines: LineReader, version: string) {
    this.#socket = socket;
    this.#clock = clock;
    this.#limits = limits;
    this.version = version;
    this.#closed = new Promise((resolve) => { this.#end = resolve; });
    lines.onLine = (line) => { this.#take(line); };
    lines.onError = (error) => { this.#fail(error); };
    lines.drain();
  }

  /** Connects, waits for the greeting and enters command mode. */
  static async connect(path: string, clock: Clock, timeout: Millis, limits: Partial<QmpLimits> = {}): Promise<Qmp> {
    const bounds = { ...LIMITS, ...limits };
    const socket = connect({ path });
    const lines = new LineReader(socket, bounds.maxLine);
    const greeting = await new Promise<string>((resolve, reject) => {
      const timer = clock.after("qmp-greeting", timeout, () => { lines.onError(new CareofError("qmp-timeout", `no greeting on ${path} within ${String(timeout)} ms`, { retryable: true })); });
      lines.onLine = (line) => { timer.cancel(); lines.hold(); resolve(line); };
      lines.onError = (error) => { timer.cancel(); reject(error); };
    }).catch((thrown: unknown) => { socket.destroy(); throw thrown; });
    const hello = parse(greeting)?.QMP;
    if (hello === undefined) {
      socket.destroy();
      throw new CareofError("qmp-malformed", `${path} does not greet as QMP does: ${greeting.slice(0, 80)}`);
    }
    const { major, minor, micro } = hello.version.qemu;
    const qmp = new Qmp(socket, clock, bounds, lines, [major, minor, micro].join("."));
    try {
      await qmp.execute("qmp_capabilities", {}, timeout);
    } catch (thrown) {
      qmp.close();
      throw thrown;
    }
    return qmp;
  }

  get reachable(): boolean {
    return this.#ended === null;
  }

  /** Resolves with the cause when the connection is over. */
  get closed(): Promise<CareofError> {
    return this.#closed;
  }

  subscribe(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => { this.#listeners.delete(listener); };
  }

  /** The reply's `return`, unchecked: the caller decodes it. */
  async execute(command: string, parameters: Readonly<Record<string, unknown>>, timeout: Millis): Promise<unknown> {
    if (this.#ended !== null) throw this.#ended;
    if (this.#waiting.size >= this.#limits.maxOutstanding) throw new CareofError("qmp-too-many", `${String(this.#waiting.size)} commands wait already`, { retryable: true });
    const id = this.#nextId++;
    return new Promise<unknown>((resolve, reject) => {
      const timer = this.#clock.after(`qmp-${command}`, timeout, () => {
        this.#waiting.delete(id);
        reject(new CareofError("qmp-timeout", `${command} was not answered within ${String(timeout)} ms`, { retryable: true }));
      });
      this.#waiting.set(id, { command, timer, resolve, reject });
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: parameters, id })}\n`);
    });
  }

  close(): void {
    this.#fail(new CareofError("qmp-closed", "closed by us", { retryable: true }));
  }

  #take(line: string): void {
    const decoded = parse(line);
    if (decoded === null) {
      this.#fail(new CareofError("qmp-malformed", `not a QMP message: ${line.slice(0, 80)}`));
    } else if (decoded.event !== undefined) {
      const event = { name: decoded.event, data: decoded.data ?? {}, at: this.#stamp(decoded) };
      for (const listener of [...this.#listeners]) listener(event);
    } else if (decoded.id !== undefined) {
      this.#answer(decoded, decoded.id);
    }
    // A reply without id answers a line that QEMU could not read; its command runs into its time limit.
  }

  #answer(reply: Message, id: number): void {
    const waiting = this.#waiting.get(id);
    if (waiting === undefined) return; // late: its time limit has passed
    this.#waiting.delete(id);
    waiting.timer.cancel();
    if (reply.error === undefined) waiting.resolve(reply.return);
    else waiting.reject(new CareofError("qmp-refused", `${waiting.command}: ${reply.error.desc}`));
  }

  /** QEMU stamps with the wall clock of this machine; half a millisecond is what `Clock.now` cuts off on average. */
  #stamp(decoded: Message): Millis {
    const now = this.#clock.monotonic();
    if (decoded.timestamp === undefined) return now;
    const age = this.#clock.now() + 0.5 - (decoded.timestamp.seconds * 1000 + decoded.timestamp.microseconds / 1000);
    return age > 0 && age < MAX_EVENT_AGE_MS ? millis(now - age) : now;
  }

  #fail(error: CareofError): void {
    if (this.#ended !== null) return;
    this.#ended = error;
    this.#socket.destroy();
    for (const waiting of this.#waiting.values()) {
      waiting.timer.cancel();
      waiting.reject(error);
    }
    this.#waiting.clear();
    this.#end?.(error);
  }
}

function parse(line: string): Message | null {
  try {
    const result = message.safeParse(JSON.parse(line));
    return result.success ? result.data : null;
  } catch (thrown) {
    if (thrown instanceof SyntaxError) return null;
    throw thrown;
  }
}

/** Cuts a socket's bytes into lines of bounded length. */
class LineReader {
  onLine: (line: string) => void = () => undefined;
  onError: (error: CareofError) => void = () => undefined;
  #rest: Buffer = Buffer.alloc(0);
  #held = false;
  #pendingError: CareofError | null = null;
  readonly #max: number;

  constructor(socket: Socket, max: number) {
    this.#max = max;
    socket.on("data", (chunk: Buffer) => { this.#rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]); this.#cut(); });
    socket.on("error", (cause) => { this.#error(new CareofError("qmp-closed", `QMP connection failed: ${cause.message}`, { retryable: true, cause })); });
    socket.on("close", () => { this.#error(new CareofError("qmp-closed", "QEMU closed the QMP connection", { retryable: true })); });
  }

  /** Keeps further lines until `drain`. */
  hold(): void {
    this.#held = true;
  }

  drain(): void {
    this.#held = false;
    this.#cut();
    if (this.#pendingError !== null) this.onError(this.#pendingError);
  }

  #cut(): void {
    while (!this.#held) {
      const end = this.#rest.indexOf(10);
      if (end < 0) break;
      const line = this.#rest.toString("utf8", 0, end).trim();
      this.#rest = this.#rest.subarray(end + 1);
      if (line !== "" && Number(FLOOD.exec(line)?.[1] ?? 0) <= HEARD_PASSES) this.onLine(line);
    }
    if (this.#rest.length > this.#max) this.#error(new CareofError("qmp-malformed", `a QMP line is longer than ${String(this.#max)} bytes`));
  }

  #error(error: CareofError): void {
    if (this.#held) this.#pendingError ??= error;
    else this.onError(error);
  }
}
