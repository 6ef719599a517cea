import type { Clock, Timer } from "../model/clock.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { NEVER_BOUND, type Epoch, type Millis } from "../model/ids.js";
import { isReason, type Reason } from "../model/reasons.js";
import { decodeFrame, encodeFrame, UnsupportedBody } from "./codec.js";
import type { Body, Frame, Kind } from "./messages.js";

/** Close code of a connection whose peer sent what is no frame, or broke the rules of ids. */
export const CLOSE_MALFORMED = 4002;
/** RFC 6455 §5.5: a close frame's reason has at most 123 bytes. */
const MAX_CLOSE_REASON = 123;
const DEFAULT_OUTSTANDING = 256;

/**
 * What carries the frames. `send` delivers whole messages in order or loses the connection; it may throw once that is lost. `close` may be called more than
 * once, and the rim calls `Channel.end` when the connection is gone, whoever closed it.
 */
export interface Transport {
  send(frame: Uint8Array): void;
  close(code: number, reason: string): void;
}

export type Answer = (body: Body) => void;

export interface ChannelOptions {
  readonly transport: Transport;
  readonly clock: Clock;
  /** `maxOutstanding`: unanswered questions at once, in each direction (default 256). */
  readonly limits?: { readonly maxOutstanding?: number };
  /**
   * Everything that is no answer. A question is answered exactly once, now or later; a second answer throws `answered-twice`. For a body that was only told,
   * and after the connection is gone, answering does nothing. If the handler throws before it answered, the answer is a Decision with the error's reason.
   */
  readonly onRequest: (body: Body, answer: Answer) => void;
  /** What `onRequest` threw. Without this it is thrown on to the caller of `receive`. */
  readonly onError?: (error: CareofError) => void;
}

/** The peer answered by a Decision other than accepted. `code` is the reason, `epoch` the VM's current one. */
export class Refused extends CareofError {
  readonly reason: Reason;
  readonly epoch: Epoch;

  constructor(decision: Body<"decision">) {
    super(decision.reason, decision.detail === "" ? `refused: ${decision.reason}` : decision.detail, { retryable: PASSING.has(decision.reason) });
    this.reason = decision.reason;
    this.epoch = decision.epoch;
  }
}

/** Reasons that may be gone by themselves. */
const PASSING: ReadonlySet<Reason> = new Set<Reason>(["too-many", "no-resources", "store-unavailable", "timed-out", "host-gone", "start-pending", "shutting-down"]);

interface Question {
  readonly timer: Timer;
  readonly answered: (body: Body) => void;
  readonly failed: (error: CareofError) => void;
}

/**
 * Questions and answers over one connection; both sides have one. Pure but for its transport and clock:
 * ```
 *   open ── malformed frame: transport.close(4002) ──▶ ended
 *     └──── end(cause) ─────────────────────────────▶ ended   every question open rejects, retryable
 * ```
 * There is no way back from ended: a new connection has a new Channel. Nothing is received or sent any more then.
 */
export class Channel {
  readonly #options: ChannelOptions;
  readonly #maxOutstanding: number;
  readonly #asked = new Map<number, Question>();
  readonly #toAnswer = new Set<number>();
  #nextId = 1;
  #ended: CareofError | null = null;
  #lateAnswers = 0;

  constructor(options: ChannelOptions) {
    this.#options = options;
    this.#maxOutstanding = options.limits?.maxOutstanding ?? DEFAULT_OUTSTANDING;
  }

  get ended(): boolean {
    return this.#ended !== null;
  }

  /** Answers to questions that had timed out, and to none. They are ignored. */
  get lateAnswers(): number {
    return this.#lateAnswers;
  }

  /** Own questions without an answer so far. */
  get outstanding(): number {
    return this.#asked.size;
  }

