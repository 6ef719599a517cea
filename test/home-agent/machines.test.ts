import fc from "fast-check";
import t from "tap";
import { coordinate } from "../../home-agent/handover/coordinator.js";
import { routeOf, type VmEvent } from "../../home-agent/handover/migration.js";
import type { HostLife } from "../../home-agent/host-life.js";
import type { Now } from "../../home-agent/bindings/binding.js";
import { Waiters, type Ended } from "../../home-agent/waiters.js";
import { epoch, migrationId, millis } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import type { MigrationRecord } from "../../proto/messages.js";
import { FakeClock } from "../model/fake-clock.js";
import { LIFE, MOVE, NOW, Script } from "./script.js";
import { A, B, RULES, TwoHosts, VM } from "./two-hosts.js";

const RUNS = Number(process.env["CAREOF_PROPERTY_RUNS"] ?? 1500);

await t.test("whatever happens in whatever order: one guest, one owner per epoch, epochs only grow, and it ends where the guest is", (t) => {
  const outcomes = new Map<string, number>();
  fc.assert(
    fc.property(fc.array(fc.nat({ max: 9999 }), { minLength: 5, maxLength: 80, size: "max" }), (choices) => {
      const world = new TwoHosts();
      const trace: string[] = [];
      try {
        for (const choice of choices) {
          const steps = world.steps();
          const step = steps[choice % steps.length];
          if (step === undefined) continue;
          trace.push(step.name);
          step.run();
          world.check();
        }
        trace.push("quiesce");
        world.quiesce();
        world.check();
        const { binding, migration } = world.state;
        const runner = world.hosts.find((host) => host.runs);
        for (const result of world.finished) outcomes.set(result, (outcomes.get(result) ?? 0) + 1);
        if (runner === undefined) throw new Error(`I8: nobody runs the guest, and nothing is lost: ${binding.phase} ${migration?.phase ?? ""}`);
        if (migration !== null) throw new Error(`it does not end: ${migration.phase}`);
        if (binding.phase !== "bound" || binding.owner !== runner.name) throw new Error(`I5: ${runner.name} runs it, ${String(binding.owner)} owns it (${binding.phase})`);
      } catch (thrown) {
        throw new Error(`${thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown)}\n${trace.join("\n")}`, { cause: thrown });
      }
    }),
    { numRuns: RUNS },
  );
  t.comment(JSON.stringify(Object.fromEntries(outcomes)));
  for (const result of ["completed", "failed", "cancelled"]) t.ok((outcomes.get(result) ?? 0) > 0, `the runs contain a migration that ends "${result}"`);
  t.end();
});

await t.test("lost: only when nobody who could know can be asked, and the first who can ends it", (t) => {
  const play = (world: TwoHosts, ...names: readonly string[]): void => {
    for (const name of names) {
      const step = world.steps().find((each) => each.name === name);
      if (step === undefined) throw new Error(`"${name}" cannot happen now: ${[...new Set(world.steps().map((each) => each.name))].join(", ")}`);
      step.run();
      world.check();
    }
  };
  const lost = (): TwoHosts => {
    const world = new TwoHosts();
    play(world, "operator: to host-b", "host-b hears", "host-a hears", "host-a releases", "host-b is cut off", "host-a says released");
    for (let i = 0; i < 20 && world.state.binding.phase !== "lost"; i++) play(world, "time passes");
    t.same([world.state.binding.phase, world.state.binding.owner, world.state.binding.epoch, world.finished], ["lost", "host-b", 2, ["lost"]]);
    return world;
  };
  const late = lost();
  play(late, "host-b gets the RELEASE", "host-b registers");
  late.quiesce();
  t.same([late.state.binding.phase, late.state.binding.owner, late.finished], ["bound", "host-b", ["lost", "completed"]], "the target had it all the time");

  const dead = lost();
  play(dead, "the relay breaks", "host-b gives up", "host-b registers");
  dead.quiesce();
  t.same([dead.state.binding.phase, dead.state.binding.owner, dead.state.binding.epoch], ["bound", "host-a", 3], "the target had destroyed it: the source resumes");

  const killed = lost();
  play(killed, "the home agent is killed");
  t.equal(killed.state.migration?.phase, "lost", "a restart forgets nothing");
  t.equal(killed.dispatch({ type: "resolve", host: killed.a.name, actor: "operator", force: false, connected: false }), "host-gone");
  t.equal(killed.dispatch({ type: "resolve", host: killed.b.name, actor: "operator", force: false, connected: true }), "accepted");
  t.same([killed.state.binding.phase, killed.state.binding.owner], ["bound", "host-b"]);
  t.end();
});

