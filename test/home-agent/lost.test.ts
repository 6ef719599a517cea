import t from "tap";
import type { Now } from "../../home-agent/bindings/binding.js";
import { coordinate } from "../../home-agent/handover/coordinator.js";
import type { VmEvent } from "../../home-agent/handover/migration.js";
import { applyHistory, type HistoryEntry } from "../../home-agent/history.js";
import { epoch, millis } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import { LIFE, MOVE, NOW, Script } from "./script.js";
import { A, B, RULES, VM } from "./two-hosts.js";

await t.test("lost, and a person decides for a source that has no guest any more: it is nobody's, and can be started", (t) => {
  const later: Now = { mono: millis(1_000_000), wall: NOW.wall };
  const gone = (script: Script, reason: Reason = "source-gone"): string => script.go({ type: "said", host: A, body: { kind: "sourceEnded", migration: MOVE, result: "source-gone", reason, detail: "" } }, { restart: true });
  const lost = (): Script => {
    const script = new Script();
    script.go({ type: "migrate", host: B, actor: "operator", sourceConnected: true, targetConnected: true, targetLife: LIFE, sourceCanLead: false });
    script.go({ type: "prepared", migration: MOVE, relayAddress: "10.2.0.2", relayPort: 1, canLead: false });
    script.released();
    script.go({ type: "deadline" }, { restart: true, now: later });
    t.same(script.where, ["lost", B, 2]);
    return script;
  };
  const resolved = (): Script => {
    const script = lost();
    script.go({ type: "resolve", host: A, actor: "operator", force: false, connected: true }, { restart: true });
    return script;
  };
  const undecided = lost();
  t.same([gone(undecided), undecided.where, undecided.effects], ["accepted", ["lost", B, 2], []], "that it is not there says nothing about the target");

  for (const [reason, result] of [["source-gone", "failed"], ["postcopy-broken", "lost"]] as const) {
    const script = resolved();
    const ended = coordinate(script.state, { type: "said", host: A, body: { kind: "sourceEnded", migration: MOVE, result: "source-gone", reason, detail: "" } }, NOW, RULES);
    t.match(ended.effects.find((effect) => effect.do === "finished"), { result: { result, reason } });
    gone(script, reason);
    t.same([script.where, script.effects, script.state.migration], [["none", null, 2], ["abort host-b", "guest-died", "finished"], null], reason);
    script.back("prepared");
    t.same(script.effects, ["abort host-b"], "what the target was prepared for is destroyed when it comes back");
    script.neverRan();
    t.same([script.where, script.effects], [["none", null, 2], []]);
    script.go({ type: "start", host: A, actor: "operator", connected: true });
    t.same([script.effects, script.state.binding.starting?.epoch], [["start host-a"], 4], "under an epoch of its own");
  }

  const wrong = resolved();
  gone(wrong);
  wrong.back("continued");
  t.same(wrong.effects, ["rule-broken"], "it did run there: a person was wrong");
  wrong.go({ type: "report", host: B, report: { vm: VM, state: "runs", basedOn: epoch(2), locator: null, unreachable: false, evidence: "resync" }, careOfListed: true, ownerConnected: false, ownerPassesOn: false });
  t.same(wrong.where, ["bound", B, 4], "and where it runs it is bound");

  const changed = resolved();
  const sourceBack: VmEvent = { type: "host-back", host: A, life: LIFE, records: [{ migration: MOVE, side: "source", state: "released", peer: B }], reported: "released" };
  const toTarget = (script: Script, force = false): string => script.go({ type: "resolve", host: B, actor: "operator", force, connected: true }, { restart: true });
  t.equal(toTarget(changed), "not-permitted", "the source was told by an earlier process, and may run it by now");
  changed.go(sourceBack);
  t.same(changed.effects, ["resume host-a"], "it has not heard of it: it is told again");
  t.equal(toTarget(changed), "not-permitted", "it may, and is there to say so");
  changed.go({ type: "host-gone", host: A });
  t.equal(toTarget(changed), "not-permitted", "it may, and has lost its connection");
  t.same(changed.where, ["lost", B, 2]);
  t.equal(toTarget(changed, true), "accepted", "a person knows that it does not");
  gone(changed);
  t.same([changed.where, changed.state.migration?.phase], [["bound", B, 2], "released"], "he has changed his mind: the target has it");
  changed.go(sourceBack);
  t.same(changed.effects, [], "and the source is not asked to run it, by the next process either");

  const contradicted = resolved();
  contradicted.go({ type: "host-gone", host: A });
  toTarget(contradicted, true);
  contradicted.neverRan();
  t.equal(contradicted.state.migration?.phase, "reclaim");
  contradicted.go({ type: "host-back", host: A, life: LIFE, records: [], reported: "runs" });
  t.same([contradicted.where[0], contradicted.where[1]], ["bound", A], "the source ran it by the first word, and has settled that");

  const resumed: VmEvent = { type: "host-back", host: A, life: LIFE, records: [{ migration: MOVE, side: "source", state: "resumed", peer: B }], reported: "runs" };
  const runs: VmEvent = { type: "said", host: A, body: { kind: "sourceEnded", migration: MOVE, result: "source-runs", reason: "timed-out", detail: "" } };
  const mistaken = resolved();
  toTarget(mistaken, true);
  const alarms = (when: string): void => {
    for (const event of [resumed, runs]) {
      mistaken.go(event, { restart: true });
      t.same([mistaken.effects, mistaken.where], [["rule-broken"], ["bound", B, 2]], `${when}, ${event.type}: it runs there as well, and a person has to hear of that`);
    }
  };
  alarms("before the target runs it");
  mistaken.running();
  alarms("after");
  mistaken.go({ type: "deadline" }, { restart: true, now: later });
  t.equal(mistaken.state.migration, null);
  alarms("when the move is over");

  const early = resolved();
  early.running();
  early.go(runs, { restart: true });
  t.same([early.effects, early.where], [["rule-broken"], ["bound", B, 2]], "the target had it all the time");
  t.end();
});

