import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";

const reader = fileURLToPath(new URL("../../test/closing-line.mjs", import.meta.url));

function lines(...text: string[]): string {
  return `TAP version 14\n${text.join("\n")}\n`;
}

const sum = "# { total: 1 }";

const cases: readonly { readonly name: string; readonly tap: string; readonly totals: string; readonly says?: readonly RegExp[] }[] = [
  { name: "assertions are counted, their parents are not", totals: "2 0 0", says: [/ok {3}a\.test\.js \(2 passed, 1\.5 s\)/],
    tap: lines("# Subtest: dist/test/a.test.js", "    # Subtest: one", "        ok 1 - x", "        ok 2 - y", "        1..2", "    ok 1 - one # time=3ms", "    1..1", "ok 1 - dist/test/a.test.js # time=1530.2ms", sum) },
  { name: "a failure is shown with its path and diagnosis", totals: "0 1 0", says: [/FAIL a\.test\.js/, /failed: dist\/test\/a\.test\.js > one > numbers/, /wanted: 2/],
    tap: lines("# Subtest: dist/test/a.test.js", "    # Subtest: one", "        not ok 1 - numbers", "          ---", "          wanted: 2", "          ok 7 - not a point", "          ...", "    not ok 1 - one", "not ok 1 - dist/test/a.test.js", sum) },
  { name: "a skipped test is counted with its reason", totals: "1 0 1", says: [/skipped: dist\/test\/a\.test\.js > boots: no \/dev\/kvm/],
    tap: lines("# Subtest: dist/test/a.test.js", "    ok 1 - boots # SKIP no /dev/kvm", "    ok 2 - x", "ok 1 - dist/test/a.test.js", sum) },
  { name: "what is still to be done has not passed", totals: "1 0 1", tap: lines("ok 1 - later # TODO some day", "ok 2 - x", sum) },
  { name: "a file killed behind passing assertions has failed", totals: "1 1 0", says: [/signal: SIGKILL/],
    tap: lines("# Subtest: dist/test/a.test.js", "    ok 1 - x", "not ok 1 - dist/test/a.test.js", "  ---", "  signal: SIGKILL", "  ...", sum) },
  { name: "a file without a test has failed", totals: "1 1 0", says: [/no tests found/],
    tap: lines("ok 1 - x", "# Subtest: dist/test/a.test.js", "    1..0 # no tests found", "ok 2 - dist/test/a.test.js # SKIP no tests found", sum) },
  { name: "a stream that breaks off is a failure", totals: "1 1 0", says: [/crashed or was killed/], tap: lines("ok 1 - x") },
  { name: "an empty stream is a failure", totals: "0 1 0", tap: "" },
  { name: "nothing executed is a failure", totals: "0 1 1", says: [/not one test was executed/], tap: lines("ok 1 - x # SKIP why not", sum) },
  { name: "bailing out is a failure", totals: "1 1 0", tap: lines("ok 1 - x", "Bail out! enough", sum) },
  { name: "stray output is nothing", totals: "1 0 0", tap: lines("# Subtest: dist/test/a.test.js", "    okay then", "    stray", "    ok 1 - x", "ok 1 - dist/test/a.test.js", sum) },
];

t.test("what the reader counts", (t) => {
  for (const each of cases) {
    const totals = join(t.testdir({}), "totals");
    const ran = spawnSync(process.execPath, [reader, totals], { input: each.tap, encoding: "utf8" });
    t.equal(readFileSync(totals, "utf8"), `${each.totals}\n`, each.name);
    t.equal(ran.status, each.totals.split(" ")[1] === "0" ? 0 : 1, `${each.name}: exit code`);
    for (const pattern of each.says ?? []) t.match(ran.stdout, pattern, `${each.name}: ${String(pattern)}`);
  }
  t.end();
});

t.test("without a file for the totals it says how to use it", (t) => {
  const ran = spawnSync(process.execPath, [reader], { input: "", encoding: "utf8" });
  t.equal(ran.status, 2);
  t.match(ran.stderr, /usage/);
  t.end();
});
