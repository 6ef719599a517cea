import fc from "fast-check";
import t from "tap";
import { coordinate, vmDeadline } from "../../home-agent/handover/coordinator.js";
import { routeOf, type MoveRules, type VmEvent, type VmState } from "../../home-agent/handover/migration.js";
import { unbound, type Now } from "../../home-agent/bindings/binding.js";
import type { Effect } from "../../home-agent/outcome.js";
import { ipAddress } from "../../model/address.js";
import { epoch, hostId, millis, NEVER_BOUND, vmId, type Epoch, type HostId } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import type { Reason } from "../../model/reasons.js";
import type { Body, Sighting } from "../../proto/messages.js";
import { Bench, CARE_OF, until } from "./bench.js";
import type { ScriptedAgent } from "./scripted-agent.js";

/** VMs that somebody else moves: what a host sees, says and hears again is all that the home agent has to go by. */

const VM = vmId("ext1");
const HOSTS = [hostId("host-a"), hostId("host-b"), hostId("host-c")] as const;
const [A, B] = HOSTS;
const HOME = ipAddress("198.51.100.8");
const RUNS = Number(process.env["CAREOF_PROPERTY_RUNS"] ?? 600);
const RULES: MoveRules = {
  hosts: HOSTS, driver: "external", lifetimeMs: millis(30_000), graceMs: millis(2000),
  handover: {
    lead: true, holdMaxMs: millis(250), downtimeLimitMs: millis(100), maxBandwidth: 0, timeoutMs: millis(600_000), onTimeout: "abort", forceMs: millis(60_000), autoConverge: false, channels: 1, postcopy: false, encrypt: true, prepareMs: millis(20_000),
    targetGoneMs: millis(3000), sourceGoneMs: millis(10_000), lostAfterMs: millis(5000),
  },
};

/** The machine alone, with a clock. */
class Desk {
  state: VmState = { binding: unbound(VM, NEVER_BOUND), migration: null, givenBack: [] };
  rules = RULES;
  /** Whether the owner is. */
  connected = true;
  /** Whether its data plane passes on what still comes, as far as is known: a moment longer than it is connected. */
  passesOn = true;
  now = 1000;
  readonly effects: Effect[] = [];

  do(event: VmEvent): Reason {
    this.now += 1;
    const now: Now = { mono: millis(this.now), wall: millis(this.now) };
    const before = this.state.binding;
    const outcome = coordinate(this.state, event, now, this.rules);
    this.state = outcome.state;
    this.effects.push(...outcome.effects);
    const after = this.state.binding;
    if (after.epoch < before.epoch || after.issued < before.issued) throw new Error("an epoch went back");
    if (after.epoch === before.epoch && after.owner !== before.owner && after.owner !== null) throw new Error("I1: a second owner under one epoch");
    if (after.epoch !== before.epoch && outcome.commit === null) throw new Error("an epoch that is not on disk");
    if (outcome.interim !== null && routeOf(outcome.interim)?.active !== after.owner) throw new Error("I2: the switch is not where the commit will be");
    return outcome.reason;
  }

  announce(host: HostId, what: Sighting = "rarp", basedOn: Epoch = this.state.binding.epoch): Reason {
    return this.do({ type: "announcement", host, what, basedOn, careOfListed: true, ownerPassesOn: this.passesOn });
  }

  heartbeat(via: HostId): Reason {
    return this.do({ type: "heartbeat", via, ownerConnected: this.connected, ownerPassesOn: this.passesOn });
  }

  /** `host` reports that it has the VM. */
  runs(host: HostId, evidence: Body<"vmReport">["evidence"]): Reason {
    return this.do({
      type: "report", host, report: { vm: VM, state: "runs", basedOn: this.state.binding.epoch, locator: null, unreachable: false, evidence },
      careOfListed: true, ownerConnected: this.connected, ownerPassesOn: this.passesOn,
    });
  }

  /** The owner's connection is gone; `cold`: for so long that its data plane may be, too. */
  disconnect(cold: boolean): void {
    this.connected = false;
    this.passesOn = !cold;
  }

  unseen(host: HostId, basedOn: Epoch = this.state.binding.epoch): Reason {
    return this.do({ type: "report", host, report: { vm: VM, state: "absent", basedOn, locator: null, unreachable: false, evidence: "port-gone" }, careOfListed: true, ownerConnected: true, ownerPassesOn: true });
  }

  get owner(): HostId | null {
    return this.state.binding.owner;
  }

  alarms(): number {
    return this.effects.filter((effect) => effect.do === "alarm").length;
  }
}

