import fc from "fast-check";
import t from "tap";
import { changeState, unbound, type Binding, type Now } from "../../home-agent/bindings/binding.js";
import { DeadlineRing } from "../../home-agent/bindings/deadline-ring.js";
import { bind, bindingDeadline, type BindingEvent, type Rules } from "../../home-agent/bindings/machine.js";
import { durable, restore } from "../../home-agent/handover/durable.js";
import { applyHistory, HISTORY_LIMIT, type HistoryEntry } from "../../home-agent/history.js";
import { epoch, hostId, millis, NEVER_BOUND, vmId } from "../../model/ids.js";
import type { VmReport } from "../../proto/messages.js";
import { FakeClock } from "../model/fake-clock.js";

const [VM, A, B, C] = [vmId("web1"), hostId("a"), hostId("b"), hostId("c")];
const at = (mono: number): Now => ({ mono: millis(mono), wall: millis(1_000_000 + mono) });
const QEMU: Rules = { hosts: [A, B], driver: "qemu", lifetimeMs: millis(1000), graceMs: millis(200) };
const EXTERNAL: Rules = { ...QEMU, driver: "external" };

const never = unbound(VM, NEVER_BOUND);
const bound: Binding = changeState({ ...never }, "bound", { owner: A, epoch: epoch(5), evidence: "registration" }, at(0));
const stale = changeState(bound, "stale", { owner: A, epoch: epoch(5), evidence: "report" }, at(1000));
const expired = changeState(stale, "expired", { owner: A, epoch: epoch(5), evidence: "report" }, at(2000));
const moving = changeState(bound, "moving", { owner: A, epoch: epoch(5), evidence: "migration" }, at(0));
const stopping: Binding = { ...bound, stopping: true };
const starting: Binding = { ...never, epoch: epoch(5), issued: epoch(6), starting: { host: A, epoch: epoch(6), actor: "operator", asked: true } };
const unanswered: Binding = { ...starting, starting: starting.starting === null ? null : { ...starting.starting, asked: false } };

const report = (host: typeof A, state: VmReport["state"], basedOn: number, more: Partial<VmReport> & { readonly listed?: boolean; readonly ownerConnected?: boolean } = {}): BindingEvent =>
  ({ type: "report", host, report: { vm: VM, state, basedOn: epoch(basedOn), locator: null, unreachable: false, evidence: "running", ...more }, careOfListed: more.listed ?? true, ownerConnected: more.ownerConnected ?? true, ownerPassesOn: more.ownerConnected ?? true });
const beat = (via: typeof A | null, ownerConnected = true): BindingEvent => ({ type: "heartbeat", via, ownerConnected, ownerPassesOn: ownerConnected });
const start = (host: typeof A, connected = true): BindingEvent => ({ type: "start", host, actor: "operator", connected });

interface Row {
  readonly what: string;
  readonly before: Binding;
  readonly event: BindingEvent;
  readonly rules?: Rules;
  readonly now?: number;
  readonly reason: string;
  /** Phase, owner, epoch, epochs issued. */
  readonly after: readonly [string, string | null, number, number];
  readonly written: boolean;
  readonly effects?: readonly string[];
}

const KEPT = (binding: Binding): Row["after"] => [binding.phase, binding.owner, binding.epoch, binding.issued];