await t.test("postcopy: the binding is at the target at once, and nothing takes away from the source what the guest still needs", (t) => {
  const died = (reason: Reason): VmEvent => ({ type: "said", host: B, body: { kind: "targetEnded", migration: MOVE, result: "target-died", reason, detail: "the rest cannot come", undelivered: null } });
  const later: Now = { mono: millis(1_000_000), wall: NOW.wall };
  const refused = new Script();
  t.equal(refused.go({ type: "migrate", host: B, actor: "operator", wishes: { postcopy: true, channels: 2 }, sourceConnected: true, targetConnected: true, targetLife: LIFE, sourceCanLead: false }), "unsupported");

  const moved = new Script();
  moved.fetching();
  t.same([moved.where, moved.effects, moved.state.migration?.phase], [["bound", B, 2], [], "postcopy"], "owned by the target, the source is not revoked, and a restart forgets nothing");
  t.equal(routeOf(moved.state)?.active, B);
  t.same([moved.running(true), moved.effects], ["accepted", []], "said twice");
  t.same([moved.back("continued"), moved.effects, moved.state.migration?.phase], ["accepted", [], "postcopy"], "the target has registered again, and its machine speaks for it");
  t.same([moved.go({ type: "host-back", host: A, life: LIFE, records: [{ migration: MOVE, side: "source", state: "released", peer: B }], reported: "released" }), moved.effects], ["accepted", []]);
  t.equal(moved.go({ type: "cancel", migration: MOVE }), "not-permitted");
  moved.go({ type: "host-back", host: B, life: LIFE, records: [{ migration: MOVE, side: "target", state: "continued", peer: A }], reported: "runs" });
  moved.go({ type: "host-gone", host: A });
  moved.go({ type: "deadline" }, { now: later });
  t.equal(moved.state.migration?.phase, "postcopy", "that the source is out of reach says nothing about the relay");
  moved.running();
  t.ok(moved.effects.includes("revoke host-a"), "all has come");

  const broken = new Script();
  broken.fetching();
  const end = coordinate(broken.state, died("postcopy-broken"), NOW, RULES);
  t.match(end.effects.find((effect) => effect.do === "finished"), { result: { result: "lost", reason: "postcopy-broken", detail: "the rest cannot come" } });
  broken.go(died("postcopy-broken"), { restart: true });
  t.same([broken.where, broken.effects], [["none", null, 2], ["revoke host-a", "guest-died", "finished"]], "nobody's, and the source lets go");

  const silent = new Script();
  silent.fetching();
  silent.go({ type: "host-gone", host: B }, { restart: true });
  silent.go({ type: "deadline" }, { restart: true, now: later });
  t.same(silent.where, ["lost", B, 2]);
  t.equal(silent.go({ type: "resolve", host: A, actor: "operator", force: false, connected: true }), "postcopy-broken", "never at the source again");
  const back = new Script();
  back.state = silent.state;
  t.equal(silent.go({ type: "stop", force: false, ownerConnected: false }), "already-moving");
  t.equal(silent.go({ type: "stop", force: true, ownerConnected: false }, { restart: true }), "accepted");
  t.same([silent.where, silent.effects, silent.state.migration], [["none", null, 2], ["revoke host-a", "stopped"], null], "a person gives it up");
  back.back("continued");
  t.equal(back.state.migration?.phase, "lost", "that it was continued does not say that it has its memory");
  back.running();
  t.same(back.where, ["bound", B, 2], "it had all the time");

  const never = new Script();
  never.fetching();
  never.state = { ...never.state, migration: never.state.migration === null ? null : { ...never.state.migration, phase: "released", sourceGone: null } };
  never.neverRan();
  t.same(never.effects, ["resume host-a"]);
  never.go({ type: "said", host: A, body: { kind: "sourceEnded", migration: MOVE, result: "source-gone", reason: "postcopy-broken", detail: "" } });
  t.same([never.where, never.effects.includes("guest-died")], [["none", null, 2], true], "the source cannot have it back");
  t.end();
});

