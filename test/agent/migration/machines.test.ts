import fc from "fast-check";
import t from "tap";
import { beginSource, recoverSource, stepSource } from "../../../agent/migration/source.js";
import { wasForced, wentByPostcopy } from "../../../agent/migration/source-phases.js";
import type { SourceEvent, SourceStep } from "../../../agent/migration/source-shapes.js";
import { beginTarget, recoverTarget, stepTarget, type TargetEvent, type TargetStep } from "../../../agent/migration/target.js";
import { epoch, millis } from "../../../model/ids.js";
import { leadToken } from "../../../model/lead-token.js";
import { PLAN, World } from "./world.js";

const LEAD = { ...PLAN, lead: true };
const DISKS = { ...PLAN, disks: true };

function source(plan: typeof PLAN, ...events: SourceEvent[]): SourceStep {
  return events.reduce((before, event) => stepSource(before.state, event), beginSource(plan));
}

function target(...events: TargetEvent[]): TargetStep {
  return events.reduce((before, event) => stepTarget(before.state, event), beginTarget(PLAN));
}

const recorded = { kind: "recorded", state: "active" } as const;
const stop: SourceEvent = { kind: "stopped", at: millis(100) };
const completed: SourceEvent = { kind: "stream", status: "completed" };
/** Right behind a pass, as the hypervisor's answer to the measurement says. */
const little = { kind: "progress", passes: 3, remaining: 1000, transferred: 1, bytesPerSecond: 1e8, expectedDowntimeMs: null } as const satisfies SourceEvent;
const pass = (passes: number, at = passes, heardAt = at): SourceEvent => ({ kind: "pass", passes, at: millis(at), heardAt: millis(heardAt) });
const third = pass(3);
/** Passes that the hypervisor begins while nothing is read of it. */
const still = [4, 5, 6, 7, 8].map((passes) => pass(passes));
const ASKED = ["stall", "prefer-switchover", "tell-lead-ready", "watch-marker", "timer"] as const;
/** Two passes of a guest that dirties 30 MB as fast as it can. */
const busy = [...[2, 3].flatMap((passes): SourceEvent[] => [pass(passes), { ...little, passes, remaining: 3e7 }])];
const FORCE = { ...LEAD, onTimeout: "force" } as const;
const POSTCOPY = { ...LEAD, postcopy: true } as const;
const late: SourceEvent = { kind: "timer", name: "copy" };
const copying = [recorded, { kind: "relay-ready" }] as const satisfies readonly SourceEvent[];
const mirroring = [...copying, { kind: "disk-progress", copied: 5 }] as const satisfies readonly SourceEvent[];
const mirrored = [...mirroring, { kind: "disks", what: "ready" }] as const satisfies readonly SourceEvent[];
const halted = [...mirrored, stop, { kind: "stream", status: "pre-switchover" }] as const satisfies readonly SourceEvent[];
const released = [...copying, stop, completed, { kind: "recorded", state: "released" }] as const satisfies readonly SourceEvent[];

/** Its device state is at the target, and RELEASE on disk. */
const begun = [
  ...copying, late, { kind: "marker", at: millis(5) }, stop, { kind: "stream", status: "pre-switchover" }, { kind: "stream", status: "postcopy-active" }, { kind: "recorded", state: "released" },
] as const satisfies readonly SourceEvent[];

