import { EAGAIN, ENETDOWN, refused } from "./errno.js";

/** Frames that are taken in one turn: whoever sends without end keeps the process from nothing else. What is left makes the descriptor readable again. */
export const FRAMES_PER_TURN = 64;

/**
 * Calls `receive`, which returns a length or a negative errno, until there is nothing, or as often as `limit` says. True: there may be more.
 * @throws CareofError `kernel-refused`
 */
export function readSome(receive: () => number, each: (length: number) => void, what: string, limit = FRAMES_PER_TURN): boolean {
  for (let times = 0; times < limit; times++) {
    const length = receive();
    if (length === -EAGAIN) return false;
    // The interface went down, and says so once.
    if (length === -ENETDOWN) continue;
    if (length < 0) throw refused(what, -length, "recv");
    each(length);
  }
  return true;
}