const TABLE: readonly Row[] = [
  { what: "first registration", before: never, event: report(A, "runs", 0), reason: "accepted", after: ["bound", "a", 1, 1], written: true },
  { what: "a paused guest is there, too", before: never, event: report(A, "paused", 0), reason: "accepted", after: ["bound", "a", 1, 1], written: true },
  { what: "host not listed", before: never, event: report(C, "runs", 0), reason: "not-listed", after: KEPT(never), written: false },
  { what: "foreign care-of", before: never, event: report(A, "runs", 0, { listed: false }), reason: "foreign-care-of", after: KEPT(never), written: false },
  { what: "claim on a future that was never issued", before: never, event: report(A, "runs", 4), reason: "stale-epoch", after: KEPT(never), written: false },
  { what: "owner refreshes", before: bound, event: report(A, "runs", 5), reason: "accepted", after: KEPT(bound), written: false },
  { what: "owner lost its record", before: bound, event: report(A, "runs", 0), reason: "stale-epoch", after: KEPT(bound), written: false },
  { what: "owner back from stale", before: stale, event: report(A, "runs", 5), reason: "accepted", after: ["bound", "a", 5, 5], written: false },
  { what: "owner back from expired", before: expired, event: report(A, "runs", 5), reason: "accepted", after: ["bound", "a", 5, 5], written: true },
  { what: "another claims, owner has it", before: bound, event: report(B, "runs", 5), reason: "both-claim", after: KEPT(bound), written: false, effects: ["alarm"] },
  { what: "another claims, owner is gone", before: bound, event: report(B, "runs", 5, { ownerConnected: false }), reason: "not-owner", after: KEPT(bound), written: false },
  { what: "another claims, expired", before: expired, event: report(B, "runs", 5), reason: "accepted", after: ["bound", "b", 6, 6], written: true },
  { what: "another claims, in a migration", before: moving, event: report(B, "runs", 5), reason: "not-owner", after: KEPT(moving), written: false },
  { what: "source refreshes in a migration", before: moving, event: report(A, "runs", 5), reason: "accepted", after: KEPT(moving), written: false },
  { what: "deregistration", before: bound, event: report(A, "absent", 5, { evidence: "stopped" }), reason: "accepted", after: ["none", null, 5, 5], written: true },
  { what: "late deregistration", before: bound, event: report(A, "absent", 4, { evidence: "stopped" }), reason: "stale-epoch", after: KEPT(bound), written: false },
  { what: "another's deregistration", before: bound, event: report(B, "absent", 5, { evidence: "stopped" }), reason: "not-owner", after: KEPT(bound), written: false },
  { what: "owner does not see it", before: bound, event: report(A, "absent", 5, { evidence: "resync" }), reason: "accepted", after: KEPT(bound), written: false },
  { what: "target waits", before: bound, event: report(B, "incoming", 5), reason: "accepted", after: KEPT(bound), written: false },
  { what: "registration after the end", before: { ...never, epoch: epoch(5), issued: epoch(7) }, event: report(B, "runs", 5), reason: "accepted", after: ["bound", "b", 8, 8], written: true },

  { what: "external: announced elsewhere", before: bound, rules: EXTERNAL, event: report(B, "runs", 5), reason: "accepted", after: ["bound", "b", 6, 6], written: true },
  { what: "external: resynchronised elsewhere", before: bound, rules: EXTERNAL, event: report(B, "runs", 5, { evidence: "resync" }), reason: "both-claim", after: KEPT(bound), written: false, effects: ["alarm"] },
  { what: "external: resynchronised elsewhere, owner gone", before: bound, rules: EXTERNAL, event: report(B, "runs", 5, { evidence: "resync", ownerConnected: false }), reason: "accepted", after: ["bound", "b", 6, 6], written: true },
  { what: "external: announced on an older epoch", before: bound, rules: EXTERNAL, event: report(B, "runs", 4), reason: "stale-epoch", after: KEPT(bound), written: false },

  { what: "heartbeat without a host", before: stale, event: beat(null), reason: "accepted", after: ["bound", "a", 5, 5], written: false },
  { what: "heartbeat without a host, never bound", before: never, event: beat(null), reason: "accepted", after: KEPT(never), written: false },
  { what: "heartbeat by the owner", before: bound, event: beat(A), reason: "accepted", after: KEPT(bound), written: false },
  { what: "heartbeat by another", before: bound, event: beat(B), reason: "not-owner", after: KEPT(bound), written: false },
  { what: "heartbeat by the target", before: moving, event: beat(B), reason: "accepted", after: KEPT(moving), written: false },
  { what: "heartbeat by a stranger", before: bound, event: beat(C), reason: "not-listed", after: KEPT(bound), written: false },
  { what: "external: heartbeat by another, both see it", before: bound, rules: EXTERNAL, event: beat(B), reason: "both-claim", after: KEPT(bound), written: false, effects: ["alarm"] },
  { what: "external: heartbeat by another, owner does not see it", before: { ...bound, ownerSees: false }, rules: EXTERNAL, event: beat(B), reason: "accepted", after: ["bound", "b", 6, 6], written: true },
  { what: "external: first heartbeat", before: never, rules: EXTERNAL, event: beat(B), reason: "accepted", after: ["bound", "b", 1, 1], written: true },

  { what: "not silent long enough", before: bound, event: { type: "deadline" }, now: 999, reason: "accepted", after: KEPT(bound), written: false },
  { what: "silent for a lifetime", before: bound, event: { type: "deadline" }, now: 1000, reason: "accepted", after: ["stale", "a", 5, 5], written: false },
  { what: "silent for two", before: stale, event: { type: "deadline" }, now: 2000, reason: "accepted", after: ["expired", "a", 5, 5], written: true },
  { what: "silent for two at once", before: bound, event: { type: "deadline" }, now: 9000, reason: "accepted", after: ["expired", "a", 5, 5], written: true },
  { what: "moving is never stale", before: moving, event: { type: "deadline" }, now: 9000, reason: "accepted", after: KEPT(moving), written: false },

  { what: "start", before: never, event: start(A), reason: "accepted", after: ["none", null, 0, 1], written: true, effects: ["ask start"] },
  { what: "start on a host that is not listed", before: never, event: start(C), reason: "not-listed", after: KEPT(never), written: false },
  { what: "start on a host that is gone", before: never, event: start(A, false), reason: "host-gone", after: KEPT(never), written: false },
  { what: "start what runs", before: bound, event: start(A), reason: "already-running", after: KEPT(bound), written: false },
  { what: "start what is stale", before: stale, event: start(B), reason: "already-running", after: KEPT(stale), written: false },
  { what: "start what may run elsewhere", before: expired, event: start(B), reason: "already-running", after: KEPT(expired), written: false },
  { what: "start it again where it was", before: expired, event: start(A), reason: "accepted", after: ["expired", "a", 5, 6], written: true, effects: ["ask start"] },
  { what: "start twice", before: starting, event: start(B), reason: "start-pending", after: KEPT(starting), written: false },
  { what: "start an external one", before: never, rules: EXTERNAL, event: start(A), reason: "unsupported", after: KEPT(never), written: false },
  { what: "started", before: starting, event: { type: "started", host: A, epoch: epoch(6) }, reason: "accepted", after: ["bound", "a", 6, 6], written: true, effects: ["started accepted"] },
  { what: "started, but not that one", before: starting, event: { type: "started", host: A, epoch: epoch(5) }, reason: "stale-epoch", after: KEPT(starting), written: false },
  { what: "a report instead of the answer", before: starting, event: report(A, "runs", 6), reason: "accepted", after: ["bound", "a", 6, 6], written: true, effects: ["started accepted"] },
  { what: "refused to start", before: starting, event: { type: "start-failed", host: A, epoch: epoch(6), reason: "start-failed", detail: "", answered: true }, reason: "accepted", after: ["none", null, 5, 6], written: true, effects: ["started start-failed"] },
  { what: "no answer to start", before: starting, event: { type: "start-failed", host: A, epoch: epoch(6), reason: "timed-out", detail: "", answered: false }, reason: "timed-out", after: ["none", null, 5, 6], written: false, effects: ["started timed-out", "alarm"] },
  { what: "an old report while it is being asked", before: starting, event: report(A, "absent", 0), reason: "not-owner", after: KEPT(starting), written: false },
  { what: "the host says later that it never started", before: unanswered, event: report(A, "absent", 0), reason: "accepted", after: ["none", null, 5, 6], written: true, effects: ["started start-failed"] },
  { what: "force ends an unanswered start", before: unanswered, event: { type: "stop", force: true, ownerConnected: false }, reason: "accepted", after: ["none", null, 5, 6], written: true, effects: ["stopped accepted"] },

  { what: "stop", before: bound, event: { type: "stop", force: false, ownerConnected: true }, reason: "accepted", after: KEPT(bound), written: false, effects: ["ask stop"] },
  { what: "stop, owner gone", before: bound, event: { type: "stop", force: false, ownerConnected: false }, reason: "host-gone", after: KEPT(bound), written: false },
  { what: "stop by force, owner gone", before: expired, event: { type: "stop", force: true, ownerConnected: false }, reason: "accepted", after: ["none", null, 5, 5], written: true, effects: ["stopped accepted"] },
  { what: "stop what does not run", before: never, event: { type: "stop", force: false, ownerConnected: false }, reason: "not-running", after: KEPT(never), written: false },
  { what: "stop what moves", before: moving, event: { type: "stop", force: true, ownerConnected: true }, reason: "already-moving", after: KEPT(moving), written: false },
  { what: "stop twice", before: stopping, event: { type: "stop", force: false, ownerConnected: true }, reason: "accepted", after: KEPT(bound), written: false },
  { what: "stop harder", before: stopping, event: { type: "stop", force: true, ownerConnected: true }, reason: "accepted", after: KEPT(bound), written: false, effects: ["ask stop"] },
  { what: "not stopped", before: stopping, event: { type: "stop-failed", reason: "stop-failed", detail: "" }, reason: "stop-failed", after: KEPT(bound), written: false, effects: ["stopped stop-failed"] },
  { what: "gone because it was stopped", before: stopping, event: report(A, "absent", 5, { evidence: "guest-gone" }), reason: "accepted", after: ["none", null, 5, 5], written: true },
  { what: "stopped", before: bound, event: { type: "stopped", host: A, epoch: epoch(5) }, reason: "accepted", after: ["none", null, 5, 5], written: true, effects: ["stopped accepted"] },
  { what: "stopped long ago", before: bound, event: { type: "stopped", host: A, epoch: epoch(4) }, reason: "stale-epoch", after: KEPT(bound), written: false, effects: ["stopped accepted"] },
];