void t.test("source: phase, effects and decision by what has happened", (t) => {
  const cases: readonly (readonly [string, typeof PLAN, readonly SourceEvent[], string, readonly string[], string?])[] = [
    ["the disk has it: connect", PLAN, [recorded], "copying", ["connect"]],
    ["the relay is there: copy", PLAN, copying, "copying", ["send"]],
    ["no disk: nothing has begun", PLAN, [{ kind: "record-failed", detail: "" }], "returning", ["stop-timer", "stop-timer", "stop-timer", "cut", "look"]],
    ["little left, no lead wanted", PLAN, [...copying, third, little], "copying", []],
    ["little left: ask for the lead", LEAD, [...copying, third, little], "leading", ASKED],
    ["a pass that may be enough: stand still and measure", LEAD, [...copying, third], "copying", ["stall", "measure"]],
    ["the first pass", LEAD, [...copying, pass(1)], "copying", []],
    ["a pass when no lead is wanted", PLAN, [...copying, third], "copying", []],
    ["an answer from before that pass: ask again", LEAD, [...copying, third, { ...little, passes: 2 }], "copying", ["measure"]],
    ["another pass while it is measured: ask again", LEAD, [...copying, third, pass(4), little], "copying", ["measure"]],
    ["stood still, and much is left: go on", LEAD, [...copying, third, { ...little, remaining: 1e9 }], "copying", ["flow"]],
    ["stands still, and goes from pass to pass: nothing is left", LEAD, [...copying, third, ...still], "leading", ASKED],
    ["not often enough to say so", LEAD, [...copying, third, ...still.slice(0, -1)], "copying", []],
    ["passes begun before it stood still, and heard of late, say nothing", LEAD, [...copying, pass(3, 3, 100), ...still], "copying", []],
    ["nor the ones before the stream was let flow", LEAD, [...copying, third, ...still.slice(0, -1), { ...little, passes: 7, remaining: 1e9 }, pass(8), pass(9)], "copying", []],
    ["little left at the end of a pass says nothing", LEAD, [...copying, little], "copying", []],
    ["little left for the first time", LEAD, [...copying, third, { ...little, remaining: 500_000 }], "copying", ["flow"]],
    ["no less than that after many passes", LEAD, [...copying, pass(8), { ...little, remaining: 500_000, passes: 8 }], "leading", ASKED],
    ["a busy guest, more than may be left", LEAD, [...copying, ...busy], "copying", ["flow"]],
    ["a busy guest, and it gets no better", { ...LEAD, downtimeLimitMs: millis(300) }, [...copying, ...busy], "leading", ASKED],
    ["a busy guest, and it does", { ...LEAD, downtimeLimitMs: millis(300) }, [...copying, ...busy.slice(0, 3), { ...little, remaining: 2e7 }], "copying", ["flow"]],
    ["passes that are not told: the hypervisor's estimate", LEAD, [...copying, { ...little, passes: 64, remaining: 1e9, expectedDowntimeMs: millis(20) }], "leading", ASKED],
    ["and more than may be", LEAD, [...copying, { ...little, passes: 64, expectedDowntimeMs: millis(21) }], "copying", []],
    ["the time is over: force it, at the gate", FORCE, [...copying, ...busy, late], "leading", ["timer", "stall", "force-switchover", "tell-lead-ready", "watch-marker", "timer"]],
    ["force it without a gate", { ...FORCE, lead: false }, [...copying, late], "copying", ["timer", "force-switchover"]],
    ["force what waits for the gate already", FORCE, [...copying, third, little, late], "leading", ["timer", "force-switchover"]],
    ["force nothing that has not begun", FORCE, [recorded, late], "returning", ["stop-timer", "stop-timer", "stop-timer", "cut", "look"]],
    ["even that takes too long: it stays", FORCE, [...copying, late, late], "returning", ["stop-timer", "stop-timer", "stop-timer", "cut", "cancel-send", "look"]],
    ["forced, and cancelled: it stays", FORCE, [...copying, late, { kind: "abort", reason: "cancelled-by-operator" }], "returning", ["stop-timer", "stop-timer", "stop-timer", "cut", "cancel-send", "look"]],
    ["forced and stopped: it goes on", FORCE, [...copying, late, { kind: "marker", at: millis(5) }, stop], "stopped", ["forward", "tell-switch-over", "stop-timer"]],
    ["deaf for too long: stop", LEAD, [...copying, third, little, { kind: "marker", at: millis(5) }, { kind: "timer", name: "hold" }], "opened", ["force-switchover"]],
    ["lead granted: wait for the marker", LEAD, [...copying, third, little, { kind: "lead", token: leadToken(LEAD.epoch) }], "awaiting", ["watch-marker"]],
    ["another token than ours", LEAD, [...copying, third, little, { kind: "lead", token: 7 }], "awaiting", ["watch-marker"]],
    ["the marker overtakes the answer", LEAD, [...copying, third, little, { kind: "marker", at: millis(5) }], "opened", ["halt-guest", "open-gate", "timer"]],
    ["the answer behind the marker", LEAD, [...copying, third, little, { kind: "marker", at: millis(5) }, { kind: "lead", token: leadToken(LEAD.epoch) }], "opened", []],
    ["a lead that nobody asked for", LEAD, [...copying, { kind: "lead", token: 7 }], "copying", [], "not-moving"],
    ["marker: open", LEAD, [...copying, third, little, { kind: "lead", token: 7 }, { kind: "marker", at: millis(5) }], "opened", ["halt-guest", "open-gate", "timer"]],
    ["no answer: open all the same", LEAD, [...copying, third, little, { kind: "timer", name: "hold" }], "opened", ["open-gate", "timer"]],
    ["no marker: open all the same", LEAD, [...copying, third, little, { kind: "lead", token: 7 }, { kind: "timer", name: "hold" }], "opened", ["open-gate", "timer"]],
    ["stop without a lead: forward at once", PLAN, [...copying, stop], "stopped", ["forward", "tell-switch-over"]],
    ["stop before the gate was opened", LEAD, [...copying, third, little, stop], "stopped", ["forward", "tell-switch-over", "stop-timer", "open-gate"]],
    ["pre-switchover goes on", PLAN, [...copying, stop, { kind: "stream", status: "pre-switchover" }], "stopped", ["continue-switchover"]],
    ["completed: RELEASE to the disk first", PLAN, [...copying, stop, completed], "releasing", ["stop-timer", "stop-timer", "record"]],
    ["on disk: RELEASE leaves", PLAN, released, "released", ["send-release", "report-released"]],
    ["relay lost while copying", PLAN, [...copying, { kind: "relay-lost", detail: "" }], "returning", ["stop-timer", "stop-timer", "stop-timer", "cut", "cancel-send", "look"]],
    ["relay lost after RELEASE: nothing", PLAN, [...released, { kind: "relay-lost", detail: "" }], "released", []],
    ["abort while RELEASE is written", PLAN, [...copying, stop, completed, { kind: "abort", reason: "target-gone" }], "releasing", [], "not-permitted"],
    ["abort after RELEASE", PLAN, [...released, { kind: "abort", reason: "target-gone" }], "released", [], "not-permitted"],
    ["RESUME after RELEASE is nobody's", PLAN, [...released, { kind: "resumed" }], "released", []],
    ["resume before RELEASE", PLAN, [...copying, { kind: "resume" }], "copying", [], "not-permitted"],
    ["resume with a proof: the disk first", PLAN, [...released, { kind: "resume" }], "reclaiming", ["record"]],
    ["revoke before RELEASE", PLAN, [...copying, { kind: "revoke" }], "copying", [], "not-permitted"],
    ["revoke", PLAN, [...released, { kind: "revoke" }], "revoked", ["cut", "destroy-guest"]],
    ["revoke twice", PLAN, [...released, { kind: "revoke" }, { kind: "revoke" }], "revoked", []],
    ["the disk refuses RELEASE: the contrary must be on it first", PLAN, [...copying, stop, completed, { kind: "record-failed", detail: "" }], "reclaiming", ["cut", "record"]],
    ["given up, still copying: cancel again", PLAN, [...copying, { kind: "abort", reason: "cancelled-by-operator" }, { kind: "guest", status: "running", stream: "active" }], "returning", ["cancel-send", "timer"]],
    ["given up, stands: resume", PLAN, [...copying, stop, { kind: "abort", reason: "cancelled-by-operator" }, { kind: "guest", status: "handed-over", stream: "completed" }], "returning", ["resume-guest", "timer"]],
    ["given up, runs: end", PLAN, [...copying, { kind: "abort", reason: "cancelled-by-operator" }, { kind: "guest", status: "running", stream: "cancelled" }], "runs", ["deliver", "report-ended"]],
    ["the guest dies while copying", PLAN, [...copying, { kind: "guest", status: "gone", stream: "none" }], "gone", ["cut", "stop-timer", "stop-timer", "stop-timer", "report-ended"]],
    ["a released guest dies", PLAN, [...released, { kind: "guest", status: "gone", stream: "none" }], "released", []],
    ["too long", PLAN, [...copying, { kind: "timer", name: "copy" }], "returning", ["stop-timer", "stop-timer", "stop-timer", "cut", "cancel-send", "look"]],
    ["a late poll is no failure", PLAN, [...copying, { kind: "command-failed", command: "progress", detail: "" }], "copying", []],
    ["disks first: connect", DISKS, [recorded], "mirroring", ["connect"]],
    ["the relay is there: copy the disks, with a limit for standing still", DISKS, copying, "mirroring", ["mirror-disks", "timer"]],
    ["bytes of a disk: it does not stand still", DISKS, mirroring, "mirroring", ["timer"]],
    ["none since: it may", DISKS, [...mirroring, { kind: "disk-progress", copied: 5 }], "mirroring", []],
    ["no byte for long", DISKS, [...mirroring, { kind: "timer", name: "disks" }], "returning", ["stop-timer", "stop-timer", "stop-timer", "stop-timer", "cut", "drop-disks", "look"]],
    ["the disks are the same: the memory, with its limit", DISKS, mirrored, "copying", ["stop-timer", "timer", "send"]],
    ["ready twice", DISKS, [...mirrored, { kind: "disks", what: "ready" }], "copying", []],
    ["a disk fails while the memory is copied", DISKS, [...mirrored, { kind: "disks-failed", detail: "" }], "returning", ["stop-timer", "stop-timer", "stop-timer", "stop-timer", "cut", "cancel-send", "drop-disks", "look"]],
    ["the target's disk cannot be written", DISKS, [...mirroring, { kind: "command-failed", command: "mirror-disks", detail: "" }], "returning", ["stop-timer", "stop-timer", "stop-timer", "stop-timer", "cut", "drop-disks", "look"]],
    ["halted: the disks are handed over before the stream goes on", DISKS, halted, "stopped", ["close-disks", "timer"]],
    ["handed over: go on", DISKS, [...halted, { kind: "disks", what: "closed" }], "stopped", ["stop-timer", "continue-switchover"]],
    ["not handed over in time", DISKS, [...halted, { kind: "timer", name: "disks" }], "returning", ["stop-timer", "stop-timer", "stop-timer", "stop-timer", "cut", "cancel-send", "drop-disks", "look"]],
    ["nothing is left to drop after that", DISKS, [...halted, { kind: "disks", what: "closed" }, { kind: "abort", reason: "cancelled-by-operator" }], "returning", ["stop-timer", "stop-timer", "stop-timer", "stop-timer", "cut", "cancel-send", "look"]],
    ["completed with the disks", DISKS, [...halted, { kind: "disks", what: "closed" }, completed], "releasing", ["stop-timer", "stop-timer", "record"]],
    ["completed without them is no RELEASE", DISKS, [...halted, completed], "returning", ["stop-timer", "stop-timer", "stop-timer", "stop-timer", "cut", "cancel-send", "drop-disks", "look"]],
    ["runs, and the copy of a disk is still there: not yet at an end", DISKS, [...mirrored, { kind: "abort", reason: "cancelled-by-operator" }, { kind: "guest", status: "running", stream: "cancelled" }], "returning", ["drop-disks", "timer"]],
    ["runs, and it is gone", DISKS, [...mirrored, { kind: "abort", reason: "cancelled-by-operator" }, { kind: "disks", what: "dropped" }, { kind: "guest", status: "running", stream: "cancelled" }], "runs", ["deliver", "report-ended"]],
    ["disks of a plan without any", PLAN, [...copying, { kind: "disks", what: "ready" }], "copying", []],
    ["postcopy: what is left behind the third pass is too much", POSTCOPY, [...copying, ...busy], "leading", ["timer", "stall", "tell-lead-ready", "watch-marker", "timer"]],
    ["postcopy: behind the second nobody knows", POSTCOPY, [...copying, ...busy.slice(0, 2)], "copying", ["flow"]],
    ["postcopy: a copy that converges needs none", POSTCOPY, [...copying, third, little], "leading", ASKED],
    ["postcopy: the gate opens for a guest that is stopped", POSTCOPY, [...copying, ...busy, { kind: "marker", at: millis(5) }], "opened", ["start-postcopy", "open-gate", "timer"]],
    ["postcopy: the time is over", POSTCOPY, [...copying, late], "leading", ["timer", "stall", "tell-lead-ready", "watch-marker", "timer"]],
    ["postcopy: even that takes too long, it stays", POSTCOPY, [...copying, late, late], "returning", ["stop-timer", "stop-timer", "stop-timer", "cut", "cancel-send", "look"]],
    ["postcopy without a gate", { ...POSTCOPY, lead: false }, [...copying, { ...little, passes: 4, remaining: 3e7 }], "copying", ["timer", "start-postcopy"]],
    ["postcopy: all but memory is there, RELEASE to the disk first", POSTCOPY, begun.slice(0, -1), "releasing", ["stop-timer", "stop-timer", "record"]],
    ["postcopy: on disk, and the memory is still wanted here", POSTCOPY, begun, "serving", ["send-release", "report-released", "timer"]],
    ["serving is not revoked", POSTCOPY, [...begun, { kind: "revoke" }], "serving", [], "not-permitted"],
    ["serving is not given up", POSTCOPY, [...begun, { kind: "abort", reason: "cancelled-by-operator" }], "serving", [], "not-permitted"],
    ["served", POSTCOPY, [...begun, completed], "released", ["report-released"]],
    ["served, and revoked", POSTCOPY, [...begun, completed, { kind: "revoke" }], "revoked", ["cut", "destroy-guest"]],
    ["served before the disk had RELEASE", POSTCOPY, [...begun.slice(0, -1), completed, { kind: "recorded", state: "released" }], "released", ["send-release", "report-released"]],
    ["serving, and memory is sent", POSTCOPY, [...begun, { kind: "progress", passes: 3, remaining: 4096, bytesPerSecond: 1, transferred: 1, expectedDowntimeMs: null }], "serving", ["timer"]],
    ["serving, and nothing is sent", POSTCOPY, [...begun, { kind: "timer", name: "serve" }], "released", ["cut", "report-released"]],
    ["serving, and the stream breaks", POSTCOPY, [...begun, { kind: "stream", status: "postcopy-paused" }], "released", ["cut", "report-released"]],
    ["serving, and the relay is lost", POSTCOPY, [...begun, { kind: "relay-lost", detail: "" }], "released", ["report-released"]],
    ["serving, and the guest's process ends", POSTCOPY, [...begun, { kind: "guest", status: "gone", stream: "none" }], "released", ["cut", "report-released"]],
    ["given back with a proof: it can never run here again", POSTCOPY, [...begun, { kind: "resume" }, { kind: "recorded", state: "resumed" }, { kind: "guest", status: "halted", stream: "postcopy-paused" }], "gone", ["cut", "stop-timer", "stop-timer", "stop-timer", "end-guest", "report-ended"]],
    ["migrate refused", PLAN, [...copying, { kind: "command-failed", command: "send", detail: "" }], "returning", ["stop-timer", "stop-timer", "stop-timer", "cut", "cancel-send", "look"]],
  ];
  for (const [name, plan, events, phase, effects, decision = "accepted"] of cases) {
    const last = source(plan, ...events);
    t.same({ phase: last.state.phase, effects: last.effects.map(({ kind }) => kind), decision: last.decision }, { phase, effects, decision }, name);
  }
  t.equal(source(LEAD, ...copying, third, little, { kind: "lead", token: 7 }, { kind: "marker", at: millis(5) }, stop).state.hold, "led");
  t.equal(source(LEAD, ...copying, third, little, { kind: "timer", name: "hold" }, stop).state.hold, "hold-expired");
  t.equal(source(LEAD, ...copying, stop).state.hold, "stopped-early");
  t.equal(source(PLAN, ...copying, stop).state.hold, "no-gate");
  t.equal(wasForced(source(FORCE, ...copying, ...busy, late).state), true, "forced");
  t.equal(wasForced(source(FORCE, ...copying, third, little).state), false, "in time");
  t.equal(wasForced(source({ ...FORCE, postcopy: true }, ...copying, stop, late).state), false, "it had stopped by itself: postcopy takes the place of force");
  t.end();
});

