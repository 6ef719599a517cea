import type { Clock, Timer } from "../model/clock.js";
import type { Millis } from "../model/ids.js";

/** Calls `ask` each time that `every` has passed since the answer to the last one, and `silent` with what it rejects with, once. Until it is cancelled. */
export function asksForLife(clock: Clock, every: Millis, ask: () => Promise<void>, silent: (thrown: unknown) => void): Timer {
  const name = "sign of life";
  let over = false;
  let next: Timer | null = null;
  const wait = (): void => {
    next = clock.after(name, every, () => {
      ask().then(() => { if (!over) wait(); }, (thrown: unknown) => { if (!over) silent(thrown); });
    });
  };
  wait();
  return {
    name,
    cancel() {
      over = true;
      next?.cancel();
    },
  };
}
