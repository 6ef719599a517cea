import type { Clock, Timer } from "../../model/clock.js";
import { millis } from "../../model/ids.js";

/** How often a marker is looked for. */
const PERIOD = millis(1);

/** Looks again and again for the marker that a VM waits for, as long as it does. */
export class MarkerWatch {
  readonly #clock: Clock;
  readonly #look: () => void;
  #timer: Timer | null = null;

  /** `look` may call `set`. */
  constructor(clock: Clock, look: () => void) {
    this.#clock = clock;
    this.#look = look;
  }

  /** Idempotent. */
  set(wanted: boolean): void {
    if (!wanted) this.close();
    else this.#timer ??= this.#clock.after("marker", PERIOD, () => {
      this.#timer = null;
      this.set(true);
      this.#look();
    });
  }

  close(): void {
    this.#timer?.cancel();
    this.#timer = null;
  }
}