void t.test("target: a guest whose memory follows it", (t) => {
  const fetching: TargetEvent[] = [
    { kind: "ready" }, { kind: "relay-up" }, { kind: "stream", status: "postcopy-active" }, { kind: "guest", status: "loaded", at: millis(1) }, { kind: "release", epoch: PLAN.epoch, stopAt: millis(1) },
    { kind: "recorded", state: "continued" }, { kind: "resumed", at: millis(2) },
  ];
  const look: TargetEvent = { kind: "command-failed", command: "look", detail: "qmp-timeout" };
  const lost: TargetEvent = { kind: "relay-lost", detail: "" };
  const cases: readonly (readonly [string, readonly TargetEvent[], string, readonly string[]])[] = [
    ["its state begins to come: look until it is loaded", fetching.slice(0, 3), "waiting", ["look"]],
    ["not yet", [...fetching.slice(0, 3), { kind: "guest", status: "incoming", at: millis(1) }], "waiting", ["timer"]],
    ["loaded, and no RELEASE", fetching.slice(0, 4), "waiting", []],
    ["the stream breaks before RELEASE: never ran", [...fetching.slice(0, 4), lost], "destroying", ["stop-timer", "stop-timer", "stop-timer", "stop-timer", "cut", "destroy-guest"]],
    ["RELEASE: the disk first", fetching.slice(0, 5), "claiming", ["stop-timer", "stop-timer", "record"]],
    ["it runs, and the relay is needed", fetching, "fetching", ["report-running"]],
    ["all has come", [...fetching, { kind: "stream", status: "completed" }], "running", ["stop-timer", "record-arrived", "report-running"]],
    ["all had come before it ran", [...fetching.slice(0, 6), { kind: "stream", status: "completed" }, { kind: "resumed", at: millis(2) }], "running", ["cut", "record-arrived", "report-running"]],
    ["no more can come", [...fetching, { kind: "stream", status: "postcopy-paused" }], "breaking", ["stop-timer", "cut", "destroy-guest"]],
    ["nobody hears of it before it is destroyed", [...fetching, { kind: "stream", status: "postcopy-paused" }, { kind: "destroyed" }], "died", ["report-ended"]],
    ["the relay is lost: look, for the last page may have come", [...fetching, lost], "fetching", ["look"]],
    ["and it had", [...fetching, lost, { kind: "guest", status: "running", at: millis(3) }], "running", ["stop-timer", "record-arrived", "report-running"]],
    ["and it had not", [...fetching, lost, { kind: "guest", status: "stranded", at: millis(3) }], "breaking", ["stop-timer", "cut", "destroy-guest"]],
    ["the hypervisor has not noticed yet", [...fetching, lost, { kind: "guest", status: "fetching", at: millis(3) }], "fetching", ["timer"]],
    ["it does not answer", [...fetching, lost, look, look], "fetching", ["timer"]],
    ["it stands with its guest", [...fetching, lost, look, look, look], "breaking", ["stop-timer", "cut", "destroy-guest"]],
    ["its process ends", [...fetching, { kind: "guest", status: "gone", at: millis(3) }], "died", ["cut", "report-ended", "destroy-guest"]],
    ["too late to give it up", [...fetching, { kind: "abort", reason: "cancelled-by-operator" }], "fetching", ["report-running"]],
  ];
  for (const [name, events, phase, effects] of cases) {
    const last = target(...events);
    t.same({ phase: last.state.phase, effects: last.effects.map(({ kind }) => kind) }, { phase, effects }, name);
  }
  t.equal(target(...fetching, { kind: "stream", status: "postcopy-paused" }).state.reason, "postcopy-broken");
  const again = recoverTarget(PLAN, "continued", true);
  t.equal(stepTarget(again.state, { kind: "guest", status: "running", at: millis(1) }).state.phase, "running", "it had all before the restart");
  t.equal(stepTarget(again.state, { kind: "guest", status: "stranded", at: millis(1) }).state.phase, "breaking");
  t.equal(stepTarget(again.state, { kind: "guest", status: "gone", at: millis(1) }).state.reason, "postcopy-broken", "it did not answer and was ended");
  t.end();
});

