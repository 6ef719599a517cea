import fc from "fast-check";
import t from "tap";
import { askedOf, hear, newDrain, newStay, ORDERS, step, type Drain, type DrainEvent, type News, type Wish } from "../../home-agent/drains/drain.js";
import { durableDrain, restoreDrain } from "../../home-agent/drains/durable-drain.js";
import { summarize } from "../../home-agent/drains/drain-views.js";
import { freeOn, place, sceneOf, withPromised, type Scene, type SceneHost, type SceneVm } from "../../home-agent/drains/placement.js";
import { epoch, hostId, migrationId, millis, vmId, type HostId, type VmId } from "../../model/ids.js";
import { A, B, begun, C, GIB, HOSTS, NOW, scene, vm, WISH } from "./drain-scene.js";

const RUNS = Number(process.env["CAREOF_PROPERTY_RUNS"] ?? 600);

/** Hosts and VMs that do what they are told, or do not; `drain` is what is tested. */
class World {
  readonly vms = new Map<VmId, SceneVm>();
  readonly hosts = new Map<HostId, SceneHost>();
  readonly wish: Wish;
  drain: Drain;
  asked: { readonly vm: VmId; readonly to: HostId }[] = [];
  #epochs = 1;
  interrupted = false;

  constructor(vms: readonly SceneVm[], memory: readonly number[], wish: Wish) {
    for (const each of vms) this.vms.set(each.vm, each);
    HOSTS.forEach((host, i) => this.hosts.set(host, { connected: true, returning: false, losses: 0, draining: host === A, memoryBytes: memory[i] ?? 0 }));
    this.wish = wish;
    this.drain = newDrain(A, wish, NOW);
  }

  get scene(): Scene {
    return sceneOf(this.vms, this.hosts, 0);
  }

  take(event: DrainEvent): void {
    const before = this.scene;
    const { drain, moves } = step(this.drain, event, before);
    this.drain = drain;
    const load = new Map(before.load);
    for (const { to, vm: name } of this.asked) {
      const each = before.vms.get(name);
      // One that was stopped meanwhile comes nowhere.
      if (each?.owner === A) load.set(to, (load.get(to) ?? 0) + each.memoryBytes);
    }
    for (const move of moves) {
      const each = before.vms.get(move.vm);
      const host = before.hosts.get(move.to);
      if (each === undefined || host === undefined) throw new Error(`${move.vm} to ${move.to}: nobody knows them`);
      if (this.interrupted) throw new Error("a move after the interruption");
      if (!each.hosts.includes(move.to) || (this.wish.to.length > 0 && !this.wish.to.includes(move.to))) throw new Error(`${move.vm} may not go to ${move.to}`);
      if (host.draining || !host.connected) throw new Error(`${move.to} does not take VMs`);
      if (each.memoryBytes > freeOn(move.to, before, load)) throw new Error(`${move.vm} does not fit on ${move.to}`);
      if (each.owner !== A || each.move !== null || !each.movable) throw new Error(`${move.vm} cannot be moved`);
      load.set(move.to, (load.get(move.to) ?? 0) + each.memoryBytes);
      const earlier = drain.stays.slice(0, drain.stays.findIndex((stay) => stay.vm === move.vm)).filter((stay) => stay.phase === "waiting" && !stay.paused && stay.reason === null);
      if (earlier.length > 0) throw new Error(`${move.vm} went before ${earlier.map((stay) => stay.vm).join(", ")}`);
      this.asked.push(move);
    }
    const active = drain.stays.filter((stay) => stay.phase === "asked" || stay.phase === "moving").length;
    if (active > this.wish.limit) throw new Error(`${String(active)} moves at once, ${String(this.wish.limit)} allowed`);
    if (drain.phase === "ended" && active > 0) throw new Error("it ended while something moves");
  }

