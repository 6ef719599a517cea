import t from "tap";
import { METRICS, sample } from "../../bench/dataplane/measure.js";
import { programTimes } from "../../bench/dataplane/program-times.js";
import { ours, plain, vxlan, type Path } from "../../bench/dataplane/variants.js";
import { measureRepoint } from "../../bench/repoint/main.js";
import { leftOver } from "../../deploy/lab/registry.js";

/** The benchmarks of the data plane in a few seconds: that they measure at all, and leave nothing behind. How fast anything is is their own matter (`npm run bench`). */

const TIMES = { warmMs: 20, windowMs: 60 };

for (const [name, open] of [["plain", plain], ["bpf", () => ours("bpf", 20)], ["vxlan", vxlan]] as const) {
  await t.test(`dataplane, ${name}: every kind of traffic arrives`, { timeout: 120_000 }, async (t) => {
    const path: Path = await open();
    try {
      for (const metric of METRICS) t.ok(((await sample(path, metric, TIMES)).rate ?? 0) > 0, metric);
      if (name !== "bpf") return;
      const programs = await programTimes([path.network.path("h"), path.network.path("a")], async () => { await sample(path, "tcpDown", TIMES); });
      for (const program of ["home_egress", "home_ingress", "host_ingress", "port_ingress"]) t.ok(programs.some((each) => each.program === program && each.nsPerRun > 0), `${program} has been timed`);
    } finally {
      await path.close();
      t.same(leftOver(path.network.run), []);
    }
  });
}

t.test("repoint: every way is timed, all bindings are restored, nothing is lost", { timeout: 120_000 }, async (t) => {
  const result = await measureRepoint({ repoints: 500, spawned: 3, bindings: 700, restores: 1, underLoad: 50, pps: 1000 }, () => undefined);
  for (const way of result.ways) t.ok((way.p50Us ?? 0) > 0 && (way.p99Us ?? 0) >= (way.p50Us ?? 0), way.name);
  t.ok(result.restore.emptyMs !== null && result.restore.keptMs !== null);
  t.ok(result.load.sentDown > 50 && result.load.sentUp > 50, "there was traffic", { found: result.load });
  t.match(result.load, { repoints: 50, lostDown: 0, lostUp: 0, duplicated: 0, reordered: 0 });
});
