import { setTimeout as sleep } from "node:timers/promises";
import type { Traffic, TrafficWindow } from "./traffic.js";

/** So many moves, each with numbered packets counted around it. */
export interface CountedSeries {
  readonly moves: number;
  /** Traffic that is counted before and after each move. */
  readonly marginMs: number;
  /** For what was sent last to arrive. */
  readonly arrivalMs: number;
  /** The time between two moves belongs to both their windows, which saves it once: what is lost there is counted twice. */
  readonly shared?: boolean;
}

export interface CountedMove<T> {
  readonly move: T;
  readonly window: TrafficWindow;
}

/** Moves one after the other; `say` hears of each when its window is closed. */
export async function countedMoves<T>(traffic: Traffic, series: CountedSeries, move: (index: number) => Promise<T>, say: (one: CountedMove<T>) => void): Promise<readonly CountedMove<T>[]> {
  const { arrivalMs, marginMs, moves, shared = false } = series;
  const counted: CountedMove<T>[] = [];
  const done: T[] = [];
  const open = (index: number): Promise<unknown> => traffic.mark(`before${String(index)}`);
  const close = async (): Promise<void> => {
    for (const result of done.splice(0)) {
      const index = String(counted.length);
      const one = { move: result, window: await traffic.window(`before${index}`, `after${index}`) };
      counted.push(one);
      say(one);
    }
  };
  for (let index = 0; index < moves; index++) {
    if (index === 0 || !shared) {
      await open(index);
      await sleep(marginMs);
    }
    const result = await move(index);
    await close();
    const last = index === moves - 1;
    if (shared && !last) await open(index + 1);
    await sleep(marginMs);
    await traffic.mark(`after${String(index)}`);
    done.push(result);
    if (!shared || last) {
      await sleep(arrivalMs);
      await close();
    }
  }
  return counted;
}