  /** What can happen next. */
  steps(): (() => void)[] {
    const steps: (() => void)[] = [];
    for (const move of this.asked) {
      steps.push(() => { this.#begin(move); }, () => { this.#begin(move); });
      for (const reason of ["host-gone", "start-pending", "not-bound", "host-draining"] as const) steps.push(() => {
        this.#answered(move);
        this.take({ type: "answered", vm: move.vm, to: move.to, reason, detail: "" });
      });
    }
    for (const each of this.vms.values()) {
      if (each.move === null) continue;
      const { to } = each.move;
      const end = (owner: HostId): void => { this.vms.set(each.vm, { ...each, phase: "bound", owner, move: null }); };
      for (let weight = 0; weight < 6; weight++) steps.push(() => {
        end(to);
        this.take({ type: "moved", vm: each.vm, to, result: "completed", reason: "accepted", detail: "" });
      });
      steps.push(() => {
        end(A);
        this.take({ type: "moved", vm: each.vm, to, result: "failed", reason: "relay-failed", detail: "cut" });
      }, () => {
        end(A);
        this.take({ type: "moved", vm: each.vm, to, result: "cancelled", reason: "cancelled-by-operator", detail: "" });
      }, () => {
        this.vms.set(each.vm, { ...each, phase: "lost" });
        this.take({ type: "moved", vm: each.vm, to, result: "lost", reason: "released-unknown", detail: "" });
      });
    }
    for (const host of [A, B, C]) for (const returning of [true, false]) steps.push(() => {
      const known = this.hosts.get(host);
      if (known !== undefined) this.hosts.set(host, known.connected ? { ...known, connected: false, returning, losses: known.losses + 1 } : { ...known, connected: true, returning: false });
      this.take({ type: "look" });
    });
    // One of them only: else most are stopped before anything else happens to them.
    for (const each of [...this.vms.values()].slice(0, 1)) {
      if (each.owner === A && each.move === null && each.phase === "bound") steps.push(() => {
        this.vms.set(each.vm, { ...each, phase: "none", owner: null });
        this.take({ type: "look" });
      });
    }
    steps.push(() => { this.take({ type: "tick" }); });
    return steps;
  }

  #begin(move: { readonly vm: VmId; readonly to: HostId }): void {
    this.#answered(move);
    const each = this.vms.get(move.vm);
    if (each?.owner === A && each.phase === "bound") this.vms.set(move.vm, { ...each, phase: "moving", move: { id: migrationId(move.vm, epoch(this.#epochs++)), from: A, to: move.to } });
    this.take({ type: "answered", vm: move.vm, to: move.to, reason: "accepted", detail: "" });
  }

  #answered(move: { readonly vm: VmId; readonly to: HostId }): void {
    this.asked = this.asked.filter((each) => each !== move);
  }

  /** Everything that was begun goes well from now on. */
  quiesce(): void {
    for (let i = 0; this.drain.phase === "running" || this.asked.length > 0 || [...this.vms.values()].some((each) => each.move !== null && each.phase !== "lost"); i++) {
      if (i > 500) throw new Error(`it does not end: ${JSON.stringify(this.drain.stays)}`);
      const [move] = this.asked;
      if (move !== undefined) {
        this.#begin(move);
        continue;
      }
      const moving = [...this.vms.values()].find((each) => each.move !== null && each.phase !== "lost");
      if (moving !== undefined && moving.move !== null) {
        const { to } = moving.move;
        this.vms.set(moving.vm, { ...moving, phase: "bound", owner: to, move: null });
        this.take({ type: "moved", vm: moving.vm, to, result: "completed", reason: "accepted", detail: "" });
      } else {
        // Who is not back by now stays away.
        for (const [host, known] of this.hosts) this.hosts.set(host, { ...known, returning: false });
        this.take({ type: "tick" });
      }
    }
  }
}

/** What a world is made of: the world itself changes while it is played. */
const worlds = fc.record({
  vms: fc.array(fc.record({ memoryBytes: fc.integer({ min: 1, max: 4 }).map((gib) => gib * GIB), hosts: fc.shuffledSubarray(HOSTS, { minLength: 1 }), external: fc.nat({ max: 9 }) }), { minLength: 1, maxLength: 8 }),
  memory: fc.array(fc.integer({ min: 1, max: 12 }).map((gib) => gib * GIB), { minLength: 4, maxLength: 4 }),
  to: fc.oneof(fc.constant<HostId[]>([]), fc.subarray(HOSTS.slice(1))),
  limit: fc.integer({ min: 1, max: 3 }),
  order: fc.constantFrom(...ORDERS),
});

function worldOf({ vms, memory, ...wish }: typeof worlds extends fc.Arbitrary<infer T> ? T : never): World {
  return new World(vms.map(({ external, ...each }, i) => vm(`vm${String(i)}`, { ...each, movable: external > 0 })), memory, { ...wish, wishes: {}, actor: "operator" });
}

await t.test("whatever happens: never more at once than allowed, only where it is wanted and fits, in order; and it ends with each VM away, or left for a reason that holds", (t) => {
  const ends = new Map<string, number>();
  fc.assert(
    fc.property(worlds, fc.array(fc.nat({ max: 9999 }), { maxLength: 60, size: "max" }), (made, choices) => {
      const here = worldOf(made);
      here.take({ type: "begin", wish: here.wish, now: NOW });
      for (const choice of choices) {
        const steps = here.steps();
        steps[choice % steps.length]?.();
      }
      here.quiesce();
      const { drain } = here;
      if (drain.phase !== "ended") throw new Error("it did not end");
      for (const stay of drain.stays) {
        const each = here.vms.get(stay.vm);
        if (stay.phase === "moved" && (each === undefined || each.owner === A || each.owner === null)) throw new Error(`${stay.vm} is not away`);
        if (stay.phase === "left" && (stay.reason === null || stay.reason === "accepted")) throw new Error(`${stay.vm} was left without a reason`);
        if (each?.owner === A && stay.phase !== "left") throw new Error(`${stay.vm} is still there and ${stay.phase}`);
        ends.set(stay.phase === "left" ? `left: ${stay.reason ?? ""}` : stay.phase, (ends.get(stay.phase === "left" ? `left: ${stay.reason ?? ""}` : stay.phase) ?? 0) + 1);
      }
    }),
    { numRuns: RUNS },
  );
  t.comment(JSON.stringify(Object.fromEntries(ends)));
  for (const end of ["moved", "stopped", "left: not-enough-memory", "left: relay-failed", "left: unsupported", "left: cancelled-by-operator", "left: released-unknown"]) t.ok((ends.get(end) ?? 0) > 0, `the runs contain "${end}"`);
  t.end();
});

await t.test("interrupted at any moment: nothing else begins, what moves ends, and beginning again finishes it", (t) => {
  fc.assert(
    fc.property(worlds, fc.array(fc.nat({ max: 9999 }), { maxLength: 20 }), fc.array(fc.nat({ max: 9999 }), { maxLength: 20 }), (made, first, then) => {
      const here = worldOf(made);
      const run = (choices: readonly number[]): void => {
        for (const choice of choices) {
          const steps = here.steps();
          steps[choice % steps.length]?.();
        }
      };
      here.take({ type: "begin", wish: here.wish, now: NOW });
      run(first);
      const wasRunning = here.drain.phase === "running";
      here.interrupted = true;
      here.take({ type: "interrupt", cancel: false });
      run(then);
      here.quiesce();
      if (wasRunning && here.drain.phase !== "interrupted") throw new Error(`it is ${here.drain.phase}`);
      here.interrupted = false;
      // As a new process finds it.
      here.asked = [];
      here.drain = restoreDrain(A, JSON.parse(JSON.stringify(durableDrain(here.drain))));
      here.take({ type: "begin", wish: here.wish, now: NOW });
      here.quiesce();
      if (here.drain.phase !== "ended") throw new Error("it did not end");
    }),
    { numRuns: RUNS },
  );
  t.end();
});

await t.test("a place: the most memory that is left, of equals the first by name; and why there is none", (t) => {
  const one = vm("vm1");
  const placed = (at: Scene, to: readonly HostId[] = [], of = one): unknown => place(of, A, to, new Map(), at, at.load);
  t.same(placed(scene([one])), { host: "host-b" });
  t.same(placed(scene([one, vm("vm2", { owner: B })])), { host: "host-c" });
  t.same(placed(scene([one, vm("vm2", { move: { id: migrationId(vmId("vm2"), epoch(2)), from: A, to: B } })])), { host: "host-c" }, "what is on its way counts");
  t.same(placed(scene([one, vm("vm2", { owner: null, starting: B })])), { host: "host-c" }, "and what is being started");
  t.same(placed(scene([one], { "host-d": { memoryBytes: 0 } })), { host: "host-d" }, "a host that does not say takes everything");
  t.same(placed(scene([one]), [C]), { host: "host-c" });
  t.match(placed(scene([one]), [B], vm("vm1", { hosts: [A, C] })), { host: null, reason: "not-listed", detail: /host-c only/ });
  t.match(placed(scene([one]), [], vm("vm1", { hosts: [A] })), { host: null, reason: "no-host-fits" });
  t.match(placed(scene([one], { "host-b": { draining: true } }), [B]), { host: null, reason: "host-draining" });
  t.match(placed(scene([one], { "host-b": { connected: false } }), [B]), { host: null, reason: "host-gone", absent: true, returning: false });
  t.match(placed(scene([one], { "host-b": { connected: false, returning: true } }), [B]), { host: null, reason: "host-gone", absent: true, returning: true });
  t.match(placed(scene([one], { "host-b": { connected: false, returning: true } }), [B, C]), { host: "host-c" }, "who is there does not wait for who is not");
  t.match(placed(scene([one], {}, { reserveBytes: 7.5 * GIB }), [B]), { host: null, reason: "not-enough-memory" });
  t.match(placed(scene([one], { "host-b": { memoryBytes: 1 }, "host-c": { connected: false } }), [B, C]), { host: null, reason: "no-host-fits", detail: "host-b: not-enough-memory, host-c: host-gone" });
  t.end();
});

await t.test("the order is the one that was asked for", (t) => {
  const vms = [vm("vm3", { memoryBytes: 2 * GIB }), vm("vm1", { memoryBytes: 3 * GIB }), vm("vm2", { memoryBytes: GIB })];
  for (const [order, names] of [["config", "vm3 vm1 vm2"], ["name", "vm1 vm2 vm3"], ["smallest", "vm2 vm3 vm1"], ["largest", "vm1 vm3 vm2"]] as const) {
    const { drain, moves } = step(...begun(newDrain(A, WISH, NOW), { ...WISH, order }), scene(vms));
    t.equal(drain.stays.map((stay) => stay.vm).join(" "), names, order);
    t.equal(moves.map((move) => move.vm).join(" "), names.slice(0, 7));
  }
  t.end();
});

await t.test("a host that failed a VM is not tried again, another one is; what passes is waited for", (t) => {
  const vms = [vm("vm1")];
  let { drain, moves } = step(...begun(newDrain(A, WISH, NOW)), scene(vms));
  t.same(moves, [{ vm: "vm1", to: "host-b" }]);
  ({ drain, moves } = step(drain, { type: "answered", vm: vmId("vm1"), to: B, reason: "stop-pending", detail: "" }, scene(vms)));
  t.same([moves, drain.stays[0]?.phase], [[], "waiting"], "not at once");
  ({ drain, moves } = step(drain, { type: "tick" }, scene(vms)));
  t.same(moves, [{ vm: "vm1", to: "host-b" }]);
  for (const [at, next] of [["host-b", "host-c"], ["host-c", "host-d"]] as const) {
    ({ drain, moves } = step(drain, { type: "answered", vm: vmId("vm1"), to: hostId(at), reason: "no-resources", detail: "" }, scene(vms)));
    t.same(moves, [{ vm: "vm1", to: next }]);
    const asked = drain;
    for (const reason of ["accepted", "unspecified"] as const) ({ drain, moves } = step(drain, { type: "answered", vm: vmId("vm1"), to: hostId(at), reason, detail: "" }, scene(vms)));
    t.same([drain, moves], [asked, []], "a late answer to the move before says nothing of this one");
  }
  ({ drain, moves } = step(drain, { type: "moved", vm: vmId("vm1"), to: hostId("host-d"), result: "failed", reason: "prepare-failed", detail: "/srv/web1.raw is missing" }, scene(vms)));
  t.match(summarize(drain), { state: "incomplete", left: 1 });
  t.match(drain.stays[0], { phase: "left", reason: "no-host-fits", detail: "host-b: no-resources, host-c: no-resources, host-d: prepare-failed (/srv/web1.raw is missing)" });
  ({ drain, moves } = step(...begun(drain), scene(vms)));
  t.same(moves, [{ vm: "vm1", to: "host-b" }], "begun again, everything is tried again");
  t.end();
});

await t.test("a cancelled move keeps what was said of it; a refusal that has no other words is said once", (t) => {
  const vms = [vm("vm1", { hosts: [A, B] })];
  const { drain } = step(...begun(newDrain(A, WISH, NOW)), scene(vms));
  const cancelled = step(drain, { type: "moved", vm: vmId("vm1"), to: B, result: "cancelled", reason: "cancelled-by-operator", detail: "by hand" }, scene(vms)).drain;
  t.match(cancelled.stays, [{ phase: "left", reason: "cancelled-by-operator", detail: "by hand" }]);
  const refused = step(drain, { type: "answered", vm: vmId("vm1"), to: B, reason: "no-resources", detail: "no-resources" }, scene(vms)).drain;
  t.match(refused.stays, [{ phase: "left", reason: "no-resources", detail: "host-b: no-resources" }]);
  t.end();
});

await t.test("two moves that ended before anybody looked: each keeps its own reason", (t) => {
  const vms = [vm("vm1", { hosts: [A, B] }), vm("vm2", { hosts: [A, B] })];
  const asked = step(...begun(newDrain(A, WISH, NOW)), scene(vms)).drain;
  const answers = vms.map((each): News => ({ type: "answered", vm: each.vm, to: B, reason: "accepted", detail: "" }));
  const under = scene(vms.map((each) => ({ ...each, phase: "moving" as const, move: { id: migrationId(each.vm, epoch(2)), from: A, to: B } })));
  const moving = step(hear(asked, answers, under), { type: "look" }, under).drain;
  const ends = (["relay-failed", "prepare-failed"] as const).map((reason, i): News => ({ type: "moved", vm: vmId(`vm${String(i + 1)}`), to: B, result: "failed", reason, detail: `${reason} in words` }));
  t.same(step(hear(moving, ends, scene(vms)), { type: "look" }, scene(vms)).drain.stays.map((stay) => `${stay.phase} ${stay.detail}`), ["relay-failed", "prepare-failed"].map((reason) => `left host-b: ${reason} (${reason} in words)`));
  t.end();
});

await t.test("a move that failed because the home agent ended is not held against the host that it went to", (t) => {
  const vms = [vm("vm1", { hosts: [A, B] })];
  const moving = step(newDrain(A, { ...WISH }, NOW), { type: "begin", wish: WISH, now: NOW }, scene([vm("vm1", { hosts: [A, B], phase: "moving", move: { id: migrationId(vmId("vm1"), epoch(2)), from: A, to: B } })])).drain;
  const again = step(moving, { type: "moved", vm: vmId("vm1"), to: B, result: "failed", reason: "migrate-failed", detail: "", inherited: true }, scene(vms));
  t.same(again.moves, [{ vm: "vm1", to: B }]);
  t.same(step(moving, { type: "moved", vm: vmId("vm1"), to: B, result: "failed", reason: "migrate-failed", detail: "" }, scene(vms)).moves, []);
  t.end();
});

await t.test("what comes to the host meanwhile is moved too; a new home agent waits for hosts to come back", (t) => {
  const coming = vm("vm1", { owner: B, phase: "moving", move: { id: migrationId(vmId("vm1"), epoch(2)), from: B, to: A } });
  let { drain, moves } = step(...begun(newDrain(A, WISH, NOW)), scene([coming, vm("vm2", { owner: null, phase: "none", starting: A })]));
  t.match([moves, drain.phase, drain.stays.map((stay) => stay.reason)], [[], "running", ["already-moving", "start-pending"]]);
  ({ drain, moves } = step(drain, { type: "look" }, scene([vm("vm1"), vm("vm2")])));
  t.same(moves.map((move) => move.vm), ["vm1", "vm2"]);

  const gone = (returning: boolean) => Object.fromEntries(["host-b", "host-c", "host-d"].map((host) => [host, { connected: false, returning }]));
  ({ drain, moves } = step(...begun(newDrain(A, WISH, NOW)), scene([vm("vm1")], gone(true))));
  t.match([moves, drain.phase, drain.stays[0]], [[], "running", { phase: "waiting", reason: "host-gone" }]);
  ({ drain, moves } = step(drain, { type: "tick" }, scene([vm("vm1")], gone(false))));
  t.match([drain.phase, drain.stays[0]?.reason], ["ended", "host-gone"]);
  t.end();
});

await t.test("a host whose connection was lost in the midst is waited for and asked again, three times in all", (t) => {
  const vms = [vm("vm1", { hosts: [A, B] })];
  const moving = (to: HostId) => [vm("vm1", { hosts: [A, B], phase: "moving", move: { id: migrationId(vmId("vm1"), epoch(2)), from: A, to } })];
  for (const lost of ["host-a", "host-b"]) {
    let { drain, moves } = step(...begun(newDrain(A, WISH, NOW)), scene(vms));
    for (let losses = 1; losses <= 3; losses++) {
      t.same(moves, [{ vm: "vm1", to: B }], `${lost}: try ${String(losses)}`);
      ({ drain } = step(drain, { type: "answered", vm: vmId("vm1"), to: B, reason: "accepted", detail: "" }, scene(moving(B), { [lost]: { losses: losses - 1 } })));
      const away = scene(vms, { [lost]: { connected: false, returning: true, losses } });
      ({ drain, moves } = step(drain, { type: "moved", vm: vmId("vm1"), to: B, result: "failed", reason: losses === 1 ? "relay-failed" : "target-gone", detail: "" }, away));
      if (losses === 3) break;
      for (const type of ["tick", "look"] as const) ({ drain, moves } = step(drain, { type }, away));
      t.match([drain.phase, drain.stays[0]?.phase, drain.stays[0]?.reason], ["running", "waiting", "host-gone"]);
      ({ drain, moves } = step(drain, { type: "look" }, scene(vms, { [lost]: { losses } })));
    }
    t.match(step(drain, { type: "tick" }, scene(vms, { [lost]: { losses: 3 } })).drain, { phase: "ended", stays: [{ phase: "left", reason: "target-gone" }] }, "nobody is asked for ever");
  }
  t.end();
});

await t.test("whom a silent host keeps from moving waits, and what was left for its sake goes when it is back while the drain runs", (t) => {
  const silent = { "host-a": { connected: false, returning: true, losses: 1 } };
  let { drain, moves } = step(...begun(newDrain(A, WISH, NOW)), scene([vm("vm1", { phase: "stale" }), vm("vm2", { phase: "expired" })], silent));
  t.match([moves, drain.phase, drain.stays.map((stay) => stay.reason)], [[], "running", ["not-bound", "not-bound"]]);
  ({ drain, moves } = step(drain, { type: "look" }, scene([vm("vm1"), vm("vm2")])));
  t.same(moves.map((move) => move.vm), ["vm1", "vm2"]);

  const two = [vm("vm1", { hosts: [A, B] }), vm("vm2", { hosts: [A, C] })];
  ({ drain, moves } = step(...begun(newDrain(A, WISH, NOW)), scene(two, { "host-b": { connected: false } })));
  t.match([moves, drain.phase, drain.stays[0]], [[{ vm: "vm2", to: C }], "running", { phase: "left", reason: "host-gone" }]);
  ({ moves } = step(drain, { type: "look" }, scene(two)));
  t.same(moves, [{ vm: "vm1", to: B }]);
  t.end();
});

await t.test("what is kept of a drain: how its VMs move too; one of an earlier home agent had no such wishes", (t) => {
  const wishes = { maxBandwidth: 5e7, downtimeLimitMs: millis(300), timeoutMs: millis(120_000), autoConverge: true, channels: 4, onTimeout: "force", postcopy: false, encrypt: false } as const;
  const kept: unknown = JSON.parse(JSON.stringify(durableDrain(newDrain(A, { ...WISH, wishes }, NOW))));
  t.same(restoreDrain(A, kept).wishes, wishes);
  t.same(summarize(restoreDrain(A, kept)).wishes, { bandwidth: 5e7, downtimeLimitMs: 300, timeoutMs: 120_000, autoConverge: true, channels: 4, onTimeout: "force", postcopy: false, encrypt: false }, "in the words of the API");
  const old = { to: ["host-b"], limit: 3, order: "name", actor: "operator", startedAt: 1, phase: "running", vms: ["vm1"] };
  t.same(restoreDrain(A, old), { host: A, to: [B], limit: 3, order: "name", wishes: {}, actor: "operator", startedAt: 1, phase: "running", cancelling: false, stays: [newStay(vmId("vm1"))] });
  t.throws(() => restoreDrain(A, { ...old, wishes: { channels: "4" } }), { code: "store-corrupt", message: /wishes\.channels/ });
  t.end();
});

await t.test("two drains at once: what one has asked for takes room from the other before any binding shows it, and once", (t) => {
  const vms = [vm("vm1", { hosts: [A, C] }), vm("vm2", { hosts: [B, C], owner: B })];
  const here = scene(vms, { "host-b": { draining: true }, "host-c": { memoryBytes: 1.5 * GIB } });
  const first = step(...begun(newDrain(A, WISH, NOW)), here);
  t.same(first.moves, [{ vm: "vm1", to: C }]);
  const beside = { ...here, promised: new Map(askedOf(first.drain)) };
  t.match(step(...begun(newDrain(B, WISH, NOW)), beside), { moves: [], drain: { stays: [{ vm: "vm2", phase: "left", reason: "not-enough-memory" }] } });
  const shown = scene([vm("vm1", { hosts: [A, C], phase: "moving", move: { id: migrationId(vmId("vm1"), epoch(2)), from: A, to: C } })]);
  t.equal(withPromised(shown.load, askedOf(first.drain), shown).get(C), GIB, "not twice, when it moves");
  t.end();
});

await t.test("twenty thousand VMs cost twenty thousand times as much as one, not four hundred million times", (t) => {
  const many = Array.from({ length: 20_000 }, (_, i) => vm(`vm${String(i)}`));
  const here = scene(many, Object.fromEntries(HOSTS.map((host) => [host, { memoryBytes: 0 }])));
  const wish = { ...WISH, limit: 20_000 };
  const before = performance.now();
  const asked = step(...begun(newDrain(A, wish, NOW), wish), here);
  const heard = hear(asked.drain, asked.moves.map(({ vm: name, to }): News => ({ type: "answered", vm: name, to, reason: "no-resources", detail: "" })), here);
  const again = step(...begun(heard, wish), here);
  t.match([asked.moves.length, again.moves.length, again.drain.stays.length], [20_000, 20_000, 20_000]);
  const took = performance.now() - before;
  t.ok(took < 3000, `${took.toFixed(0)} ms`);
  t.end();
});
