import type { Clock, Timer } from "../model/clock.js";
import { millis, type Millis } from "../model/ids.js";
import { duration } from "./quantities.js";
import { plain, type Terminal } from "./terminal.js";

/** Nobody wonders before. */
const FIRST = millis(2000);
/** Where lines are kept; one that is drawn over counts the seconds. */
const LINE_PERIOD = millis(10_000);
const LIVE_PERIOD = millis(1000);
const CLEAR = "\r\u001b[K";

/** Says on standard error that `what` (`web1 is started on host-a`) is waited for, when its answer takes longer than a moment. Ends as `answer` does. */
export async function waiting<T>({ terminal, clock }: { readonly terminal: Terminal; readonly clock: Clock }, what: string, answer: Promise<T>): Promise<T> {
  const begun = clock.monotonic();
  const live = terminal.errIsLive;
  const state: { timer: Timer | null; drawn: boolean } = { timer: null, drawn: false };
  const later = (time: Millis): void => {
    state.timer = clock.after("waiting", time, () => {
      const line = plain(`${what}: ${duration(clock.monotonic() - begun)} so far; Ctrl-C stops waiting, it goes on`);
      terminal.err(live ? `${CLEAR}${line.slice(0, (terminal.errColumns ?? 80) - 1)}` : `${line}\n`);
      state.drawn = live;
      later(live ? LIVE_PERIOD : LINE_PERIOD);
    });
  };
  later(FIRST);
  try {
    return await answer;
  } finally {
    state.timer?.cancel();
    if (state.drawn) terminal.err(CLEAR);
  }
}
