import type { MovePlan } from "./handover/move-plan.js";

/** What a source tells of its copy: bytes, bytes per second, milliseconds. */
export interface Copied {
  readonly passes: number;
  readonly remaining: number;
  readonly bytesPerSecond: number;
  readonly dirtyBytesPerSecond: number;
  readonly expectedDowntimeMs: number | null;
  readonly throttlePercent: number;
  /** Of the guest's own disks; 0 for one without. */
  readonly diskTotal: number;
}

/** The first pass is the whole memory, and the second what was written during that long first one: only then it shows whether it gets less. */
const PASSES_TO_TELL = 3;
/** A guest that dirties more than this share of what is copied leaves about as much behind each pass. */
const KEEPS_UP = 0.6;
/** The longest stop that a hypervisor can be told of: what takes longer only --on-timeout force does. */
const LONGEST_STOP_MS = 2_000_000;

/** Why the copy does not come to an end by itself, and what would help, for people; `null` while there is nothing to say against it. */
export function whyItDoesNotConverge(copied: Copied, plan: MovePlan): string | null {
  const { passes, bytesPerSecond, dirtyBytesPerSecond, expectedDowntimeMs, throttlePercent, diskTotal } = copied;
  if (passes < PASSES_TO_TELL || expectedDowntimeMs === null || expectedDowntimeMs <= plan.downtimeLimitMs) return null;
  if (bytesPerSecond <= 0 || dirtyBytesPerSecond < bytesPerSecond * KEEPS_UP) return null;
  const helps = [
    ...(plan.autoConverge ? [] : ["--auto-converge slows the guest down"]),
    ...(plan.maxBandwidth > 0 ? [`a greater --bandwidth than ${rate(plan.maxBandwidth)} copies faster`] : []),
    ...(expectedDowntimeMs > LONGEST_STOP_MS ? [] : [`--downtime-limit ${String(Math.ceil(expectedDowntimeMs))} lets it stand for so long`]),
    // It moves no disks, and goes over one channel.
    ...(plan.postcopy || plan.channels > 1 || diskTotal > 0 ? [] : ["--postcopy has it go on at the target before all is copied"]),
    ...(plan.onTimeout === "force" ? [] : ["--on-timeout force stops it when the time is over"]),
  ];
  const throttled = plan.autoConverge ? `, although it is denied ${String(throttlePercent)}% of its processor time` : "";
  const advice = helps.length === 0 ? "" : `. What helps: ${helps.join("; ")}`;
  return `it does not converge: the guest writes ${rate(dirtyBytesPerSecond)} and ${rate(bytesPerSecond)} are copied, so that it would have to stand for ${time(expectedDowntimeMs)}, ` +
    `and ${time(plan.downtimeLimitMs)} are allowed${throttled}${advice}`;
}

function rate(bytesPerSecond: number): string {
  return bytesPerSecond < 1e6 ? `${(bytesPerSecond / 1e3).toFixed(0)} kB/s` : `${(bytesPerSecond / 1e6).toFixed(bytesPerSecond < 1e7 ? 1 : 0)} MB/s`;
}

function time(ms: number): string {
  return ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
