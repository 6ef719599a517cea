import { z } from "zod";
import { SystemClock, type Clock, type Timer } from "../model/clock.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { millis, type HostId, type Millis, type VmId } from "../model/ids.js";
import { EventParser } from "./event-parser.js";
import { patientFetch } from "./patient-fetch.js";
import { drainReply, errorReply, givenBackReply, happening, hostReply, migrationReply, reloadReply, stayReply, vmReply, type DrainReply, type Happening, type HostReply, type MigrationReply, type StayReply, type VmReply } from "./replies.js";
import { asksForLife } from "./sign-of-life.js";

export interface ApiLimits {
  /** For an ordinary answer. */
  readonly answer: Millis;
  /** While an answer is waited for that takes as long as a guest does (start, stop), the home agent must say so often that it is there. */
  readonly sign: Millis;
  /** A stream of events that is silent for so long is dead: the home agent writes a comment every 10 s. */
  readonly silence: Millis;
  readonly bodyBytes: number;
}

export const API_LIMITS: ApiLimits = { answer: millis(15_000), sign: millis(15_000), silence: millis(25_000), bodyBytes: 256 * 1024 * 1024 };

/** No answer takes longer, whatever is configured at the home agent (`timing`: an hour at most). */
const LONGEST_ANSWER = millis(3_700_000);

const JSON_BODY = { "content-type": "application/json" };

/** Failures that say nothing of what was asked for: nobody answered, or nonsense. What else fails is a refusal, and changed nothing. */
export const NO_ANSWER: ReadonlySet<string> = new Set(["home-agent-unreachable", "timed-out", "bad-reply", "left"]);

/** What one move shall have otherwise than configured. Bytes per second, 0 is unlimited. */
export interface MoveWishes {
  readonly bandwidth?: number;
  readonly downtimeLimitMs?: number;
  readonly autoConverge?: boolean;
  readonly channels?: number;
  readonly timeoutMs?: number;
  readonly onTimeout?: "abort" | "force";
  readonly postcopy?: boolean;
  readonly encrypt?: boolean;
}

interface Ask<T> {
  readonly method?: "GET" | "POST" | "DELETE";
  readonly path: readonly string[];
  readonly body?: unknown;
  readonly reply: z.ZodType<T>;
  /** How long it takes is the home agent's to say: it answers when that is over. */
  readonly long?: true;
}

/**
 * The home agent's HTTP API. Every call rejects with a CareofError: the home agent's own code when it refused, else `home-agent-unreachable`, `timed-out` (both
 * retryable) or `bad-reply`.
 */
export class ApiClient {
  readonly base: URL;
  readonly #limits: ApiLimits;
  readonly #clock: Clock;

  /** `base` may have a path; what is asked for goes below it. */
  constructor(base: URL, limits: Partial<ApiLimits> = {}, clock: Clock = new SystemClock()) {
    this.base = new URL(base.href.endsWith("/") ? base.href : `${base.href}/`);
    this.#limits = { ...API_LIMITS, ...limits };
    this.#clock = clock;
  }

  async vms(): Promise<VmReply[]> {
    return this.#ask({ path: ["vms"], reply: z.array(vmReply) });
  }

  async vm(vm: VmId): Promise<VmReply> {
    return this.#ask({ path: ["vms", vm], reply: vmReply });
  }

  /** Newest first. */
  async history(vm: VmId): Promise<StayReply[]> {
    return this.#ask({ path: ["vms", vm, "history"], reply: z.array(stayReply) });
  }

  async hosts(): Promise<HostReply[]> {
    return this.#ask({ path: ["hosts"], reply: z.array(hostReply) });
  }

  /** Newest first. */
  async migrations(): Promise<MigrationReply[]> {
    return this.#ask({ path: ["migrations"], reply: z.array(migrationReply) });
  }

  async migration(id: string): Promise<MigrationReply> {
    return this.#ask({ path: ["migrations", id], reply: migrationReply });
  }

  /** Resolves when the move has begun. */
  async migrate(vm: VmId, host: HostId, wishes: MoveWishes = {}): Promise<MigrationReply> {
    return this.#ask({ method: "POST", path: ["migrations"], body: { vm, host, ...wishes }, reply: migrationReply });
  }

  async cancel(id: string): Promise<MigrationReply> {
    return this.#ask({ method: "DELETE", path: ["migrations", id], reply: migrationReply });
  }

  async start(vm: VmId, host: HostId): Promise<VmReply> {
    return this.#ask({ method: "POST", path: ["vms", vm, "start"], body: { host }, reply: vmReply, long: true });
  }

  async adopt(vm: VmId, host: HostId): Promise<VmReply> {
    return this.#ask({ method: "POST", path: ["vms", vm, "adopt"], body: { host }, reply: vmReply, long: true });
  }