await t.test("why a move failed is the source's to say, when all that the target saw is a stream that broke", (t) => {
  for (const [first, said, wanted] of [["migrate-failed", "timed-out", "timed-out"], ["relay-failed", "migrate-failed", "relay-failed"], ["target-gone", "timed-out", "target-gone"]] as const) {
    const script = new Script();
    script.go({ type: "migrate", host: B, actor: "operator", sourceConnected: true, targetConnected: true, targetLife: LIFE, sourceCanLead: false });
    script.go({ type: "prepared", migration: MOVE, relayAddress: "10.2.0.2", relayPort: 1, canLead: false });
    script.go({ type: "said", host: B, body: { kind: "targetEnded", migration: MOVE, result: "target-never-ran", reason: first, detail: "what the target saw", undelivered: null } });
    const ended = coordinate(script.state, { type: "said", host: A, body: { kind: "sourceEnded", migration: MOVE, result: "source-runs", reason: said, detail: "what the source did" } }, NOW, RULES);
    const finished = ended.effects.find((effect) => effect.do === "finished");
    t.match(finished, { result: { reason: wanted, detail: wanted === said ? "what the source did" : "what the target saw" } }, `${first}, then ${said}`);
  }
  t.end();
});

await t.test("a target that does not remember: proof that it never ran only if its disk is still the same", (t) => {
  const back = (life: HostLife, records: readonly MigrationRecord[] = []): VmEvent => ({ type: "host-back", host: B, life, records, reported: "absent" });
  const copying = (): Script => {
    const script = new Script();
    script.go({ type: "migrate", host: B, actor: "operator", sourceConnected: true, targetConnected: true, targetLife: LIFE, sourceCanLead: false });
    script.go({ type: "prepared", migration: MOVE, relayAddress: "10.2.0.2", relayPort: 1, canLead: false }, { restart: true });
    script.go({ type: "host-back", host: A, life: LIFE, records: [{ migration: MOVE, side: "source", state: "active", peer: B }], reported: "runs" });
    return script;
  };
  const released = (): Script => {
    const script = copying();
    script.released();
    script.go({ type: "host-back", host: A, life: LIFE, records: [{ migration: MOVE, side: "source", state: "released", peer: B }], reported: "paused" });
    return script;
  };
  const same: readonly (readonly [string, HostLife])[] = [["the connection was lost", LIFE], ["the agent was started again", { instance: "two", restartCounter: 8 }], ["and again", { instance: "three", restartCounter: 9 }]];
  const lost: readonly (readonly [string, HostLife])[] = [["the disk is new", { instance: "two", restartCounter: 1 }], ["new in its first life", { instance: "two", restartCounter: 7 }]];
  for (const [what, life] of same) {
    const script = released();
    script.go(back(life));
    t.same([script.effects, script.state.migration?.phase], [["resume host-a"], "reclaim"], what);
  }
  for (const [what, life] of lost) {
    const after = released();
    after.go(back(life));
    t.same([after.effects, after.where], [["lost", "finished"], ["lost", B, 2]], `${what}: nobody may resume`);
    const before = copying();
    before.go(back(life));
    t.same([before.effects, before.state.migration?.neverRan], [["rule-broken", "abort host-a"], false], `${what}: the source is asked`);
    before.go({ type: "said", host: A, body: { kind: "sourceEnded", migration: MOVE, result: "source-runs", reason: "target-gone", detail: "" } });
    t.same(before.where, ["bound", A, 3], `${what}: its own word is enough`);
    const recorded = released();
    recorded.go(back(life, [{ migration: MOVE, side: "target", state: "never-ran", peer: A }]));
    t.same(recorded.effects, ["resume host-a"], `${what}, but this it has written down`);
  }
  t.end();
});

await t.test("a stop and a migration at once: the later one is refused, nobody waits in vain", (t) => {
  const migrate = { type: "migrate", host: B, actor: "operator", sourceConnected: true, targetConnected: true, targetLife: LIFE, sourceCanLead: true } as const;
  const stop = { type: "stop", force: false, ownerConnected: true } as const;
  const first = new Script();
  first.go(stop);
  t.same([first.go(migrate), first.effects, first.where], ["stop-pending", [], ["bound", A, 1]]);
  first.go({ type: "stop-failed", reason: "stop-failed", detail: "" });
  t.same([first.go(migrate), first.effects], ["accepted", ["prepare host-b"]], "it did not stop: it may move");

  const other = new Script();
  other.go(migrate);
  t.equal(other.go(stop), "already-moving");
  // A stop of before this process's restart.
  t.same([other.go({ type: "stopped", host: A, epoch: epoch(1) }), other.effects, other.where], ["already-moving", ["stopped"], ["moving", A, 1]], "the answer is given, the migration finds out by itself");
  t.end();
});