await t.test("the binding machine, row by row", (t) => {
  for (const row of TABLE) {
    const outcome = bind(row.before, row.event, at(row.now ?? 500), row.rules ?? QEMU);
    const effects = outcome.effects.map((effect) => (effect.do === "ask" ? `ask ${effect.what.ask}` : effect.do === "started" || effect.do === "stopped" ? `${effect.do} ${effect.reason}` : effect.do));
    t.same([outcome.reason, KEPT(outcome.state), outcome.commit !== null, effects], [row.reason, row.after, row.written, row.effects ?? []], row.what);
  }
  t.end();
});

await t.test("an external VM that has moved: its old host may send a little longer", (t) => {
  const { state } = bind(bound, report(B, "runs", 5), at(500), EXTERNAL);
  t.same(state.graces, [{ host: A, until: 700 }]);
  t.equal(bindingDeadline(state, EXTERNAL), 700);
  const after = bind(state, { type: "deadline" }, at(700), EXTERNAL).state;
  t.same(after.graces, []);
  t.equal(bindingDeadline(after, EXTERNAL), 1500);
  t.equal(bindingDeadline(never, QEMU), null);
  t.end();
});

await t.test("no step that the diagram does not have", (t) => {
  const to = (binding: Binding, phase: Binding["phase"], owner: typeof A | null, number: number) => (): unknown => changeState(binding, phase, { owner, epoch: epoch(number), evidence: "none" }, at(0));
  t.throws(to(never, "moving", A, 1), { code: "internal", message: /none never becomes moving/ });
  t.throws(to(expired, "stale", A, 5), { code: "internal" });
  t.throws(to(bound, "bound", A, 4), { code: "internal", message: /older/ });
  t.throws(to(bound, "bound", B, 5), { code: "internal", message: /second owner/ });
  t.end();
});