  async release(vm: VmId): Promise<z.infer<typeof givenBackReply>> {
    return this.#ask({ method: "POST", path: ["vms", vm, "release"], body: {}, reply: givenBackReply, long: true });
  }

  async stop(vm: VmId, force: boolean): Promise<VmReply> {
    return this.#ask({ method: "POST", path: ["vms", vm, "stop"], body: { force }, reply: vmReply, long: true });
  }

  /** A home agent of before there was `force` is not told of it where it is not wanted. */
  async resolve(vm: VmId, host: HostId, force: boolean): Promise<VmReply> {
    return this.#ask({ method: "POST", path: ["vms", vm, "resolve"], body: force ? { host, force } : { host }, reply: vmReply, long: true });
  }

  async drain(host: HostId): Promise<DrainReply> {
    return this.#ask({ path: ["hosts", host, "drain"], reply: drainReply });
  }

  /** What is not said stays as it was. Resolves when it has begun. */
  async beginDrain(host: HostId, wish: MoveWishes & { readonly to: readonly HostId[] | undefined; readonly limit: number | undefined; readonly order: string | undefined }): Promise<DrainReply> {
    return this.#ask({ method: "POST", path: ["hosts", host, "drain"], body: wish, reply: drainReply });
  }

  async interruptDrain(host: HostId, cancel: boolean): Promise<DrainReply> {
    return this.#ask({ method: "POST", path: ["hosts", host, "drain", "interrupt"], body: { cancel }, reply: drainReply });
  }

  async undrain(host: HostId): Promise<HostReply> {
    return this.#ask({ method: "POST", path: ["hosts", host, "undrain"], body: {}, reply: hostReply });
  }

  async reload(): Promise<z.infer<typeof reloadReply>> {
    return this.#ask({ method: "POST", path: ["reload"], body: {}, reply: reloadReply });
  }

  /**
   * What happens from now on; resolves when the stream is open, so that a state asked for afterwards misses nothing. Iterating rejects when the
   * stream breaks off or falls silent, and ends when `signal` aborts. Abort it in any case: that closes the connection.
   */
  async events(signal: AbortSignal): Promise<AsyncIterable<Happening>> {
    const silence = new AbortController();
    const watchdog = this.#watchdog(silence);
    const either = AbortSignal.any([signal, silence.signal]);
    signal.addEventListener("abort", () => { watchdog.stop(); }, { once: true });
    try {
      watchdog.heard();
      const response = await this.#fetch(this.#url(["events"]), { headers: { accept: "text/event-stream" }, signal: either });
      if (!response.ok) throw await this.#refusal(response, "GET events");
      if (response.body === null || !(response.headers.get("content-type") ?? "").startsWith("text/event-stream")) throw this.#nonsense("GET events", "not a stream of events");
      // What fetch itself holds of a signal may be collected as garbage once it has answered, and then nobody hears the abort.
      const reader = response.body.getReader();
      const cancel = (): void => { reader.cancel().catch(() => undefined); };
      for (const each of [signal, silence.signal]) each.addEventListener("abort", cancel, { once: true });
      return this.#happenings(reader, signal, silence.signal, watchdog);
    } catch (thrown) {
      watchdog.stop();
      throw thrown;
    }
  }

