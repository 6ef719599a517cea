import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";

const tally = fileURLToPath(new URL("../../test/tally.sh", import.meta.url));

/** What test/run.sh would say and answer if these were its stages. */
function close(...stages: readonly string[]): { readonly code: number | null; readonly said: string; readonly closing: string } {
  const work = mkdtempSync(join(tmpdir(), "careof-tally-"));
  try {
    const ran = spawnSync("bash", ["-uo", "pipefail", "-c", `work=$1; . "$2"; ${stages.join("; ")}; close`, "tally", work, tally], { encoding: "utf8", timeout: 10_000 });
    t.equal(ran.stderr.replaceAll(/^.*Killed.*\n/gm, ""), "");
    return { code: ran.status, said: ran.stdout, closing: ran.stdout.trimEnd().split("\n").at(-1) ?? "" };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

const says = (line: string, status = 0): string => `counted it sh -c 'echo a line; echo "${line}"; exit ${String(status)}'`;

t.test("the closing line is the sum of what the stages counted, and one more for each that broke", (t) => {
  for (const [what, stages, closing, said] of [
    ["checks alone", ["passed", "passed"], "2 passed, 0 failed, 0 skipped", null],
    ["a part that counts itself", ["passed", says("30 passed, 0 failed")], "31 passed, 0 failed, 0 skipped", /^ {2}a line$/m],
    ["with what it skipped", ["passed", says("30 passed, 0 failed, 2 skipped")], "31 passed, 0 failed, 2 skipped", null],
    ["failures in it", ["passed", says("28 passed, 2 failed", 1)], "29 passed, 2 failed, 0 skipped", null],
    ["failures and the exit code of success", ["passed", says("28 passed, 2 failed")], "29 passed, 2 failed, 0 skipped", /ended with 0, although 2 failed/],
    ["all passed, and it failed behind that", ["passed", says("30 passed, 0 failed", 1)], "31 passed, 1 failed, 0 skipped", /ended with 1, although it counted no failure/],
    ["interrupted", ["passed", says("interrupted: 12 passed, 0 failed", 1)], "13 passed, 1 failed, 0 skipped", /ended with 1, although/],
    ["crashed without a count", ["passed", "counted it sh -c 'echo 3 passed; exit 7'"], "1 passed, 1 failed, 0 skipped", /FAIL it ended with 7 and did not say how many passed/],
    ["killed", ["passed", "counted it sh -c 'kill -9 $$'"], "1 passed, 1 failed, 0 skipped", /ended with 137 and did not say/],
    ["no such program", ["passed", "counted it /no/such/program"], "1 passed, 1 failed, 0 skipped", /ended with 127/],
    ["over its time", ["passed", "counted it timeout 0.2 sleep 5"], "1 passed, 1 failed, 0 skipped", /ended with 124/],
    ["only the last count is one", ["passed", "counted it sh -c 'echo 1 passed, 1 failed; echo 5 passed, 0 failed'"], "6 passed, 0 failed, 0 skipped", null],
    ["it counted nothing", ["passed", says("0 passed, 0 failed")], "1 passed, 1 failed, 0 skipped", /counted nothing/],
    ["the stages after one that broke", ["failed", says("30 passed, 0 failed"), "passed"], "31 passed, 1 failed, 0 skipped", null],
    ["nothing at all", [":"], "0 passed, 1 failed, 0 skipped", null],
  ] as const) {
    const result = close(...stages);
    t.equal(result.closing, closing, what);
    t.equal(result.code, /, 0 failed,/.test(closing) ? 0 : 1, `${what}: exit code`);
    if (said !== null) t.match(result.said, said, what);
  }
  t.end();
});
