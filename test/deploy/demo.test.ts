import t from "tap";
import { lastWords, partDied } from "../../deploy/demo/ending.js";
import { demoOptions } from "../../deploy/demo/options.js";
import { picture } from "../../deploy/demo/picture.js";
import { paperSeries, steadyAgain, type DemoRecord } from "../../deploy/demo/record.js";
import { report } from "../../deploy/demo/report.js";
import { LineScreen, TerminalScreen } from "../../deploy/demo/screen.js";
import { summary } from "../../deploy/demo/summary.js";
import type { TrafficSample } from "../../deploy/lab/traffic.js";

function sample(at: number, bytes: number): TrafficSample {
  return {
    type: "sample", t: at, bulkUp: new Array<number>(10).fill(bytes), bulkDown: new Array<number>(10).fill(bytes), bulkUpBytes: 0, bulkDownBytes: 0,
    sentDown: 10, guestHighest: 10, guestUnique: 10, guestDuplicates: 0, guestReordered: 0, highestUp: 10, uniqueUp: 9, duplicatesUp: 0, reorderedUp: 0,
    counter: 1, rttMs: 1.5, rttMaxMs: 2,
  };
}

/** 3 s at full rate, 200 ms of nothing from 3000 on, full rate again from 3300 on. */
const samples = Array.from({ length: 60 }, (_value, index) => sample(100 * (index + 1), index >= 30 && index < 32 ? 0 : index === 32 ? 10 : 37_500));
const move = {
  vm: "web1", from: "host-a", to: "host-b", result: "completed", pauseMs: null, gapDownMs: 1.5, gapUpMs: 0, serviceGapDownMs: 200, serviceGapUpMs: 190, tcpStallMs: 210.4,
  sentDown: 5000, receivedDown: 4998, sentUp: 5000, receivedUp: 5000, lostDown: 2, lostUp: 0, duplicated: 0, reordered: 1,
} as const;
const record: DemoRecord = {
  result: { qemu: "10.0.2", accel: "tcg", dataPlane: "bpf", moves: [move], tcp: { survived: true, bytes: 1.5e6 } },
  points: [{ a: 2500, b: 3000, c: 3200, d: 3400 }], totals: [{ totalMs: 800, bytes: null }], samples, pps: 1000, bulkMbit: 30, machine: "a <machine> & co", at: "2026-01-01T00:00:00.000Z",
};

t.test("the paper's trace is whole, and as silent as its figure says", (t) => {
  const { kbitPerSecond, silence } = paperSeries();
  t.equal(kbitPerSecond.length, 120);
  const silent = kbitPerSecond.slice(silence.fromSecond, silence.toSecond);
  t.equal(silent.length, 29);
  t.ok(silent.reduce((sum, kbit) => sum + kbit, 0) < 150);
  t.ok((kbitPerSecond[silence.fromSecond - 1] ?? 0) > 1000 && (kbitPerSecond[silence.toSecond] ?? 0) > 1000);
  t.end();
});

t.test("point D is the first 100 ms as fast as before", (t) => {
  t.equal(steadyAgain(samples, 2500, 3200), 3400);
  t.equal(steadyAgain(samples, 2500, 9000), null, "not seen");
  t.equal(steadyAgain([], 2500, 3200), null, "nothing to compare with");
  t.end();
});

t.test("report, plot and table say what was measured, and that something was not", (t) => {
  const page = report(record, paperSeries());
  t.match(page, /not measured/);
  t.match(page, /<h1>The guest moved once between subnets; its TCP sessions went on, at most 210 ms without a byte</);
  t.match(report({ ...record, result: { ...record.result, moves: [move, move] } }, paperSeries()), /moved twice between/);
  t.match(page, /a &#60;machine&#62; &#38; co/, "text is escaped");
  t.notMatch(page, /NaN|undefined|Infinity/);
  t.notMatch(picture(record, paperSeries()), /NaN|undefined|Infinity/);
  const empty = { ...record, points: [{ a: 2500, b: null, c: null, d: null }] };
  t.notMatch(picture(empty, paperSeries()), /NaN|undefined/, "without points");
  t.match(summary(record.result, paperSeries()), /210 ms +29 s\n.*guest halted +not measured/s);
  t.match(summary({ ...record.result, tcp: { survived: false, bytes: 0 } }, paperSeries()), /A SESSION BROKE/);
  t.end();
});

t.test("options", (t) => {
  t.match(demoOptions([]), { json: null, report: "demo-report.html", svg: null, pps: 1000, marginMs: 4000, keep: false });
  t.match(demoOptions(["--quick", "--keep", "--pps", "10000", "--json", "x"]), { json: "x", pps: 10_000, marginMs: 2500, keep: true });
  t.equal(demoOptions(["--help"]), null);
  for (const wrong of [["--pps"], ["--pps", "9"], ["--pps", "1e3"], ["--bulk-mbit", "0"], ["x"], ["--json"]]) t.throws(() => demoOptions(wrong), { code: "usage" }, wrong.join(" "));
  t.end();
});

t.test("a terminal's view is drawn in place and never wraps; a pipe gets lines", (t) => {
  let out = "";
  const screen = new TerminalScreen((text) => { out += text; }, () => 80);
  screen.guestAt("host-a");
  for (let index = 0; index < 100; index++) screen.sample(sample(index * 100, 30_000 + index));
  screen.phase(`copying ${"x".repeat(200)}`);
  screen.say("a line that stays");
  screen.close();
  // Colours and cursor movements take no room.
  const drawn = out.replaceAll(new RegExp(`${String.fromCharCode(27)}\\[[0-9;]*[A-Za-z]`, "g"), "").split("\n");
  t.ok(drawn.length > 300);
  t.strictSame(drawn.filter((line) => line.length >= 80), []);
  let lines = "";
  const plain = new LineScreen((text) => { lines += text; });
  plain.phase("copy 10%");
  plain.phase("copy 20%");
  plain.phase("stop");
  plain.guestAt("host-b");
  t.match(lines.trim().split("\n").length, 3, "once for each kind of phase");
  t.end();
});

t.test("what ended it is the last thing that is said, behind the log that explains it", (t) => {
  const log = '{"level":50,"msg":"one"}\n{"level":50,"msg":"two"}';
  const end = { code: null, signal: "SIGKILL" } as const;
  t.match(lastWords(partDied({ name: "host-b", end, tail: () => log })), /^\{"level":50,"msg":"one"\}\n.*"two"\}\n\ncareof demo: host-b was killed by SIGKILL [^\n]*above[^\n]*\n$/s);
  t.match(lastWords(partDied({ name: "home-agent", end: { code: 1, signal: null }, tail: () => "" })), /^careof demo: home-agent ended with exit code 1 [^\n]*logged nothing[^\n]*\n$/);
  t.equal(lastWords(new Error("no such thing")), "careof demo: no such thing\n");
  t.end();
});