void t.test("target: runs only with everything loaded, RELEASE, and readiness, in any order", (t) => {
  const needs: TargetEvent[] = [{ kind: "ready" }, { kind: "stream", status: "completed" }, { kind: "release", epoch: PLAN.epoch, stopAt: millis(1) }];
  for (const order of [[0, 1, 2], [0, 2, 1], [2, 0, 1]]) {
    const events = order.map((index) => needs[index]).filter((event) => event !== undefined);
    t.not(target(...events.slice(0, 2)).state.phase, "claiming", `two of three: ${order.join()}`);
    const last = target(...events);
    t.equal(last.state.phase, "claiming", order.join());
    t.ok(last.effects.some((effect) => effect.kind === "record" && effect.state === "continued"), "the disk first");
    t.notOk(last.effects.some(({ kind }) => kind === "continue-guest"));
    t.same(stepTarget(last.state, { kind: "recorded", state: "continued" }).effects.map(({ kind }) => kind), ["continue-guest"]);
  }
  const waiting: TargetEvent[] = [{ kind: "ready" }, { kind: "relay-up" }];
  const loaded: TargetEvent[] = [...waiting, { kind: "stream", status: "completed" }];
  const cases: readonly (readonly [string, readonly TargetEvent[], string, string?])[] = [
    ["a RELEASE of another epoch", [...loaded, { kind: "release", epoch: epoch(9), stopAt: millis(1) }], "waiting", "stale-epoch"],
    ["RELEASE passed on by the home agent", [...loaded, { kind: "release", epoch: epoch(3), stopAt: null }], "claiming"],
    ["relay lost before the end: look first", [...waiting, { kind: "relay-lost", detail: "" }], "waiting"],
    ["… and it is not loaded", [...waiting, { kind: "relay-lost", detail: "" }, { kind: "guest", status: "incoming", at: millis(1) }], "destroying"],
    ["… and it is loaded", [...waiting, { kind: "relay-lost", detail: "" }, { kind: "guest", status: "loaded", at: millis(1) }], "waiting"],
    ["relay lost when loaded: wait for the word", [...loaded, { kind: "relay-lost", detail: "" }], "waiting"],
    ["nobody connects", [{ kind: "ready" }, { kind: "timer", name: "connect" }], "destroying"],
    ["the stream fails", [...waiting, { kind: "stream", status: "failed" }], "destroying"],
    ["the process dies", [...loaded, { kind: "guest", status: "gone", at: millis(1) }], "destroying"],
    ["abort", [...loaded, { kind: "abort", reason: "source-gone" }], "destroying"],
    ["destroyed: the disk hears it first", [...loaded, { kind: "abort", reason: "source-gone" }, { kind: "destroyed" }], "burying"],
    ["and then everybody", [...loaded, { kind: "abort", reason: "source-gone" }, { kind: "destroyed" }, { kind: "recorded", state: "never-ran" }], "buried"],
    ["RELEASE for a grave", [...loaded, { kind: "abort", reason: "source-gone" }, { kind: "destroyed" }, { kind: "release", epoch: PLAN.epoch, stopAt: millis(1) }], "burying"],
    ["the disk refuses `continued`", [...loaded, { kind: "release", epoch: PLAN.epoch, stopAt: millis(1) }, { kind: "record-failed", detail: "" }], "claiming"],
    ["and has it later", [...loaded, { kind: "release", epoch: PLAN.epoch, stopAt: millis(1) }, { kind: "record-failed", detail: "" }, { kind: "timer", name: "claim" }, { kind: "recorded", state: "continued" }], "starting"],
    ["the guest dies while the disk refuses", [...loaded, { kind: "release", epoch: PLAN.epoch, stopAt: millis(1) }, { kind: "record-failed", detail: "" }, { kind: "guest", status: "gone", at: millis(3) }], "destroying"],
    ["abort after the claim", [...loaded, { kind: "release", epoch: PLAN.epoch, stopAt: millis(1) }, { kind: "abort", reason: "source-gone" }], "claiming", "not-permitted"],
    ["preparation fails", [{ kind: "failed", reason: "prepare-failed", detail: "" }], "destroying"],
  ];
  for (const [name, events, phase, decision = "accepted"] of cases) {
    const last = target(...events);
    t.same({ phase: last.state.phase, decision: last.decision }, { phase, decision }, name);
  }
  t.end();
});