await t.test("what is stored is what comes back", (t) => {
  for (const binding of [never, bound, expired, starting]) {
    const back = restore(VM, JSON.parse(JSON.stringify(durable({ binding, migration: null, givenBack: [] }))), at(9));
    t.same(KEPT(back.binding), KEPT(binding));
    t.same(back.binding.starting, binding.starting === null ? null : { ...binding.starting, asked: false });
  }
  t.equal(restore(VM, durable({ binding: stale, migration: null, givenBack: [] }), at(9)).binding.phase, "bound", "silence is not remembered");
  t.throws(() => restore(VM, { phase: "odd" }, at(9)), { code: "store-corrupt" });
  t.end();
});

await t.test("history: opening closes, old entries go", (t) => {
  let entries: readonly HistoryEntry[] = [];
  for (let i = 1; i <= HISTORY_LIMIT + 5; i++) entries = applyHistory(entries, [{ change: "open", epoch: epoch(i), host: i % 2 === 0 ? A : B, cause: "migration", actor: "operator", at: millis(i) }], (host) => `of ${host}`);
  t.equal(entries.length, HISTORY_LIMIT);
  t.match(entries.at(-1), { epoch: HISTORY_LIMIT + 5, until: null, careOf: "of b" });
  t.match(entries.at(-2), { until: HISTORY_LIMIT + 5 });
  entries = applyHistory(entries, [{ change: "measured", epoch: epoch(HISTORY_LIMIT + 5), pauseMs: millis(3), gapDownMs: null, gapUpMs: millis(0) }, { change: "close", at: millis(999) }], () => null);
  t.match(entries.at(-1), { pauseMs: 3, gapDownMs: null, gapUpMs: 0, until: 999 });
  t.end();
});

await t.test("the deadline ring: never early, at most a slot late, one timer", (t) => {
  fc.assert(fc.property(fc.array(fc.tuple(fc.nat({ max: 20 }), fc.nat({ max: 3000 }), fc.nat({ max: 100 })), { minLength: 1, maxLength: 60 }), (wishes) => {
    const clock = new FakeClock();
    const due = new Map<number, number>();
    const ring = new DeadlineRing<number>(clock, (key) => {
      const wanted = due.get(key);
      if (wanted === undefined) return;
      if (wanted > clock.monotonic()) {
        ring.want(key, millis(wanted));
        return;
      }
      if (clock.monotonic() - wanted > 10) throw new Error(`late by ${String(clock.monotonic() - wanted)}`);
      due.delete(key);
    }, { slotMs: 10, slots: 32 });
    for (const [key, after, pass] of wishes) {
      due.set(key, clock.monotonic() + after);
      ring.want(key, millis(clock.monotonic() + after));
      if (clock.timers().length > 1) throw new Error("more than one timer");
      clock.advance(pass);
    }
    clock.advance(4000);
    if (due.size > 0) throw new Error(`${String(due.size)} were forgotten`);
    if (clock.timers().length > 0) throw new Error("an idle ring has a timer");
    ring.close();
  }));
  t.end();
});