await t.test("a revocation is never older than what the source released under", (t) => {
  const released: VmEvent = { type: "said", host: A, body: { kind: "released", migration: MOVE, epoch: epoch(2), stopAt: millis(1), markerAt: null, bytes: 1, postcopy: true, forced: false } };
  const stop = { type: "stop", force: true, ownerConnected: false } as const;
  const revoked = (script: Script, event: VmEvent): unknown => coordinate(script.state, event, NOW, RULES).effects.find((effect) => effect.do === "ask");
  const begun = (): Script => {
    const script = new Script();
    script.go({ type: "migrate", host: B, actor: "operator", wishes: { postcopy: true }, sourceConnected: true, targetConnected: true, targetLife: LIFE, sourceCanLead: false });
    script.go({ type: "prepared", migration: MOVE, relayAddress: "10.2.0.2", relayPort: 1, canLead: false });
    return script;
  };
  const late = begun();
  late.go({ type: "cancel", migration: MOVE });
  late.go({ type: "host-gone", host: A });
  late.go({ type: "host-gone", host: B });
  late.go({ type: "deadline" }, { now: { mono: millis(1_000_000), wall: NOW.wall } });
  late.go({ type: "host-back", host: A, life: LIFE, records: [{ migration: MOVE, side: "source", state: "released", peer: B }], reported: "released" });
  late.go(released);
  t.same([late.where, late.state.migration?.postcopy], [["lost", A, 1], true], "the RELEASE turned up when it was lost");
  t.match(revoked(late, stop), { host: A, what: { ask: "revoke", epoch: 2 } });
  t.same([late.go(stop, { restart: true }), late.where, late.effects], ["accepted", ["none", null, 2], ["revoke host-a", "stopped"]]);

  const twice = new Script();
  twice.givenBack();
  twice.released();
  twice.go(released);
  t.same(twice.where, ["lost", A, 3]);
  t.match(revoked(twice, stop), { host: A, what: { ask: "revoke", epoch: 4 } }, "the target never had it under an epoch that the source had");
  twice.go(stop, { restart: true });
  t.same(twice.where, ["none", null, 4]);

  const dead = begun();
  dead.go({ type: "said", host: B, body: { kind: "targetEnded", migration: MOVE, result: "target-died", reason: "target-gone", detail: "", undelivered: null } });
  t.same(dead.where, ["none", null, 1], "before anybody had heard that it was there");
  t.match(revoked(dead, released), { host: A, what: { ask: "revoke", epoch: 2 } });
  t.end();
});

