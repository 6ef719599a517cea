import type { Millis } from "../../model/ids.js";

/** Two passes are measured at least, so that it is known whether the next one would leave less. */
export const MEASURED_PASSES = 2;
/** "Little is left": this many whole passes over the memory, and so few bytes that the guest can be stopped at any time. What is left is sent between the gate's opening and the stop. */
const LEAD_PASSES = 3;
const LEAD_REMAINING_BYTES = 64 * 1024;
/** After so many passes it is not going to be less. */
const LEAD_PASSES_ENOUGH = 8;
const LEAD_REMAINING_ENOUGH_BYTES = 1024 * 1024;
/** A busy guest leaves more behind each pass; another pass is worth its time while it leaves less than this share of what the last one left. */
const WORTH_ANOTHER_PASS = 0.8;
/** So many further passes of a hypervisor whose stream stands still: what each of them had to send is less than what its sockets hold. */
const STILL_PASSES = 4;
/** Passes beyond this one are not told (agent/hypervisor/qmp.ts): from there the hypervisor's own estimate is asked. */
const TOLD_PASSES = 64;

/** What the hypervisor says of its copy. */
export interface CopyState {
  readonly passes: number;
  readonly remaining: number;
  readonly bytesPerSecond: number;
  readonly expectedDowntimeMs: Millis | null;
}

/**
 * Right behind a pass, with the stream standing still: whether the guest may be stopped now. Only then it is known how much is left: at the end of the next pass nothing is left of
 * this one, and what was written meanwhile is not counted yet. `leftBefore`: bytes that the pass before left.
 */
export function enoughIsCopied({ passes, remaining, bytesPerSecond }: CopyState, leftBefore: number, downtimeLimitMs: Millis): boolean {
  if (passes < LEAD_PASSES) return false;
  if (remaining <= (passes >= LEAD_PASSES_ENOUGH ? LEAD_REMAINING_ENOUGH_BYTES : LEAD_REMAINING_BYTES)) return true;
  if (remaining <= LEAD_REMAINING_ENOUGH_BYTES || bytesPerSecond <= 0) return false;
  return (remaining / bytesPerSecond) * 1000 <= downtimeLimitMs && remaining > leftBefore * WORTH_ANOTHER_PASS;
}

/**
 * The stream stands still, and the hypervisor goes on from pass to pass, `from` being the first one that it began since: it has nothing to send that would keep it. It is not asked then how much is left: what it answers
 * comes late while it looks through the memory again and again, and a guest has been broken by that ("What was measured on QEMU 10").
 */
export function isAtRest(passes: number, from: number | null): boolean {
  return from !== null && passes - from >= STILL_PASSES;
}

/** Right behind a pass: what is left does not fit the limit, and three passes are enough to know it. */
export function doesNotConverge({ passes, remaining, bytesPerSecond }: CopyState, downtimeLimitMs: Millis): boolean {
  return passes >= LEAD_PASSES && remaining > LEAD_REMAINING_ENOUGH_BYTES && (bytesPerSecond <= 0 || (remaining / bytesPerSecond) * 1000 > downtimeLimitMs);
}

/** Where nothing is measured behind a pass: the hypervisor would have stopped the guest behind the third one. */
export function isBeyondThirdPass({ passes }: CopyState): boolean {
  return passes > LEAD_PASSES;
}

/** Likewise between two passes that were not told. */
export function enoughByEstimate({ passes, expectedDowntimeMs }: CopyState, downtimeLimitMs: Millis): boolean {
  return passes >= TOLD_PASSES && expectedDowntimeMs !== null && expectedDowntimeMs <= downtimeLimitMs;
}
