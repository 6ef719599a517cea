// Reads what `tap --reporter=tap` says, shows a line per test file and every failure in full, and appends `passed failed skipped` to a file, so that test/run.sh can
// sum all stages.
//
//   tap --reporter=tap FILE... | node test/closing-line.mjs TOTALS
//
// Counted are the assertions, which is what tap itself counts; in addition a failure for what tap's own sums leave out: a file that was killed behind passing
// assertions, a file without any test, a stream that breaks off. Exit 1 when something failed or nothing was executed.
import { appendFileSync } from "node:fs";
import { createInterface } from "node:readline";
import process from "node:process";

const POINT = /^( *)(ok|not ok) \d+(?: - (.*))?$/;
const SUBTEST = /^( *)# Subtest: (.*)$/;
const DIRECTIVE = / # (SKIP|TODO)\b ?(.*)$/i;
const SUM = /^# \{ total: \d+/;

/** Assertions of the stream, with what is to be shown; see the head of the file. */
export class TapReader {
  passed = 0;
  failed = 0;
  skipped = 0;
  #write;
  /** Open subtests, outermost first. */
  #open = [];
  /** A point whose diagnosis is being read. */
  #diagnosis = null;
  #complete = false;
  #file = { passed: 0, failed: 0, skipped: 0, notes: [] };

  constructor(write) {
    this.#write = write;
  }

  line(text) {
    if (this.#diagnosis !== null && this.#diagnose(text)) return;
    const subtest = SUBTEST.exec(text);
    if (subtest !== null) {
      this.#open = this.#open.filter((each) => each.depth < subtest[1].length);
      this.#open.push({ depth: subtest[1].length, name: subtest[2], failed: 0, points: 0 });
      return;
    }
    const point = POINT.exec(text);
    if (point !== null) this.#point(point[1].length, point[2] === "ok", point[3] ?? "");
    else if (SUM.test(text)) this.#complete = true;
    else if (/^Bail out!/.test(text)) this.#count("failed", text);
  }

  /** Ends the stream; what is missing is a failure. */
  end() {
    if (!this.#complete) this.#count("failed", "tap ended without its sum: it crashed or was killed");
    else if (this.passed + this.failed === 0) this.#count("failed", "not one test was executed");
    this.#flush("the run");
  }

  #point(depth, ok, described) {
    const directive = DIRECTIVE.exec(described);
    const name = described.replace(DIRECTIVE, "").replace(/ # time=[0-9.]+m?s$/, "");
    const inner = this.#open.at(-1)?.depth === depth ? this.#open.pop() : undefined;
    const path = [...this.#open.filter((each) => each.depth < depth).map((each) => each.name), name];
    const parent = inner !== undefined && inner.points > 0;
    const before = this.failed;
    if (directive !== null) {
      const reason = directive[2] === "" ? "no reason given" : directive[2];
      if (reason === "no tests found") this.#count("failed", `${path.join(" > ")}: no tests found`);
      else this.#count("skipped", `${path.join(" > ")}: ${directive[1].toUpperCase() === "TODO" ? "to be done: " : ""}${reason}`);
    } else if (!parent) {
      this.#count(ok ? "passed" : "failed", path.join(" > "));
    } else if (!ok && inner.failed === 0) {
      this.#count("failed", path.join(" > "));
    }
    const failedHere = this.failed - before;
    for (const each of this.#open) {
      each.points += 1;
      each.failed += failedHere;
    }
    if (depth === 0) this.#flush(name, /# time=([0-9.]+m?s)/.exec(described)?.[1]);
    this.#diagnosis = ok ? null : { indent: `${" ".repeat(depth)}  `, started: false, shown: failedHere > 0, lines: [], atTop: depth === 0 };
  }

  /** Whether the line belongs to the diagnosis of the point before it. */
  #diagnose(text) {
    const diagnosis = this.#diagnosis;
    if (!diagnosis.started) {
      diagnosis.started = text === `${diagnosis.indent}---`;
      if (!diagnosis.started) this.#diagnosis = null;
      return diagnosis.started;
    }
    if (text !== `${diagnosis.indent}...`) {
      diagnosis.lines.push(`      ${text.slice(diagnosis.indent.length)}`);
      return true;
    }
    if (diagnosis.shown) {
      if (diagnosis.atTop) this.#write(diagnosis.lines.join("\n"));
      else this.#file.notes.push(diagnosis.lines.join("\n"));
    }
    this.#diagnosis = null;
    return true;
  }

  #count(result, what) {
    this[result] += 1;
    this.#file[result] += 1;
    if (result === "failed") this.#file.notes.push(`    failed: ${what}`);
    if (result === "skipped") this.#file.notes.push(`    skipped: ${what}`);
  }

  #flush(name, time) {
    const { passed, failed, skipped, notes } = this.#file;
    this.#file = { passed: 0, failed: 0, skipped: 0, notes: [] };
    if (passed + failed + skipped === 0) return;
    const counts = [`${String(passed)} passed`, ...(failed > 0 ? [`${String(failed)} failed`] : []), ...(skipped > 0 ? [`${String(skipped)} not run`] : [])];
    this.#write(`  ${failed > 0 ? "FAIL" : "ok  "} ${name.replace(/^dist\/test\//, "")} (${counts.join(", ")}${time === undefined ? "" : `, ${shortTime(time)}`})`);
    for (const note of notes) this.#write(note);
  }
}

/** `1530.241ms` and `1.530s` alike as `1.5 s`. */
function shortTime(text) {
  const seconds = text.endsWith("ms") ? parseFloat(text) / 1000 : parseFloat(text);
  return `${seconds.toFixed(1)} s`;
}

const totals = process.argv[2];
if (totals === undefined) {
  process.stderr.write("usage: closing-line.mjs TOTALS < TAP\n");
  process.exitCode = 2;
} else {
  const reader = new TapReader((text) => { process.stdout.write(`${text}\n`); });
  for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) reader.line(line);
  reader.end();
  appendFileSync(totals, `${String(reader.passed)} ${String(reader.failed)} ${String(reader.skipped)}\n`);
  process.exitCode = reader.failed > 0 ? 1 : 0;
}