await t.test("operators wait so long, so many", async (t) => {
  const clock = new FakeClock();
  const waiters = new Waiters(clock);
  const accepted = (): Promise<Ended> => Promise.resolve({ reason: "accepted", detail: "" });
  const limit = millis(1000);
  const slow = waiters.ended("stop", VM, limit, accepted);
  const started = waiters.ended("start", VM, limit, accepted);
  await clock.advanceAsync(999);
  waiters.end("start", VM, { reason: "start-failed", detail: "no" });
  t.same(await started, { reason: "start-failed", detail: "no" });
  await clock.advanceAsync(1);
  t.match(await slow, { reason: "timed-out" });
  t.same(await waiters.ended("stop", VM, limit, () => Promise.resolve({ reason: "not-running", detail: "" })), { reason: "not-running", detail: "" });
  t.same(clock.timers(), [], "nothing is left of those who have their answer");
  const all = Array.from({ length: 64 }, () => waiters.ended("stop", VM, limit, accepted));
  t.match(await waiters.ended("stop", VM, limit, () => t.fail("began") as never), { reason: "too-many" });
  const result = waiters.finished(MOVE, limit);
  const late = t.rejects(waiters.finished(migrationId(VM, epoch(9)), limit), { code: "timed-out", retryable: true });
  waiters.finish({ migration: MOVE, from: A, to: B, result: "failed", reason: "target-gone", detail: "", totalMs: null, pauseMs: null, gapDownMs: null, gapUpMs: null, bytes: null, overflowed: null, hold: null, undelivered: null });
  t.match(await result, { result: "failed" });
  await clock.advanceAsync(1000);
  await late;
  t.same((await Promise.all(all)).map(({ reason }) => reason), Array.from({ length: 64 }, () => "timed-out"));
  t.end();
});

await t.test("a RELEASE after the source said that it runs on: it resumes only with the target's proof", (t) => {
  const script = (): Script => {
    const fresh = new Script();
    fresh.givenBack();
    t.same(fresh.where, ["bound", A, 3]);
    return fresh;
  };
  const contradicted = script();
  contradicted.released();
  t.same(contradicted.effects, ["rule-broken", "lost", "finished"], "nobody is told to resume");
  t.same(contradicted.where, ["lost", A, 3]);
  contradicted.back("continued");
  t.same([...contradicted.where, contradicted.effects], ["bound", B, 4, ["revoke host-a"]], "the target had it: under an epoch above all that were given");

  const never = script();
  never.released();
  never.back("never-ran");
  t.same([never.state.migration?.phase, never.effects], ["reclaim", []], "the proof came, the source is asked when it is here");
  never.go({ type: "host-back", host: A, life: LIFE, records: [{ migration: MOVE, side: "source", state: "released", peer: B }], reported: "paused" });
  t.same(never.effects, ["resume host-a"]);

  const proven = script();
  proven.neverRan();
  proven.released();
  t.same([proven.effects, proven.where], [["resume host-a"], ["bound", A, 3]], "the proof came first");

  const ran = script();
  ran.running();
  t.same([ran.effects, ran.where], [["rule-broken"], ["bound", A, 3]], "both say that they run: nothing moves");
  ran.neverRan();
  t.same(ran.effects, ["rule-broken"], "and it cannot be unsaid");
  ran.released();
  t.same([ran.where, ran.effects], [["bound", B, 4], ["revoke host-a"]], "the other order, the same end");

  const both = script();
  both.neverRan();
  both.back("continued");
  both.released();
  t.same([both.where, both.effects], [["lost", A, 3], ["rule-broken", "lost", "finished"]], "a target that says both proves nothing");

  const busy = script();
  busy.go({ type: "migrate", host: B, actor: "operator", sourceConnected: true, targetConnected: true, targetLife: LIFE, sourceCanLead: false });
  busy.released();
  t.same([busy.effects, busy.where], [["rule-broken"], ["moving", A, 3]], "in the next migration already");

  const newer = script();
  newer.neverRan();
  newer.go({ type: "migrate", host: B, actor: "operator", sourceConnected: true, targetConnected: true, targetLife: LIFE, sourceCanLead: false });
  newer.go({ type: "said", host: A, body: { kind: "released", migration: migrationId(VM, epoch(4)), epoch: epoch(4), stopAt: millis(1), markerAt: null, bytes: 1, postcopy: false, forced: false } });
  newer.released();
  t.same([newer.effects, newer.where], [[], ["bound", B, 4]], "a late word about the older one revokes nothing of the newer one");

  const person = script();
  person.released();
  person.go({ type: "resolve", host: A, actor: "operator", force: false, connected: true });
  t.same(person.effects, ["resume host-a"], "a person decides");
  person.go({ type: "said", host: A, body: { kind: "sourceEnded", migration: MOVE, result: "source-runs", reason: "timed-out", detail: "" } });
  t.same(person.where, ["bound", A, 4]);
  person.released();
  t.same(person.effects, ["resume host-a"], "late and again: it may");
  t.end();
});
