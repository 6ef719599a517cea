import t from "tap";
import { whyItDoesNotConverge, type Copied } from "../../home-agent/convergence.js";
import { copyLimit, movePlan, type MovePlan } from "../../home-agent/handover/move-plan.js";
import { millis } from "../../model/ids.js";
import { Bench } from "./bench.js";
import { ACCEPTED, CAPABILITIES, Move } from "./scripted-agent.js";
import { RULES } from "./two-hosts.js";

/** How a move shall be made: what is configured, what an operator wants otherwise, and what is told of a copy that does not end. */

const PLAN: MovePlan = movePlan({}, { ...RULES.handover, downtimeLimitMs: millis(20) });
const BUSY: Copied = { passes: 5, remaining: 3e7, bytesPerSecond: 4.1e7, dirtyBytesPerSecond: 4e7, expectedDowntimeMs: 837.2, throttlePercent: 0, diskTotal: 0 };

t.test("a plan is what is configured, and what is wished otherwise", (t) => {
  t.match(movePlan({}, RULES.handover), { maxBandwidth: 0, timeoutMs: 600_000, onTimeout: "abort", channels: 1, autoConverge: false });
  t.match(movePlan({ maxBandwidth: 5, onTimeout: "force", channels: 4 }, RULES.handover), { maxBandwidth: 5, timeoutMs: 600_000, onTimeout: "force", channels: 4 });
  t.equal(copyLimit(PLAN), 600_000);
  t.equal(copyLimit({ ...PLAN, onTimeout: "force" }), 660_000, "and the time for what is left");
  t.end();
});

t.test("why a copy does not converge, and what would help", (t) => {
  const cases: readonly (readonly [string, Partial<Copied>, Partial<MovePlan>, RegExp | null])[] = [
    ["it does", { dirtyBytesPerSecond: 1e6 }, {}, null],
    ["too early to tell", { passes: 2 }, {}, null],
    ["the guest may stand for so long", {}, { downtimeLimitMs: millis(838) }, null],
    ["nothing is known", { expectedDowntimeMs: null }, {}, null],
    ["nothing is copied", { bytesPerSecond: 0 }, {}, null],
    ["it does not", {}, {}, /writes 40 MB\/s and 41 MB\/s are copied, so that it would have to stand for 837 ms, and 20 ms are allowed\. What helps: --auto-converge .*; --downtime-limit 838 .*; --on-timeout force /],
    ["with a limit of the bandwidth", {}, { maxBandwidth: 5e6 }, /a greater --bandwidth than 5\.0 MB\/s/],
    ["throttled already", { throttlePercent: 99 }, { autoConverge: true, onTimeout: "force", postcopy: true }, /denied 99% of its processor time\. What helps: --downtime-limit 838 lets it stand for so long$/],
    ["what can help it", { diskTotal: 0 }, {}, /; --postcopy has it go on/],
    ["with disks that move along there is no postcopy", { diskTotal: 5e9 }, {}, /^(?!.*--postcopy).* --on-timeout force/],
    ["longer than any limit can be", { expectedDowntimeMs: 4e6 }, {}, /^(?!.*--downtime-limit).* stand for 4000\.0 s.*--on-timeout force/],
    ["nothing helps", { expectedDowntimeMs: 4e6, diskTotal: 1 }, { autoConverge: true, onTimeout: "force" }, /of its processor time$/],
  ];
  for (const [name, copied, plan, says] of cases) {
    const why = whyItDoesNotConverge({ ...BUSY, ...copied }, { ...PLAN, ...plan });
    if (says === null) t.equal(why, null, name);
    else t.match(why, says, name);
  }
  t.end();
});

