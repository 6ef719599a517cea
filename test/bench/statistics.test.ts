import t from "tap";
import { estimate, ratios, spread } from "../../bench/statistics.js";

const upTo = (n: number): number[] => Array.from({ length: n }, (_, index) => index + 1);

t.test("an interval of the median: the ranks of the sign test's table", (t) => {
  t.same(estimate([]), { median: null, ci95: null });
  t.equal(estimate(upTo(5)).ci95, null, "five values say too little");
  t.same(estimate(upTo(6)), { median: 3.5, ci95: [1, 6] });
  t.same(estimate(upTo(8)).ci95, [1, 8]);
  t.same(estimate(upTo(9)).ci95, [2, 8]);
  t.same(estimate(upTo(15)), { median: 8, ci95: [4, 12] });
  t.same(estimate(upTo(20)).ci95, [6, 15]);
  t.same(estimate(upTo(50)).ci95, [18, 33]);
  t.same(estimate([...upTo(15)].reverse()).ci95, [4, 12], "whatever their order");
  t.end();
});

t.test("an interval of the median covers it in at least 95 of 100 cases", (t) => {
  let state = 12345;
  const random = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  const cases = 4000;
  let covered = 0;
  for (let i = 0; i < cases; i++) {
    // Skewed, median ln 2.
    const { ci95 } = estimate(Array.from({ length: 15 }, () => -Math.log(1 - random())));
    if (ci95 !== null && ci95[0] <= Math.LN2 && Math.LN2 <= ci95[1]) covered++;
  }
  t.ok(covered / cases > 0.95 && covered / cases < 0.98, String(covered / cases));
  t.end();
});

t.test("ratios are taken within a round, and one that misses a side is missing", (t) => {
  t.same(ratios([1, null, 3, 4], [2, 2, null, 0]), [0.5, null, null, null]);
  t.same(ratios([1, 2], [2]), [0.5, null]);
  t.same(estimate(ratios([2, 4, 8], [1, 4, 4])).median, 2);
  t.end();
});

t.test("what was not measured is left out and not called 0", (t) => {
  t.same(spread([null, 3, 1, null]), { median: 2, p90: 2.8, max: 3, n: 2 });
  t.same(spread([null]), { median: null, p90: null, max: null, n: 0 });
  t.end();
});