await t.test("what counts, and what does not", (t) => {
  const desk = new Desk();
  t.equal(desk.announce(A, "port"), "accepted", "nobody had it");
  t.equal(desk.owner, A);
  t.equal(desk.announce(A, "rarp", epoch(0)), "stale-epoch");
  t.equal(desk.announce(hostId("host-x")), "not-listed");
  t.equal(desk.do({ type: "announcement", host: B, what: "rarp", basedOn: epoch(1), careOfListed: false, ownerPassesOn: true }), "foreign-care-of");
  t.equal(desk.announce(B, "port"), "not-owner", "a port alone: whoever migrates a VM makes it long before");
  t.equal(desk.owner, A);
  t.equal(desk.unseen(A), "accepted");
  t.equal(desk.owner, B, "now it counts, though it came first");
  for (const what of ["rarp", "gratuitous-arp", "arrive"] as const) {
    const next = desk.owner === A ? B : A;
    t.equal(desk.announce(next, what), "accepted");
    t.equal(desk.owner, next, `${what} moves at once`);
  }
  t.equal(desk.alarms(), 0);
  t.equal(coordinate(desk.state, { type: "announcement", host: B, what: "rarp", basedOn: desk.state.binding.epoch, careOfListed: true, ownerPassesOn: true }, { mono: millis(5000), wall: millis(0) }, { ...RULES, driver: "qemu" }).reason, "unsupported");
  t.end();
});

await t.test("two hosts that both see packets: nothing moves to and fro, and a person is called", (t) => {
  const desk = new Desk();
  desk.announce(A);
  t.equal(desk.announce(B, "packet"), "accepted");
  t.equal(desk.announce(A, "packet"), "both-claim", "it has just left A, and B still sees it");
  t.equal(desk.owner, B);
  t.equal(desk.alarms(), 0, "the two halves of a move come from two hosts: not at once");
  desk.now = vmDeadline(desk.state, RULES) ?? 0;
  desk.do({ type: "deadline" });
  t.equal(desk.alarms(), 1);
  desk.now += 500;
  desk.do({ type: "deadline" });
  desk.announce(A, "packet");
  t.equal(desk.alarms(), 1, "once");
  t.equal(desk.unseen(B), "accepted");
  t.equal(desk.owner, A, "B no longer sees it");
  t.end();
});

await t.test("heartbeats alone: within one, and never away from an owner that sees it", (t) => {
  const desk = new Desk();
  desk.announce(A);
  for (let n = 0; n < 20; n++) t.equal(desk.heartbeat(B), "both-claim");
  t.equal(desk.owner, A);
  t.equal(desk.alarms(), 1);
  const other = new Desk();
  other.announce(A);
  other.unseen(A);
  t.equal(other.owner, A, "silence never moves");
  t.equal(other.heartbeat(B), "accepted");
  t.equal(other.owner, B, "the first heartbeat does");
  t.equal(other.state.binding.evidence, "heartbeat");
  other.now += 29_000;
  other.do({ type: "deadline" });
  other.now += 60_000;
  other.do({ type: "deadline" });
  other.do({ type: "deadline" });
  t.match(other.state.binding, { owner: B, phase: "expired" }, "silence only ages it");
  t.end();
});

await t.test("leaving: the next host waits for the old path", (t) => {
  const desk = new Desk();
  desk.announce(A);
  t.equal(desk.do({ type: "leaving", host: B, basedOn: epoch(1) }), "not-owner");
  t.equal(desk.do({ type: "leaving", host: A, basedOn: epoch(0) }), "stale-epoch");
  t.equal(desk.do({ type: "leaving", host: A, basedOn: epoch(1) }), "accepted");
  t.equal(desk.owner, A, "to leave is not to arrive");
  desk.announce(B, "arrive");
  const { drain } = desk.state.binding.outside;
  t.match(drain, { from: A });
  desk.effects.length = 0;
  desk.announce(B, "packet");
  t.same(desk.effects, [], "B says it again: it still waits");
  t.equal(desk.do({ type: "drained", host: A, token: 999_999 }), "stale-epoch", "another marker");
  t.equal(desk.do({ type: "drained", host: B, token: drain?.token ?? 0 }), "stale-epoch", "not B's to say");
  t.equal(desk.do({ type: "drained", host: A, token: drain?.token ?? 0 }), "accepted");
  t.same(desk.effects, [{ do: "drained", host: B, token: drain?.token }]);
  t.equal(desk.state.binding.outside.drain, null);

  // The hooks' words come from two hosts, hence in either order.
  const late = new Desk();
  late.announce(A);
  late.announce(B, "arrive");
  t.match(late.state.binding.outside.drain, { from: A }, "whoever says arrive said leave before");
  t.equal(late.do({ type: "leaving", host: A, basedOn: epoch(1) }), "stale-epoch");
  late.announce(A, "rarp");
  t.equal(late.state.binding.outside.drain, null, "of an arrival that is only seen nothing follows");
  t.end();
});