t.test("wishes reach both hosts; a copy that took too long says why", async (t) => {
  const bench = await Bench.open(t, { change: { handover: { channels: 2, forceMs: 5000 } } });
  const { a, b } = await bench.withVm();
  const wishes = { bandwidth: 10_000_000, downtimeLimitMs: 50, autoConverge: true, timeoutMs: 7000, onTimeout: "force", encrypt: false };
  const result = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true, ...wishes });
  const move = new Move(a, b, "web1", 2);
  const parameters = { maxBandwidth: 10_000_000, downtimeLimitMs: 50, autoConverge: true, channels: 2, timeoutMs: 7000, onTimeout: "force", forceMs: 5000, clear: true };
  t.match((await b.until("prepare")).parameters, parameters);
  t.match((await a.until("migrate")).parameters, parameters);
  a.tell({ kind: "progress", migration: move.migration, phase: "copy", transferred: 5, total: 11, ...BUSY, expectedDowntimeMs: millis(900), diskCopied: 0, diskBytesPerSecond: 0 });
  t.equal((await a.ask({ kind: "sourceEnded", migration: move.migration, result: "source-runs", reason: "timed-out", detail: "not completed within 5000 ms after it was forced" }, "decision")).reason, ACCEPTED.reason);
  t.match((await result).body, { result: "failed", reason: "timed-out", detail: /^not completed within 5000 ms after it was forced; it does not converge: the guest writes 40 MB\/s/ });
});

t.test("a forced move says so in words, and another one does not", async (t) => {
  for (const forced of [true, false]) {
    const bench = await Bench.open(t);
    const { a, b } = await bench.withVm();
    const result = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true, timeoutMs: 7000, onTimeout: "force" });
    const move = new Move(a, b, "web1", 2);
    const { migration } = await a.until("migrate");
    a.tell({ kind: "progress", migration, phase: "copy", transferred: 5, total: 11, ...BUSY, expectedDowntimeMs: millis(900), diskCopied: 0, diskBytesPerSecond: 0 });
    await move.released(998, forced);
    await move.running(true);
    t.match((await result).body, { result: "completed", reason: "accepted", detail: forced ? /^forced: not completed within 7000 ms, so that the guest was stopped until the rest was copied \(--on-timeout force\)$/ : null });
  }
});

t.test("postcopy that is only configured holds where it can be", async (t) => {
  const bench = await Bench.open(t, { change: { handover: { postcopy: true } } });
  const { b } = await bench.withVm();
  t.equal((await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", channels: 2 })).status, 202);
  t.match((await b.until("prepare")).parameters, { channels: 2, postcopy: false });
});

t.test("a host whose agent knows no postcopy is no source and no target of such a move; what is only configured is left out", async (t) => {
  const bench = await Bench.open(t, { change: { handover: { postcopy: true } } });
  const { a, b } = await bench.withVm();
  const old = (agent: typeof a): Promise<unknown> => agent.connect({ capabilities: { ...CAPABILITIES, postcopy: false }, software: "careof/0.0.9" });
  const asked = { vm: "web1", host: "host-b", postcopy: true };
  const refused = (host: string): unknown => ({ status: 409, body: { code: "unsupported", message: `the agent of ${host} (careof/0.0.9) cannot move a guest whose memory follows it (postcopy): update it` } });
  await old(b);
  t.match(await bench.call("POST", "/v1/migrations", asked), refused("host-b"));
  await b.connect();
  await old(a);
  t.match(await bench.call("POST", "/v1/migrations", asked), refused("host-a"));
  t.match(await bench.where(), { state: "bound", epoch: 1 }, "nothing was begun");
  t.equal(b.count("prepare"), 0);
  t.equal((await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" })).status, 202);
  t.match((await b.until("prepare")).parameters, { postcopy: false });
});

t.test("wishes that cannot be are refused, and nothing begins", async (t) => {
  const bench = await Bench.open(t);
  await bench.withVm();
  const cases: readonly (readonly [object, string, RegExp])[] = [
    [{ postcopy: "yes" }, "malformed-body", /postcopy/],
    [{ postcopy: true, channels: 2 }, "unsupported", /postcopy goes over one channel/],
    [{ channels: 0 }, "malformed-body", /channels/],
    [{ channels: 17 }, "malformed-body", /channels/],
    [{ bandwidth: -1 }, "malformed-body", /bandwidth/],
    [{ bandwidth: 1.5 }, "malformed-body", /bandwidth/],
    [{ downtimeLimitMs: 0 }, "malformed-body", /downtimeLimitMs/],
    [{ timeoutMs: 3_600_001 }, "malformed-body", /timeoutMs/],
    [{ onTimeout: "hope" }, "malformed-body", /onTimeout/],
  ];
  for (const [wish, code, message] of cases) {
    t.match((await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", ...wish })).body, { code, message }, JSON.stringify(wish));
  }
  t.match((await bench.call("GET", "/v1/vms/web1")).body, { state: "bound", host: "host-a" });
  t.same((await bench.call("GET", "/v1/migrations")).body, []);
});
