import type { StreamStatus } from "../hypervisor/driver.js";
import type { SourcePhase, SourceState } from "./source-shapes.js";

/*
 * What the phases of the source's machine (source.ts) mean.
 */
/** Whether the guest may execute here in this phase, as far as this host knows. */
export function sourceMayRun(phase: SourcePhase): boolean {
  return !(phase === "releasing" || phase === "serving" || phase === "released" || phase === "reclaiming" || phase === "gone" || phase === "revoked");
}

/** The guest is here, may run, and the migration goes on. */
export function beforeRelease(state: SourceState): boolean {
  const { phase } = state;
  return phase === "starting" || phase === "mirroring" || phase === "copying" || phase === "leading" || phase === "awaiting" || phase === "opened" || phase === "stopped";
}

/** The guest's packets go to the target, or will before it stands. */
export function isDeafSoon(phase: SourcePhase): boolean {
  return phase === "leading" || phase === "awaiting" || phase === "opened";
}

export function ended(state: SourceState): boolean {
  return state.phase === "runs" || state.phase === "gone" || state.phase === "revoked";
}

/** All but memory went to the target first, whether or not that has followed by now. */
export function wentByPostcopy({ postcopy }: Pick<SourceState, "postcopy">): boolean {
  return postcopy === "begun" || postcopy === "over";
}

/** The time for its copy was over and it was stopped for the rest. With postcopy the end of that time means something else (`beginPostcopy`). */
export function wasForced({ forced, plan }: Pick<SourceState, "forced" | "plan">): boolean {
  return forced && !plan.postcopy;
}

/** The hypervisor neither cancels nor continues it any more. */
export function inPostcopy(stream: StreamStatus): boolean {
  return stream === "postcopy-active" || stream === "postcopy-paused";
}
