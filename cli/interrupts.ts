import { toCareofError } from "../model/errors.js";
import { plain, type Terminal } from "./terminal.js";

export interface Interrupts {
  /** Nothing else is begun. */
  readonly stop: () => Promise<unknown>;
  /** What is under way is cancelled. */
  readonly cancel: () => Promise<unknown>;
  /** Nobody watches any more. */
  readonly leave: () => void;
  readonly say: (text: string) => void;
}

/** Ctrl-C with several moves under way: once, twice, three times. Returns the way to stop listening. */
export function onInterrupts(terminal: Terminal, { stop, cancel, leave, say }: Interrupts): () => void {
  let times = 0;
  const attempt = (what: Promise<unknown>): void => {
    what.catch((thrown: unknown) => { say(`the home agent was not reached: ${plain(toCareofError(thrown).message)}`); });
  };
  return terminal.onInterrupt(() => {
    times += 1;
    if (times === 1) {
      say("no other VM begins to move, those that do go on; Ctrl-C again cancels them, a third time stops watching");
      attempt(stop());
    } else if (times === 2) {
      say("cancelling what moves; Ctrl-C again stops watching");
      attempt(cancel());
    } else leave();
  });
}
