import { WebSocket } from "ws";
import type { Clock, Timer } from "../model/clock.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { millis, type HostId, type Millis } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import { Channel, type Answer } from "../proto/channel.js";
import { MAX_FRAME_BYTES } from "../proto/codec.js";
import type { Body, Kind } from "../proto/messages.js";
import { backoff, RECONNECT, type Backoff } from "./backoff.js";

const CONNECT_LIMIT = millis(5000);
const REGISTER_LIMIT = millis(10_000);
export const ASK_LIMIT = millis(5000);
/** Missed keep-alives after which the connection counts as dead. */
const MISSED_MAX = 3;
const SUBPROTOCOL = "careof.v1";

export interface SessionOptions {
  readonly url: string;
  readonly host: HostId;
  readonly token: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly random: () => number;
  readonly schedule?: Backoff;
  /** Everything there is to say at registration, gathered anew each time. */
  register(): Promise<Body<"register">>;
  registered(answer: Body<"registered">): void;
  lost(error: CareofError): void;
  request(body: Body, answer: Answer): void;
}

/**
 * The connection to the home agent, made again for ever:
 * ```
 *   waiting ── backoff ──▶ connecting ── open ──▶ registering ── registered ──▶ up
 *      ▲                       │                       │                        │
 *      └───────────────────────┴── refused, error, silence, closed ─────────────┘
 * ```
 * Nothing is said before `registered`, and each registration is a full resynchronisation.
 */
export class Session {
  readonly #options: SessionOptions;
  #pauses: Generator<Millis, never>;
  #socket: WebSocket | null = null;
  #channel: Channel | null = null;
  #up = false;
  #closed = false;
  #timer: Timer | null = null;
  #missed = 0;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#pauses = backoff(options.schedule ?? RECONNECT, options.random);
  }

  get registered(): boolean {
    return this.#up;
  }

  start(): void {
    this.#connect();
  }

  close(): void {
    this.#closed = true;
    this.#timer?.cancel();
    this.#lose(new CareofError("shutting-down", "the host agent ends"));
  }

  async ask<K extends Kind>(body: Body, expect: K, limit: Millis = ASK_LIMIT): Promise<Body<K>> {
    if (this.#channel === null || !this.#up) throw new CareofError("not-connected", "there is no connection to the home agent", { retryable: true });
    return this.#channel.ask(body, expect, limit);
  }

  /** Lost when there is no connection. */
  tell(body: Body): void {
    if (this.#up) this.#channel?.tell(body);
  }

  #connect(): void {
    const { url, host, token, log, clock } = this.#options;
    const socket = new WebSocket(url, SUBPROTOCOL, {
      headers: { authorization: `Bearer ${host}:${token}` }, maxPayload: MAX_FRAME_BYTES, handshakeTimeout: CONNECT_LIMIT, perMessageDeflate: false, followRedirects: false,
    });
    const channel = new Channel({
      clock,
      transport: { send: (bytes) => { socket.send(bytes); }, close: (code, reason) => { socket.close(code, reason); } },
      onRequest: (body, answer) => {
        if (this.#up) this.#options.request(body, answer);
        else throw new CareofError("not-permitted", `${body.kind} before the registration was answered`);
      },
      onError: (error) => { log.error({ reason: error.code, err: error }, "a request of the home agent failed"); },
    });
    this.#socket = socket;
    this.#channel = channel;
    const lose = (error: CareofError): void => {
      channel.end(error);
      if (this.#channel === channel) this.#lose(error);
    };
    socket.on("open", () => {
      this.#register(channel).catch((thrown: unknown) => { lose(toCareofError(thrown)); });
    });
    socket.on("message", (data, binary) => {
      if (binary && Buffer.isBuffer(data)) channel.receive(data);
      else lose(new CareofError("malformed", "the home agent sent what is no frame"));
    });
    socket.on("unexpected-response", (_request, response) => {
      lose(new CareofError(response.statusCode === 401 ? "bad-token" : "not-connected", `the home agent refused the connection: HTTP ${String(response.statusCode)}`));
      response.destroy();
    });
    socket.on("error", (cause) => { lose(new CareofError("not-connected", cause.message, { cause, retryable: true })); });
    socket.on("close", (code, reason) => { lose(new CareofError("not-connected", `connection closed: ${String(code)} ${reason.toString()}`, { retryable: true })); });
  }

  async #register(channel: Channel): Promise<void> {
    const body = await this.#options.register();
    const answer = await channel.ask(body, "registered", REGISTER_LIMIT);
    if (this.#channel !== channel) return;
    if (answer.decision.reason !== "accepted") throw new CareofError(answer.decision.reason, `registration refused: ${answer.decision.detail}`);
    this.#up = true;
    this.#missed = 0;
    this.#pauses = backoff(this.#options.schedule ?? RECONNECT, this.#options.random);
    this.#keepAlive(channel, answer.keepAliveMs);
    this.#options.registered(answer);
  }

  /** Asked anew every period whether or not the last one was answered; three in a row without an answer end the connection. */
  #keepAlive(channel: Channel, period: Millis): void {
    const { clock } = this.#options;
    this.#timer?.cancel();
    this.#timer = clock.after("keep-alive", period, () => {
      if (this.#channel !== channel) return;
      if (this.#missed >= MISSED_MAX) {
        const error = new CareofError("timed-out", `the home agent missed ${String(this.#missed)} keep-alives`, { retryable: true });
        channel.end(error);
        this.#lose(error);
        return;
      }
      this.#missed++;
      channel.ask({ kind: "keepAlive", at: clock.monotonic() }, "keepAlive", millis(period * (MISSED_MAX + 1))).then(
        () => { this.#missed = 0; },
        (thrown: unknown) => { this.#options.log.debug({ reason: toCareofError(thrown).code }, "keep-alive"); },
      );
      this.#keepAlive(channel, period);
    });
  }

  #lose(error: CareofError): void {
    const wasUp = this.#up;
    this.#up = false;
    this.#timer?.cancel();
    const socket = this.#socket;
    const channel = this.#channel;
    this.#socket = null;
    this.#channel = null;
    channel?.end(error);
    if (socket !== null && socket.readyState !== WebSocket.CLOSED) {
      // A close handshake that is not answered ends by itself; a connection that never opened is cut.
      if (this.#closed && socket.readyState === WebSocket.OPEN) socket.close(1001, "shutting-down");
      else socket.terminate();
    }
    if (wasUp) this.#options.lost(error);
    if (this.#closed) return;
    const pause = this.#pauses.next().value;
    this.#options.log[wasUp ? "warn" : "debug"]({ reason: error.code, retryInMs: Math.round(pause), detail: error.message }, "no connection to the home agent");
    this.#timer = this.#options.clock.after("reconnect", pause, () => { this.#connect(); });
  }
}
