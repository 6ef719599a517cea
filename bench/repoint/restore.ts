import { homes } from "../dataplane/variants.js";
import { quantile } from "../statistics.js";
import { boundAt, type TwoHosts } from "./two-hosts.js";

/** How long it takes until so many bindings stand in the kernel, in ms, median of `n`. */
export interface Restore {
  readonly bindings: number;
  readonly n: number;
  /** The kernel has nothing: a machine that was started. */
  readonly emptyMs: number | null;
  /** The kernel has it all: a process that was started again. Nothing is changed then, but everything looked at. */
  readonly keptMs: number | null;
}

export async function restore(two: TwoHosts, bindings: number, n: number): Promise<Restore> {
  const entries = homes(bindings).map((home, index) => boundAt(home, index % 2 === 0 ? 0 : 1));
  const empty: number[] = [];
  const kept: number[] = [];
  const open = (): ReturnType<TwoHosts["home"]> => two.home(bindings);
  for (let turn = 0; turn < n; turn++) {
    for (const times of [empty, kept]) {
      const begun = performance.now();
      const tunnel = open();
      await two.inHome(() => tunnel.set(entries));
      times.push(performance.now() - begun);
      await two.inHome(() => tunnel.close({ keep: times === empty }));
    }
  }
  return { bindings, n, emptyMs: median(empty), keptMs: median(kept) };
}

function median(times: readonly number[]): number | null {
  const value = quantile([...times].sort((one, other) => one - other), 0.5);
  return value === null ? null : Math.round(value);
}
