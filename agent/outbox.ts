import type { Clock } from "../model/clock.js";
import { toCareofError } from "../model/errors.js";
import { millis } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import type { Body } from "../proto/messages.js";

/** Unanswered, or answered by `store-unavailable`: said again after this long while the connection lasts. */
const AGAIN = millis(1000);
const MAX_EVENTS = 4096;

/** What must reach the home agent, once, however often the connection breaks. */
export interface OutboxEvent {
  /** A newer event with the same key replaces an older one that was not answered yet. */
  readonly key: string;
  /** Events of one topic (a migration, a VM) are said in order; topics do not wait for each other. */
  readonly topic: string;
  readonly body: Body;
  /** The home agent's word, which is final. Called again with it when it has thrown (a disk that is full, say): what it does may be done twice. */
  readonly answered: (decision: Body<"decision">) => void;
}

export interface Asker {
  /** Resolves with any decision; rejects (retryable) when there is none. */
  ask(body: Body): Promise<Body<"decision">>;
  readonly registered: boolean;
}

/**
 * Holds events until the home agent has decided on them. `flush` after every registration; it is also tried at once and again every second. An event is
 * dropped by a decision (accepted or not: the home agent has understood it) that has been acted upon, not by a broken connection.
 */
export class Outbox {
  readonly #queues = new Map<string, OutboxEvent[]>();
  readonly #busy = new Set<string>();
  readonly #asker: Asker;
  readonly #clock: Clock;
  readonly #log: Logger;

  constructor(asker: Asker, clock: Clock, log: Logger) {
    this.#asker = asker;
    this.#clock = clock;
    this.#log = log;
  }

  get size(): number {
    return [...this.#queues.values()].reduce((sum, queue) => sum + queue.length, 0);
  }

  put(event: OutboxEvent): void {
    const queue = this.#queues.get(event.topic) ?? [];
    const same = queue.findIndex((other) => other.key === event.key);
    if (same >= 0) queue.splice(same, 1);
    if (this.size >= MAX_EVENTS) {
      // Registration reports all state anew, so what is lost here is only said later.
      this.#log.error({ reason: "too-many", dropped: event.key }, "too many events wait for the home agent");
      return;
    }
    queue.push(event);
    this.#queues.set(event.topic, queue);
    this.#next(event.topic);
  }

  /** Forgets what waits for a topic that is settled otherwise. */
  drop(topic: string): void {
    this.#queues.delete(topic);
  }

  flush(): void {
    for (const topic of [...this.#queues.keys()]) this.#next(topic);
  }

  #next(topic: string): void {
    const event = this.#queues.get(topic)?.[0];
    if (event === undefined || this.#busy.has(topic) || !this.#asker.registered) return;
    this.#busy.add(topic);
    this.#asker.ask(event.body).then(
      (decision) => { this.#decided(event, decision); },
      (thrown: unknown) => { this.#later(event, toCareofError(thrown).code); },
    );
  }

  #decided(event: OutboxEvent, decision: Body<"decision">): void {
    if (decision.reason === "store-unavailable" || decision.reason === "too-many" || decision.reason === "shutting-down") {
      this.#later(event, decision.reason);
      return;
    }
    // A denial of a VM that nobody had thought to be here is not worth a word.
    const level = decision.reason === "not-owner" ? "debug" : "warn";
    if (decision.reason !== "accepted") this.#log[level]({ event: event.key, reason: decision.reason, detail: decision.detail }, "the home agent did not accept an event");
    this.#act(event, decision, 1);
  }

  /** The home agent has decided, so it is not asked again; what follows from it is tried until it is done, and the topic's next events wait for that. */
  #act(event: OutboxEvent, decision: Body<"decision">, tries: number): void {
    try {
      event.answered(decision);
    } catch (thrown) {
      const error = toCareofError(thrown);
      // As long as the disk is full each second has one of these.
      this.#log[tries === 1 ? "error" : "debug"]({ event: event.key, reason: error.code, tries, err: error }, "what the home agent has decided cannot be acted upon: it is tried again");
      this.#clock.after("outbox", AGAIN, () => {
        if (this.#queues.get(event.topic)?.includes(event) === true) this.#act(event, decision, tries + 1);
        else this.#done(event);
      });
      return;
    }
    if (tries > 1) this.#log.info({ event: event.key, tries }, "what the home agent has decided is done");
    this.#done(event);
  }

  #done(event: OutboxEvent): void {
    this.#busy.delete(event.topic);
    const queue = (this.#queues.get(event.topic) ?? []).filter((other) => other !== event);
    if (queue.length === 0) this.#queues.delete(event.topic);
    else this.#queues.set(event.topic, queue);
    this.#next(event.topic);
  }

  #later(event: OutboxEvent, reason: string): void {
    this.#busy.delete(event.topic);
    this.#log.debug({ event: event.key, reason }, "event is said again later");
    this.#clock.after("outbox", AGAIN, () => { this.#next(event.topic); });
  }
}
