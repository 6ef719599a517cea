import { millis, type Millis } from "../model/ids.js";

export interface Backoff {
  readonly firstMs: number;
  readonly maxMs: number;
  readonly factor: number;
}

export const RECONNECT: Backoff = { firstMs: 100, maxMs: 5000, factor: 2 };

/**
 * The pauses between attempts, without end: each drawn evenly from the upper half of an exponentially growing span, so that the hosts that a home agent's
 * restart has cut off do not come back at the same moment.
 */
export function* backoff(schedule: Backoff, random: () => number): Generator<Millis, never> {
  for (let span = schedule.firstMs; ; span = Math.min(span * schedule.factor, schedule.maxMs)) yield millis(span * (0.5 + random() / 2));
}