  /**
   * Rejects with CareofError: Refused (`code` is the reason) when a Decision other than accepted comes where another kind is expected; `timed-out`; `too-many`
   * of ours outstanding; `unsupported` or `unexpected-answer` by the peer; the cause's code when the connection ends; what `encodeFrame` throws.
   * A Decision that is expected resolves whatever its reason, and so does a kind that has a decision inside.
   */
  ask<K extends Kind>(body: Body, expect: K, timeout: Millis): Promise<Body<K>> {
    return new Promise((resolve, reject) => {
      if (this.#ended !== null) {
        reject(this.#ended);
        return;
      }
      if (this.#asked.size >= this.#maxOutstanding) {
        reject(new CareofError("too-many", `${String(this.#asked.size)} questions are waiting for their answers`, { retryable: true }));
        return;
      }
      const id = this.#nextId++;
      const encoded = encodeFrame({ id, inReplyTo: 0, body });
      const timer = this.#options.clock.after(`answer to ${body.kind}`, timeout, () => {
        this.#asked.delete(id);
        reject(new CareofError("timed-out", `no answer to ${body.kind} within ${String(timeout)} ms`, { retryable: true }));
      });
      const answered = (answer: Body): void => {
        if (isKind(answer, expect)) resolve(answer);
        else if (isKind(answer, "decision") && answer.reason !== "accepted") reject(new Refused(answer));
        else reject(new CareofError("unexpected-answer", `${body.kind} was answered by ${answer.kind} instead of ${expect}`));
      };
      this.#asked.set(id, { timer, answered, failed: reject });
      this.#transmit(encoded);
    });
  }

  /**
   * Sends what wants no answer; false when the connection had ended, and what must arrive is asked instead.
   * @throws what `encodeFrame` throws
   */
  tell(body: Body): boolean {
    return this.#ended === null && this.#transmit(encodeFrame({ id: 0, inReplyTo: 0, body }));
  }

  /** Takes one message of the transport. Throws nothing but what `onRequest` throws when there is no `onError`. */
  receive(message: Uint8Array): void {
    if (this.#ended !== null) return;
    let frame: Frame;
    try {
      frame = decodeFrame(message);
    } catch (thrown) {
      if (thrown instanceof UnsupportedBody) this.#unsupported(thrown);
      else this.#fail(toCareofError(thrown));
      return;
    }
    if (frame.inReplyTo !== 0) this.#receiveAnswer(frame);
    else this.#receiveRequest(frame);
  }

  /** The connection is gone. May be called again, and then does nothing. */
  end(cause: CareofError): void {
    if (this.#ended !== null) return;
    const error = new CareofError(cause.code, cause.message, { retryable: true, cause });
    this.#ended = error;
    this.#toAnswer.clear();
    const questions = [...this.#asked.values()];
    this.#asked.clear();
    for (const question of questions) {
      question.timer.cancel();
      question.failed(error);
    }
  }

  #receiveAnswer(frame: Frame): void {
    if (frame.id !== 0) {
      this.#fail(new CareofError("malformed-frame", `id: an answer (${frame.body.kind}) wants an answer`));
      return;
    }
    this.#take(frame.inReplyTo)?.answered(frame.body);
  }

  #take(id: number): Question | undefined {
    const question = this.#asked.get(id);
    if (question === undefined) this.#lateAnswers++;
    this.#asked.delete(id);
    question?.timer.cancel();
    return question;
  }

  #receiveRequest({ id, body }: Frame): void {
    if (id !== 0) {
      if (this.#toAnswer.has(id)) {
        this.#fail(new CareofError("malformed-frame", `id: ${String(id)} (${body.kind}) is that of a question still open`));
        return;
      }
      if (this.#toAnswer.size >= this.#maxOutstanding) {
        this.#decide(id, "too-many", `${String(this.#toAnswer.size)} questions are being answered`);
        return;
      }
      this.#toAnswer.add(id);
    }
    const question = { open: true };
    const answer = (answerBody: Body): void => {
      if (id === 0 || this.#ended !== null) return;
      if (!question.open) throw new CareofError("answered-twice", `${body.kind} was answered already, now again by ${answerBody.kind}`);
      const encoded = encodeFrame({ id: 0, inReplyTo: id, body: answerBody });
      question.open = false;
      this.#toAnswer.delete(id);
      this.#transmit(encoded);
    };
    try {
      this.#options.onRequest(body, answer);
    } catch (thrown) {
      const error = toCareofError(thrown);
      if (question.open) answer(decision(isReason(error.code) ? error.code : "unspecified", error.message));
      if (this.#options.onError === undefined) throw error;
      this.#options.onError(error);
    }
  }

  #unsupported({ id, inReplyTo, message }: UnsupportedBody): void {
    if (inReplyTo !== 0) this.#take(inReplyTo)?.failed(new CareofError("unsupported", message));
    else if (id !== 0) this.#decide(id, "unsupported", message);
  }

  #decide(id: number, reason: Reason, detail: string): void {
    this.#transmit(encodeFrame({ id: 0, inReplyTo: id, body: decision(reason, detail) }));
  }

  #fail(error: CareofError): void {
    this.#options.transport.close(CLOSE_MALFORMED, closeReason(error.message));
    this.end(error);
  }

  /** False when that ended the channel. */
  #transmit(encoded: Uint8Array): boolean {
    try {
      this.#options.transport.send(encoded);
      return true;
    } catch (cause) {
      this.end(new CareofError("channel-lost", `cannot send: ${toCareofError(cause).message}`, { cause }));
      return false;
    }
  }
}

/** An answer that is no more than a decision. */
export function decision(reason: Reason, detail = "", epoch: Epoch = NEVER_BOUND): Body<"decision"> {
  return { kind: "decision", reason, epoch, detail };
}

function isKind<K extends Kind>(body: Body, kind: K): body is Body & Body<K> {
  return body.kind === kind;
}

/** Cut to what fits, never inside a character. */
function closeReason(text: string): string {
  const encoded = new TextEncoder().encode(text);
  return encoded.length <= MAX_CLOSE_REASON ? text : new TextDecoder().decode(encoded.subarray(0, MAX_CLOSE_REASON), { stream: true });
}
