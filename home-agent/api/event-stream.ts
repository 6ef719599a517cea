import type { ServerResponse } from "node:http";
import type { Clock, Timer } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { millis } from "../../model/ids.js";
import type { ApiEvent, Operations } from "./operations.js";

/** A comment goes out so often, so that both ends notice a dead connection. */
const COMMENT_MS = millis(10_000);

export interface EventStreamLimits {
  readonly maxClients: number;
  /** A reader that is further behind than so many bytes is cut off: it can come back and ask for the state. */
  readonly maxBuffered: number;
}

/** Server-sent events (WHATWG HTML §9.2) of the home agent. `id` counts from 1 with the process. */
export class EventStream {
  readonly #limits: EventStreamLimits;
  readonly #clients = new Set<ServerResponse>();
  readonly #unsubscribe: () => void;
  readonly #clock: Clock;
  #timer: Timer;
  #id = 0;

  constructor(operations: Operations, clock: Clock, limits: EventStreamLimits) {
    this.#limits = limits;
    this.#clock = clock;
    this.#unsubscribe = operations.subscribe((event) => { this.#publish(event); });
    this.#timer = this.#commentLater();
  }

  get clients(): number {
    return this.#clients.size;
  }

  /** @throws CareofError `too-many` */
  add(response: ServerResponse): void {
    if (this.#clients.size >= this.#limits.maxClients) throw new CareofError("too-many", `${String(this.#clients.size)} readers of events are connected already`, { retryable: true });
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store", connection: "keep-alive" });
    response.write(": careof\n\n");
    this.#clients.add(response);
    response.on("close", () => this.#clients.delete(response));
  }

  close(): void {
    this.#timer.cancel();
    this.#unsubscribe();
    for (const client of this.#clients) client.end();
    this.#clients.clear();
  }

  #publish(event: ApiEvent): void {
    this.#id++;
    this.#write(`id: ${String(this.#id)}\nevent: ${event.event}\ndata: ${JSON.stringify(event.data)}\n\n`);
  }

  #write(text: string): void {
    for (const client of this.#clients) {
      client.write(text);
      if (client.writableLength > this.#limits.maxBuffered) client.destroy();
    }
  }

  #commentLater(): Timer {
    return this.#clock.after("event-stream-comment", COMMENT_MS, () => {
      this.#write(": still here\n\n");
      this.#timer = this.#commentLater();
    });
  }
}