void t.test("RELEASE by both ways: the relay's word of when the guest stopped is kept, whichever comes first", (t) => {
  const byHomeAgent: TargetEvent = { kind: "release", epoch: PLAN.epoch, stopAt: null };
  const byRelay: TargetEvent = { kind: "release", epoch: PLAN.epoch, stopAt: millis(7) };
  const loaded: TargetEvent[] = [{ kind: "ready" }, { kind: "relay-up" }, { kind: "stream", status: "completed" }];
  for (const order of [[byHomeAgent, byRelay], [byRelay, byHomeAgent]]) {
    const last = target(...loaded, ...order);
    t.equal(last.state.stopAt, 7);
    t.equal(last.state.phase, "claiming");
    t.same(last.effects, [], "and it claims once");
  }
  t.end();
});

void t.test("after a restart the records decide", (t) => {
  const stamps = { stopAt: millis(1), markerAt: null, bytes: 5 };
  t.same(recoverSource(PLAN, "active", stamps).effects.map(({ kind }) => kind), ["cancel-send", "look"]);
  t.same(recoverSource(PLAN, "released", stamps).effects.map(({ kind }) => kind), ["report-released"]);
  t.equal(recoverSource(PLAN, "released", stamps).state.phase, "released");
  const went = recoverSource(PLAN, "released", stamps, true);
  t.same([went.state.phase, wentByPostcopy(went.state), went.effects.map(({ kind }) => kind)], ["released", true, ["report-released"]], "by postcopy, and says so again");
  t.equal(stepSource(went.state, { kind: "revoke" }).decision, "accepted", "none of its memory can follow it any more");
  t.same(recoverTarget(PLAN, "prepared").effects.map(({ kind }) => kind), ["destroy-guest"]);
  t.same(recoverTarget(PLAN, "continued").effects.map(({ kind }) => kind), ["look"]);
  t.same(recoverTarget(PLAN, "never-ran").effects.map(({ kind }) => kind), ["report-ended"]);
  t.end();
});