await t.test("a source that was still serving when it was revoked is revoked when it says that it does not any more", (t) => {
  const givenUp = (): Script => {
    const script = new Script();
    script.fetching();
    script.go({ type: "host-gone", host: B });
    script.go({ type: "deadline" }, { now: { mono: millis(1_000_000), wall: NOW.wall } });
    script.go({ type: "stop", force: true, ownerConnected: false }, { restart: true });
    t.same([script.where, script.effects], [["none", null, 2], ["revoke host-a", "stopped"]], "what it answers to that is not the machine's matter");
    return script;
  };
  const over = givenUp();
  t.same([over.released(), over.effects, over.where], ["accepted", ["revoke host-a"], ["none", null, 2]]);

  const elsewhere = givenUp();
  elsewhere.go({ type: "start", host: B, actor: "operator", connected: true });
  elsewhere.go({ type: "started", host: B, epoch: epoch(3) });
  t.same([elsewhere.released(), elsewhere.effects, elsewhere.where], ["accepted", ["revoke host-a"], ["bound", B, 3]], "also when the VM runs again, elsewhere");
  t.end();
});

await t.test("history says where a person had to decide", (t) => {
  const history = (actor: string): { readonly go: (event: VmEvent) => void; readonly entries: () => readonly unknown[] } => {
    const script = new Script();
    let entries: readonly HistoryEntry[] = [];
    const go = (event: VmEvent): void => {
      const outcome = coordinate(script.state, event, NOW, RULES);
      entries = applyHistory(entries, outcome.commit?.history ?? [], () => null);
      script.state = outcome.state;
    };
    go({ type: "migrate", host: B, actor, sourceConnected: true, targetConnected: true, targetLife: LIFE, sourceCanLead: false });
    go({ type: "prepared", migration: MOVE, relayAddress: "10.2.0.2", relayPort: 1, canLead: false });
    go({ type: "said", host: A, body: { kind: "released", migration: MOVE, epoch: epoch(2), stopAt: millis(1), markerAt: null, bytes: 1, postcopy: false, forced: false } });
    script.go({ type: "host-gone", host: B });
    script.go({ type: "deadline" }, { restart: true, now: { mono: millis(1_000_000), wall: NOW.wall } });
    t.equal(script.state.migration?.phase, "lost");
    return { go, entries: () => entries.map(({ epoch: under, host, cause, actor: who, until }) => [under, host, cause, who, until === null]) };
  };
  const target = history("drain");
  t.same(target.entries(), [[2, B, "migration", "drain", true]], "the RELEASE gave it to the target");
  target.go({ type: "resolve", host: B, actor: "operator", force: false, connected: true });
  t.same(target.entries(), [[2, B, "resolved", "operator", true]]);

  const source = history("drain");
  source.go({ type: "resolve", host: A, actor: "operator", force: false, connected: true });
  t.same(source.entries(), [[2, B, "migration", "drain", true]], "until it runs there");
  source.go({ type: "said", host: A, body: { kind: "sourceEnded", migration: MOVE, result: "source-runs", reason: "timed-out", detail: "" } });
  t.same(source.entries(), [[2, B, "migration", "drain", false], [3, A, "resolved", "operator", true]]);

  const proven = history("drain");
  proven.go({ type: "said", host: B, body: { kind: "targetEnded", migration: MOVE, result: "target-never-ran", reason: "target-gone", detail: "", undelivered: null } });
  proven.go({ type: "said", host: A, body: { kind: "sourceEnded", migration: MOVE, result: "source-runs", reason: "timed-out", detail: "" } });
  t.same(proven.entries().at(-1), [3, A, "migration-aborted", "drain", true], "nobody had to decide");
  t.end();
});
