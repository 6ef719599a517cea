/** Of `n` measured values; without any all are `null`. */
export interface Spread {
  readonly median: number | null;
  readonly p90: number | null;
  readonly max: number | null;
  readonly n: number;
}

/** Values that are `null` were not measured: they are left out, and `n` says how many were. */
export function spread(values: readonly (number | null)[]): Spread {
  const sorted = measured(values);
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

/** Lower and upper end. */
export type Interval = readonly [number, number];

/** A median, and between what it lies with a confidence of at least 95 %; `null` where fewer than six values say too little for that. */
export interface Estimate {
  readonly median: number | null;
  readonly ci95: Interval | null;
}

/**
 * The interval is that of the sign test: as many values lie below the true median as a fair coin shows heads, whatever their distribution. Its ends are values that were
 * measured, so its confidence is at least 95 %, not exactly that.
 */
export function estimate(values: readonly (number | null)[]): Estimate {
  const sorted = measured(values);
  const n = sorted.length;
  // The chance that at most `outside - 1` of n values lie on one side of the median; both sides together must stay below 5 %.
  let chance = 2 ** -n;
  let term = chance;
  let outside = 0;
  while (chance <= 0.025 && outside < n) {
    outside++;
    term *= (n - outside + 1) / outside;
    chance += term;
  }
  const low = sorted[outside - 1];
  const high = sorted[n - outside];
  return { median: quantile(sorted, 0.5), ci95: low === undefined || high === undefined ? null : [low, high] };
}

/** Ratio by ratio of values that were measured in the same round; `null` where one of the two was not. */
export function ratios(values: readonly (number | null)[], to: readonly (number | null)[]): (number | null)[] {
  return values.map((value, round) => {
    const base = to[round] ?? null;
    return value === null || base === null || base === 0 ? null : value / base;
  });
}

function measured(values: readonly (number | null)[]): number[] {
  return values.filter((value) => value !== null).sort((one, other) => one - other);
}
