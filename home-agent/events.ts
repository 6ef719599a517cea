import type { ApiEvent } from "./api/operations.js";

type Listener = (event: ApiEvent) => void;

/** Hands events to whoever listens. It keeps nothing: a listener bounds what it keeps. */
export class EventBus {
  readonly #listeners = new Set<Listener>();

  publish(event: ApiEvent): void {
    for (const listener of this.#listeners) listener(event);
  }

  /** Returns the way to stop. */
  subscribe(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => { this.#listeners.delete(listener); };
  }
}
