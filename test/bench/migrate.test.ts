import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { caseResult, type Measured } from "../../bench/migrate/cases.js";
import { PhaseReader } from "../../bench/migrate/phases.js";
import { caseTable } from "../../bench/migrate/table.js";

/** What `npm run bench -- migrate` makes of what it sees. */

const START = Date.parse("2026-01-01T00:00:00.000Z");

t.test("the phases of a move follow from what the parts log, of this move alone", (test) => {
  const directory = mkdtempSync(join(tmpdir(), "careof-phases-"));
  test.teardown(() => { rmSync(directory, { recursive: true, force: true }); });
  const line = (ms: number, fields: object): string => `${JSON.stringify({ level: 30, time: new Date(START + ms).toISOString(), ...fields })}\n`;
  for (const part of ["home-agent", "host-a", "host-b"]) writeFileSync(join(directory, `${part}.log`), line(-900, { msg: "decided", event: "migrate" }));
  const reader = new PhaseReader(directory);
  const say = (part: string, ms: number, fields: object): void => { appendFileSync(join(directory, `${part}.log`), line(ms, fields)); };
  say("home-agent", 300, { msg: "decided", event: "migrate" });
  say("host-b", 420, { msg: "guest process started" });
  say("home-agent", 440, { msg: "answered", ask: "prepare" });
  say("host-a", 450, { msg: "stream", stream: "setup" });
  say("host-a", 455, { msg: "stream", stream: "active" });
  say("host-a", 755, { msg: "source", from: "copying", to: "leading" });
  say("home-agent", 785, { msg: "decided", event: "leadReady" });
  say("host-a", 788, { msg: "source", from: "leading", to: "opened" });
  say("host-a", 790, { msg: "source", from: "opened", to: "stopped" });
  say("host-a", 802, { msg: "source", from: "stopped", to: "releasing" });
  say("host-b", 815, { msg: "target", from: "starting", to: "running" });
  say("home-agent", 830, { msg: "migration completed" });
  test.same(reader.of(START, START + 850), { request: 300, prepare: 140, qemu: 120, begin: 15, copy: 300, drain: 30, lead: 3, stop: 2, state: 12, resume: 13, settle: 15, answer: 20 });
  test.same(reader.of(START, START + 850), {}, "what was read belongs to the move before");
  test.end();
});

t.test("a target that is missed is followed by what takes longer", (test) => {
  const move = (totalMs: number, pauseMs: number, phases: Readonly<Record<string, number>>): Measured => ({ totalMs, pauseMs, bytes: 96e6, phases });
  const bare = [move(200, 8, { prepare: 100, copy: 92, pause: 8 })];
  const missed = caseResult("idle", 1, { careof: [move(530, 25, { prepare: 140, copy: 330, drain: 20, state: 12, resume: 13, settle: 15 })], bare, bareTls: [move(1000, 30, { prepare: 100, copy: 870, pause: 30 })] });
  test.match(missed, { totalRatio: 2.65, pauseLongerMs: 17, totalRatioTls: 0.53, pauseLongerTlsMs: -5 });
  const text = caseTable([missed]);
  test.match(text, "idle, 1 channel: the total is 330 ms longer: copying 258 ms, preparing 40 ms, the pause 17 ms, settling 15 ms.");
  test.match(text, "idle, 1 channel: the pause is 17.0 ms longer: 12 ms until QEMU says completed, 13 ms from there by RELEASE to the guest.");
  const met = caseResult("idle", 1, { careof: bare, bare, bareTls: bare });
  test.notMatch(caseTable([met]), /longer:|\(missed\)/);
  test.end();
});