await t.test("an old host that can pass nothing on is not waited for", (t) => {
  const cases: readonly (readonly [string, (desk: Desk) => void, boolean])[] = [
    ["it is connected", () => undefined, true],
    ["it was connected a moment ago", (desk) => { desk.disconnect(false); }, true],
    ["it has died", (desk) => { desk.disconnect(true); }, false],
    ["it is not listed any more", (desk) => { desk.rules = { ...RULES, hosts: [B] }; }, false],
    ["it has said that the VM leaves", (desk) => { desk.do({ type: "leaving", host: A, basedOn: epoch(1) }); }, true],
    ["it has said so, and died", (desk) => {
      desk.do({ type: "leaving", host: A, basedOn: epoch(1) });
      desk.disconnect(true);
    }, false],
    ["it is connected, and its port is gone", (desk) => { desk.unseen(A); }, true],
  ];
  for (const [name, happens, waits] of cases) {
    const desk = new Desk();
    desk.announce(A);
    happens(desk);
    t.equal(desk.announce(B, "arrive"), "accepted", name);
    t.match(desk.state.binding, { owner: B, outside: { drain: waits ? { from: A } : null } }, name);
  }
  // The owner said that the VM leaves, and its connection is gone by the first sign of the VM elsewhere: whether anybody waits for the old path is one rule, whatever that sign is.
  const signs: readonly (readonly [string, (desk: Desk) => Reason])[] = [
    ["an announcement", (desk) => desk.announce(B, "rarp")],
    ["a heartbeat", (desk) => desk.heartbeat(B)],
    ["a report that it has come", (desk) => desk.runs(B, "running")],
    ["a report that it is there", (desk) => desk.runs(B, "resync")],
  ];
  for (const [sign, comes] of signs) {
    for (const cold of [false, true]) {
      const desk = new Desk();
      desk.announce(A);
      desk.do({ type: "leaving", host: A, basedOn: epoch(1) });
      desk.disconnect(cold);
      const name = `${sign}, the old host ${cold ? "has died" : "was connected a moment ago"}`;
      t.equal(comes(desk), "accepted", name);
      t.match(desk.state.binding, { owner: B, outside: { drain: cold ? null : { from: A } } }, name);
    }
  }
  const candidate = new Desk();
  candidate.announce(A);
  candidate.announce(B, "port");
  candidate.do({ type: "leaving", host: A, basedOn: epoch(1) });
  t.match(candidate.state.binding, { owner: B, outside: { drain: { from: A } } }, "its own word ends its time: it is there");
  t.end();
});

/** One move of the truth, and everything that it makes hosts say. */
type Word = (desk: Desk) => void;

await t.test("any order, twice, late, replayed over A→B→A: one final state, and epochs only grow", (t) => {
  fc.assert(fc.property(
    fc.array(fc.constantFrom(...HOSTS), { minLength: 1, maxLength: 8 }),
    fc.array(fc.tuple(fc.nat(999), fc.nat(999)), { minLength: 20, maxLength: 120 }),
    (path, choices) => {
      const desk = new Desk();
      const words: Word[] = [];
      const say = (word: Word): void => { words.push(word); };
      let last: HostId = A;
      desk.announce(A);
      for (const next of path) {
        if (next === last) continue;
        const from = last;
        const basedOn = desk.state.binding.epoch;
        // What each host says of this move, on the epoch that it knows; all of it may come late, twice, or after the next move.
        const claim: Word = (d) => { d.announce(next, "rarp", basedOn); };
        say(claim);
        say(claim);
        say((d) => { d.announce(next, "packet", basedOn); });
        say((d) => { d.announce(next, "gratuitous-arp", basedOn); });
        say((d) => { d.announce(next, "port", basedOn); });
        say((d) => { d.do({ type: "leaving", host: from, basedOn }); });
        say((d) => { d.unseen(from, basedOn); });
        say((d) => { d.do({ type: "drained", host: from, token: (basedOn + 1) % 0xffff_ffff }); });
        say((d) => { d.do({ type: "deadline" }); });
        for (const [which, how] of choices.slice(0, 12)) {
          const word = words[which % words.length];
          if (how % 3 !== 0) word?.(desk);
        }
        // At the latest the host where it is hears "stale-epoch", looks again, and claims on the epoch that it was told.
        if (desk.owner !== next) desk.announce(next, "rarp");
        if (desk.owner !== next) throw new Error(`${next} has it, ${String(desk.owner)} owns it`);
        last = next;
        choices.push(...choices.splice(0, 12));
      }
      const settled = desk.state.binding;
      // I4: everything that was ever said, again and in any order, changes nothing any more.
      for (const [which] of choices) {
        words[which % Math.max(1, words.length)]?.(desk);
        if (desk.owner !== last || desk.state.binding.epoch !== settled.epoch) throw new Error(`an old word moved it from ${last} to ${String(desk.owner)}`);
      }
    },
  ), { numRuns: RUNS });
  t.end();
});

