import t from "tap";
import { repointReport, repointResult } from "../../bench/repoint/outcome.js";
import { way } from "../../bench/repoint/ways.js";

const load = { repoints: 1000, pps: 5000, sentDown: 10_000, lostDown: 0, sentUp: 10_000, lostUp: 0, duplicated: 0, reordered: 0 };
const restored = { bindings: 100_000, n: 3, emptyMs: 700, keptMs: 500 };

t.test("quantiles of the times, whatever their order", (t) => {
  const times = Array.from({ length: 101 }, (_, index) => 101 - index);
  t.same(way("bpf", times), { name: "bpf", n: 101, p50Us: 51, p99Us: 100 });
  t.same(way("bpf", []), { name: "bpf", n: 0, p50Us: null, p99Us: null });
  t.end();
});

t.test("targets: met, missed, and not measured", (t) => {
  const met = (result: ReturnType<typeof repointResult>): (boolean | null)[] => result.targets.map((each) => each.met);
  const good = [way("bpf", [4]), { ...way("ipip", [15]), device: "vxlan external" }];
  t.same(met(repointResult(good, restored, load)), [true, true, true, true, true, true, true]);
  t.same(met(repointResult([way("bpf", [6])], { ...restored, emptyMs: 1001, keptMs: 1001 }, { ...load, lostUp: 1 })), [false, true, null, null, false, false, false]);
  const text = repointReport(repointResult(good, restored, load));
  t.match(text, /ipip over vxlan external \| 15\.0 \| 15\.0 \| 1 \|/);
  t.notMatch(text, /NaN|undefined/);
  t.end();
});