void t.test("undisturbed, the guest ends at the target", (t) => {
  const world = new World();
  world.settle();
  t.equal(world.targetGuest, "running");
  t.equal(world.source?.phase, "revoked");
  t.end();
});

/** What is at the end of all runs of the plan, with every message and fault in any order. */
function anything(plan: typeof PLAN, numRuns: number, judge: (world: World, end: string) => void): Map<string, number> {
  const ends = new Map<string, number>();
  fc.assert(fc.property(fc.array(fc.record({ pick: fc.nat(50), fault: fc.oneof({ weight: 12, arbitrary: fc.constant(null) }, { weight: 1, arbitrary: fc.nat(8) }) }), { minLength: 5, maxLength: 60 }), (script) => {
    const world = new World(plan);
    for (const { pick, fault } of script) {
      const faults = world.faults();
      const choices = world.choices();
      const next = fault === null ? choices[pick % Math.max(1, choices.length)] : faults[fault];
      if (next !== undefined) world.act(next);
    }
    world.settle();
    const end = `${String(world.source?.phase)}/${String(world.target?.phase)}`;
    ends.set(end, (ends.get(end) ?? 0) + 1);
    judge(world, end);
  }), { numRuns });
  return ends;
}

void t.test("whatever is cut, killed or crashed: never two, and one unless a guest died", (t) => {
  const ends = anything(PLAN, 4000, (world, end) => {
    if (!world.killed && world.running !== 1) throw new Error(`${String(world.running)} run at the end, in ${end}: ${world.log.join(", ")}`);
  });
  t.ok((ends.get("revoked/running") ?? 0) > 0, "some succeeded");
  t.ok([...ends.keys()].some((end) => end.startsWith("runs/")), "some came back");
  t.comment(JSON.stringify([...ends]));
  t.end();
});

void t.test("the same with postcopy: never two; none only where a guest died, or went and could not get all of its memory", (t) => {
  let broken = 0;
  let fetched = 0;
  const ends = anything({ ...PLAN, postcopy: true }, 4000, (world, end) => {
    if (world.stream === "completed" && world.postcopy && world.running === 1) fetched++;
    if (world.killed || world.running === 1) return;
    if (!world.postcopy || world.running !== 0) throw new Error(`${String(world.running)} run at the end, in ${end}: ${world.log.join(", ")}`);
    broken++;
    if (world.sourceGuest === "running") throw new Error(`it runs at its source: ${world.log.join(", ")}`);
  });
  t.ok(broken > 0, "some were lost on the way");
  t.ok(fetched > 0, "some arrived");
  t.ok([...ends.keys()].some((end) => end.startsWith("runs/")), "some came back before they went");
  t.ok((ends.get("revoked/died") ?? 0) > 0, "what was broken is settled on both sides");
  t.comment(JSON.stringify([...ends]));
  t.end();
});