  async *#happenings(reader: ReadableStreamDefaultReader<Uint8Array>, signal: AbortSignal, silence: AbortSignal, watchdog: Watchdog): AsyncGenerator<Happening> {
    const decoder = new TextDecoder();
    const parser = new EventParser();
    try {
      for (let read = await reader.read(); !read.done; read = await reader.read()) {
        watchdog.heard();
        for (const each of parser.push(decoder.decode(read.value, { stream: true }))) {
          const found = this.#checked("GET events", each.data, (data) => happening(each.event, data));
          if (found !== null) yield found;
        }
      }
      silence.throwIfAborted();
      if (!signal.aborted) throw new CareofError("home-agent-unreachable", `the home agent at ${this.base.origin} ended the stream of events`, { retryable: true });
    } catch (thrown) {
      if (signal.aborted) return;
      throw thrown instanceof CareofError ? thrown : this.#unreachable(thrown);
    } finally {
      watchdog.stop();
      reader.cancel().catch(() => undefined);
    }
  }

  #watchdog(silence: AbortController): Watchdog {
    let timer = this.#clock.after("silence", this.#limits.silence, () => undefined);
    timer.cancel();
    return {
      heard: () => {
        timer.cancel();
        timer = this.#clock.after("silence", this.#limits.silence, () => {
          silence.abort(new CareofError("timed-out", `the home agent at ${this.base.origin} has been silent for ${String(this.#limits.silence / 1000)} s`, { retryable: true }));
        });
      },
      stop: () => { timer.cancel(); },
    };
  }

  async #ask<T>(ask: Ask<T>): Promise<T> {
    const { method = "GET", body, long = false } = ask;
    const what = `${method} ${ask.path.join("/")}`;
    const patience = new AbortController();
    const { signal } = patience;
    const timers = long ? [this.#until(LONGEST_ANSWER, what, patience), this.#untilSilent(patience)] : [this.#until(this.#limits.answer, what, patience)];
    const words = { method, signal, headers: body === undefined ? {} : JSON_BODY, body: body === undefined ? null : JSON.stringify(body) };
    try {
      const response = await (long ? this.#reach(patientFetch(this.#url(ask.path), words)) : this.#fetch(this.#url(ask.path), words));
      if (!response.ok) throw await this.#refusal(response, what);
      return this.#checked(what, await this.#text(response, what), (value) => ask.reply.parse(value));
    } catch (thrown) {
      throw signal.aborted && signal.reason instanceof CareofError ? signal.reason : thrown;
    } finally {
      for (const timer of timers) timer.cancel();
    }
  }

  #until(limit: Millis, what: string, patience: AbortController): Timer {
    return this.#clock.after("answer", limit, () => {
      patience.abort(new CareofError("timed-out", `the home agent at ${this.base.origin} did not answer ${what} within ${String(limit / 1000)} s`, { retryable: true }));
    });
  }

  #untilSilent(patience: AbortController): Timer {
    return asksForLife(this.#clock, this.#limits.sign, () => this.#signOfLife(), (thrown) => { patience.abort(toCareofError(thrown)); });
  }

  async #signOfLife(): Promise<void> {
    const what = "GET healthz";
    const patience = new AbortController();
    const timer = this.#until(this.#limits.answer, what, patience);
    try {
      await this.#text(await this.#fetch(new URL("healthz", this.base), { signal: patience.signal }), what);
    } finally {
      timer.cancel();
    }
  }

  #url(path: readonly string[]): URL {
    return new URL(["v1", ...path.map(encodeURIComponent)].join("/"), this.base);
  }

  async #fetch(url: URL, options: RequestInit): Promise<Response> {
    return this.#reach(fetch(url, { redirect: "error", ...options }));
  }

  async #reach(response: Promise<Response>): Promise<Response> {
    try {
      return await response;
    } catch (thrown) {
      throw thrown instanceof CareofError ? thrown : this.#unreachable(thrown);
    }
  }

  async #text(response: Response, what: string): Promise<string> {
    const decoder = new TextDecoder();
    let text = "";
    try {
      for await (const piece of piecesOf(response)) {
        text += decoder.decode(piece, { stream: true });
        if (text.length > this.#limits.bodyBytes) throw this.#nonsense(what, `more than ${String(this.#limits.bodyBytes)} bytes`);
      }
    } catch (thrown) {
      throw thrown instanceof CareofError ? thrown : this.#unreachable(thrown);
    }
    return text + decoder.decode();
  }

  async #refusal(response: Response, what: string): Promise<CareofError> {
    const text = await this.#text(response, what);
    const { code, message, retryable } = this.#checked(what, text, (value) => errorReply.parse(value), `status ${String(response.status)}`);
    return new CareofError(code, message, { retryable });
  }

  #checked<T>(what: string, text: string, check: (value: unknown) => T, beside = ""): T {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (cause) {
      throw this.#nonsense(what, `${beside === "" ? "" : `${beside} and `}not JSON`, cause);
    }
    try {
      return check(value);
    } catch (cause) {
      if (!(cause instanceof z.ZodError)) throw cause;
      const issue = cause.issues[0];
      const where = issue?.path.map(String).join(".") ?? "";
      throw this.#nonsense(what, [beside, `${where === "" ? "" : `${where}: `}${issue?.message ?? "unknown"}`].filter((part) => part !== "").join(", "), cause);
    }
  }

  #nonsense(what: string, why: string, cause?: unknown): CareofError {
    return new CareofError("bad-reply", `what ${this.base.origin} answered to ${what} makes no sense here (${why}): is it a home agent, and of this version?`, { cause });
  }

  #unreachable(thrown: unknown): CareofError {
    const error = toCareofError(thrown);
    const inner = thrown instanceof Error && thrown.cause instanceof Error ? thrown.cause : error;
    const why = inner instanceof AggregateError && inner.errors[0] instanceof Error ? inner.errors[0].message : inner.message;
    return new CareofError("home-agent-unreachable", `cannot reach the home agent at ${this.base.origin} (${why}): start it there (systemctl start careof-home-agent), or say where it is with --api URL or CAREOF_API`, { retryable: true, cause: thrown });
  }
}

function piecesOf(response: Response): AsyncIterable<Uint8Array> | Iterable<Uint8Array> {
  return response.body ?? [];
}

interface Watchdog {
  heard(): void;
  stop(): void;
}
