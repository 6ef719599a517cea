/** Of `n` measured values; without any all are `null`. */
export interface Spread {
  readonly median: number | null;
  readonly p90: number | null;
  readonly max: number | null;
  readonly n: number;
}

/** Values that are `null` were not measured: they are left out, and `n` says how many were. */
export function spread(values: readonly (number | null)[]): Spread {
  const sorted = values.filter((value) => value !== null).sort((one, other) => one - other);
  return { median: quantile(sorted, 0.5), p90: quantile(sorted, 0.9), max: sorted.at(-1) ?? null, n: sorted.length };
}

/** Linear between the two values around it (Hyndman and Fan's type 7). `sorted` ascends. */
export function quantile(sorted: readonly number[], q: number): number | null {
  if (sorted.length === 0) return null;
  const at = q * (sorted.length - 1);
  const below = sorted[Math.floor(at)] ?? 0;
  const above = sorted[Math.ceil(at)] ?? below;
  return below + (above - below) * (at - Math.floor(at));
}
