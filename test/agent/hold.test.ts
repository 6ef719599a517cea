import t from "tap";
import { chmodSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { holdOf, NO_HOLD } from "../../agent/hold.js";
import { millis } from "../../model/ids.js";
import { createLogger } from "../../model/log.js";
import { FakeClock } from "../model/fake-clock.js";

const log = createLogger("test", "silent");

t.test("nothing is held unless the environment names a directory", (t) => {
  for (const unset of [undefined, ""]) t.equal(holdOf(unset, new FakeClock(), log), NO_HOLD);
  let gone = false;
  NO_HOLD.pass("stop", () => { gone = true; });
  t.equal(gone, true);
  t.end();
});

t.test("a point is held while its file is there, the others pass, and no file holds for ever", (t) => {
  const directory = t.testdir();
  chmodSync(directory, 0o700);
  const clock = new FakeClock();
  const hold = holdOf(directory, clock, log);
  const passed: string[] = [];
  writeFileSync(join(directory, "stop"), "");
  hold.pass("stop", () => { passed.push("stop"); });
  hold.pass("grant", () => { passed.push("grant"); });
  clock.advance(millis(1000));
  t.strictSame(passed, ["grant"]);
  rmSync(join(directory, "stop"));
  clock.advance(millis(20));
  t.strictSame(passed, ["grant", "stop"]);

  writeFileSync(join(directory, "lead"), "");
  hold.pass("lead", () => { passed.push("lead"); });
  clock.advance(millis(61_000));
  t.strictSame(passed, ["grant", "stop", "lead"]);
  t.end();
});

t.test("a directory that others may write to, or that is not there, is refused", (t) => {
  const directory = t.testdir();
  chmodSync(directory, 0o777);
  t.throws(() => holdOf(directory, new FakeClock(), log), { code: "config-invalid" });
  t.throws(() => holdOf(join(directory, "none"), new FakeClock(), log), { code: "config-invalid" });
  t.end();
});