await t.test("two hosts, the whole home agent: the switch waits for no disk, the acknowledgement does", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  const say = (agent: ScriptedAgent, what: Sighting, basedOn: number, careOf: string = CARE_OF[agent === a ? "host-a" : "host-b"]): Promise<Body<"decision">> =>
    agent.ask({ kind: "announcement", vm: VM, basedOn: epoch(basedOn), locator: ipInIp(ipAddress(careOf)), what, at: millis(1) }, "decision");
  t.match(await say(a, "packet", 0), { reason: "accepted", epoch: 1 });
  t.match(bench.entry(HOME), { active: CARE_OF["host-a"], accept: [CARE_OF["host-a"], CARE_OF["host-b"]] }, "either host's first packet gets through");
  t.match(await a.until("bindingUpdate", (update) => update.vm === VM && update.epoch === 1), { owner: "host-a", peers: [{ host: "host-b", locator: { address: CARE_OF["host-b"] } }] });
  t.match(await say(b, "rarp", 1, "10.9.9.9"), { reason: "foreign-care-of" });

  t.match(await a.ask({ kind: "leaving", vm: VM, basedOn: epoch(1), to: null }, "decision"), { reason: "accepted" });
  bench.markers.length = 0;
  let pointed = "";
  const commit = bench.store.commit.bind(bench.store);
  bench.store.commit = async (...words): ReturnType<typeof commit> => {
    pointed = bench.entry(HOME)?.active ?? "";
    return commit(...words);
  };
  t.match(await say(b, "arrive", 1), { reason: "accepted", epoch: 2 });
  t.equal(pointed, CARE_OF["host-b"], "re-pointed before it was written");
  t.match(bench.markers[0], { careOf: CARE_OF["host-a"], active: CARE_OF["host-b"] }, "a marker behind the last packet to the old host");
  t.equal(b.count("drained"), 0);
  a.tell({ kind: "drained", vm: VM, token: bench.markers[0]?.token ?? 0, overflowed: 0, expired: 0 });
  t.match(await b.until("drained"), { token: bench.markers[0]?.token });
  const lost = async (): Promise<readonly string[]> => (await (await fetch(`http://127.0.0.1:${String(bench.at.api.port)}/metrics`)).text()).split("\n").filter((line) => line.startsWith("careof_external_lost_packets_total"));
  t.match(await a.ask({ kind: "drained", vm: VM, token: 0, overflowed: 3, expired: 4 }, "decision"), { reason: "accepted" }, "what waited and was lost");
  t.match(await bench.agent("host-c").connect(), { decision: { reason: "accepted" } });
  await bench.agents.at(-1)?.ask({ kind: "drained", vm: VM, token: 0, overflowed: 100, expired: 100 }, "decision");
  t.same(await lost(), ['careof_external_lost_packets_total{why="overflowed"} 3', 'careof_external_lost_packets_total{why="expired"} 4'], "of a host that the VM lists, and of no other");
  const sent = bench.markers.length;
  await until("no more markers", () => bench.markers.length - sent <= 1);
  t.match(await a.until("bindingUpdate", (update) => update.vm === VM && update.epoch === 2), { owner: "host-b", forwardTo: { address: CARE_OF["host-b"] } });
  t.match(await bench.where("ext1"), { host: "host-b", epoch: 2, evidence: "announcement" });
  t.match((await bench.call("GET", "/v1/vms/ext1/history")).body, [{ host: "host-b", cause: "announcement", actor: "host-b" }, { host: "host-a" }]);
  t.match(await say(a, "rarp", 1), { reason: "stale-epoch", epoch: 2 }, "a word of before the move");
  t.match(await say(a, "rarp", 2), { reason: "accepted", epoch: 3 });
  t.match(await a.until("drained"), { token: 0 }, "nobody passes anything on: nothing to wait for");
  t.match(await bench.call("POST", "/v1/migrations", { vm: "ext1", host: "host-b" }), { status: 409, body: { code: "unsupported" } });
});
