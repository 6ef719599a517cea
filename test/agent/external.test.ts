import { statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import t from "tap";
import { Held } from "../../agent/external/held.js";
import { awaits, begins, deadlineOf, deliveryOf, DRAIN_LIMIT, DRAIN_SLACK, looks, newcomer, noticed, outside, type OutsideEvent, type OutsideVm } from "../../agent/external/outside-vm.js";
import { fits } from "../../agent/external/pattern.js";
import { openControl } from "../../agent/control.js";
import { command } from "../../deploy/lab/command.js";
import { REPOSITORY } from "../../deploy/lab/program.js";
import { ipAddress, ipv4 } from "../../model/address.js";
import { epoch, millis, vmId } from "../../model/ids.js";
import { drainToken } from "../../model/lead-token.js";
import { ipInIp } from "../../model/locator.js";
import { encodeMarker, isMarker } from "../../net/marker.js";
import { A, B, C, DOWN, held, HOME, PEER, rig, UP, update, VM } from "./external/rig.js";

await t.test("names of ports, and packets that wait", (t) => {
  for (const [pattern, name, does] of [
    ["tap-web*", "tap-web1", true], ["tap-web*", "tap-we", false], ["tap?", "tap1", true], ["tap?", "tap12", false], ["a.b", "axb", false], ["vnet0", "vnet0", true], ["*", "eth0", true], ["tap(1", "tap(1", true],
  ] as const) t.equal(fits(pattern, name), does, `${pattern} ${name}`);
  const queue = new Held({ packets: 3, longest: millis(100) });
  const frame = (n: number): Buffer => Buffer.from([n]);
  queue.put(frame(1), "directly", millis(0));
  queue.put(frame(2), "straggler", millis(10));
  queue.put(frame(3), "directly", millis(20));
  queue.put(frame(4), "straggler", millis(30));
  t.equal(queue.overflowed, 1);
  t.same(queue.take(millis(50), "directly"), [frame(2)]);
  t.same(queue.take(millis(110)), [frame(3)], "the first one has waited too long");
  t.equal(queue.expired, 1);
  queue.put(frame(5), "directly", millis(200));
  queue.put(frame(6), "straggler", millis(201));
  t.same(queue.take(millis(202)), [frame(6), frame(5)], "stragglers were sent before");
  queue.put(frame(7), "straggler", millis(203));
  queue.put(frame(8), "directly", millis(204));
  t.same(queue.take(millis(205), "straggler"), [frame(8)]);
  t.same(queue.take(millis(206)), [frame(7)]);
  for (const [n, came] of [[9, "straggler"], [10, "directly"], [11, "refused"]] as const) queue.put(frame(n), came, millis(207));
  t.same(queue.take(millis(208)), [frame(11), frame(9), frame(10)], "what the port refused came before it left");
  queue.put(frame(12), "refused", millis(209));
  queue.giveUp();
  t.same([queue.size, queue.overflowed], [0, 2]);
  t.end();
});

/** The machine through a list of events; returns the state and everything that was said. */
function play(events: readonly OutsideEvent[], from: OutsideVm = newcomer(update(null, 0))): { state: OutsideVm; said: string[]; now: number } {
  let state = from;
  let now = 1000;
  const said: string[] = [];
  for (const event of events) {
    now += 1;
    const step = outside(state, event, millis(now), A);
    state = step.state;
    said.push(...step.effects.map((effect) => `${effect.do}${effect.do === "announce" ? `:${effect.what}@${String(effect.basedOn)}` : ""}`));
  }
  return { state, said, now };
}

await t.test("it comes, is here, leaves, is passed on, comes back", (t) => {
  const came: OutsideEvent[] = [{ type: "port", port: DOWN }, { type: "binding", update: update(B, 4), registration: true }, { type: "seen", what: "packet" }];
  const before = play(came);
  t.same(before.said, ["announce:packet@4"]);
  t.match(before.state, { phase: "claiming" });
  t.match(deliveryOf(before.state), { to: "hold" }, "the kernel does not send by it yet");
  const up = play([...came, { type: "port", port: UP }]);
  t.match(deliveryOf(up.state), { to: "port", holdDirect: true }, "stragglers go first");
  const here = play([...came, { type: "port", port: UP }, { type: "drained", token: 0 }, { type: "decided", what: "packet", basedOn: epoch(4), reason: "accepted", epoch: epoch(5) }]);
  t.match(here.state, { phase: "here", owner: A, epoch: 5 });
  t.match(deliveryOf(here.state), { to: "port", holdDirect: false });
  t.notOk(looks(here.state, millis(here.now)), "an owner's packets are no news");
  const clear = play([...came, { type: "drained", token: 0 }, { type: "port", port: UP }]);
  t.match(clear.state, { phase: "here" }, "the word came before the link's");
  const slack = play([...came, { type: "port", port: UP }, { type: "drained", token: 77 }]);
  t.match(slack.state, { phase: "claiming" });
  t.equal(deadlineOf(slack.state, millis(slack.now)), slack.now + DRAIN_SLACK, "the last packet of the old path has about as far to go");
  const late = outside(up.state, { type: "drained", token: 77 }, millis(1003 + DRAIN_LIMIT - 5), A).state;
  t.equal(late.until, 1003 + DRAIN_LIMIT, "and the limit holds");

  const left = play([{ type: "leave", to: null }], here.state);
  t.same(left.said, ["leaving"]);
  t.match(deliveryOf(left.state), { to: "host", address: PEER.locator.address, port: UP, holdStragglers: false }, "there is only one other host; the VM may still send");
  const twoPeers = play([{ type: "leave", to: null }], { ...here.state, peers: [PEER, { host: C, locator: ipInIp(ipAddress("10.3.0.2")) }] });
  t.match(deliveryOf(twoPeers.state), { to: "hold" });
  t.match(deliveryOf(play([{ type: "leave", to: C }], twoPeers.state).state), { to: "host", address: "10.3.0.2" });
  const drained = play([{ type: "marker", token: 9 }, { type: "marker", token: 9 }], left.state);
  t.same(drained.said, ["drained"], "once");
  const passing = play([{ type: "binding", update: update(B, 6, { forwardTo: PEER.locator, forwardMs: millis(2000) }), registration: false }], left.state);
  t.match(passing.state, { phase: "passing", epoch: 6 });
  t.match(deliveryOf(passing.state), { to: "host", holdStragglers: true });
  t.notOk(looks(passing.state, millis(passing.now)), "its last frames are on the way");
  t.ok(looks(passing.state, millis(passing.now + 1001)));
  t.match(outside(passing.state, { type: "deadline" }, millis(passing.now + 3000), A).state, { phase: "away" });
  const back = play([{ type: "port", port: DOWN }, { type: "port", port: UP }, { type: "seen", what: "rarp" }], passing.state);
  t.same(back.said, ["unseen", "announce:port@6", "announce:rarp@6"]);

  // It comes back, and goes once more without a word of whoever moves it: the home agent's answer alone says so.
  const again: OutsideEvent[] = [{ type: "seen", what: "arrive" }, { type: "decided", what: "arrive", basedOn: epoch(6), reason: "accepted", epoch: epoch(7) }, { type: "drained", token: 0 }];
  const answered = play([{ type: "marker", token: drainToken(epoch(6)) }], passing.state);
  t.equal(awaits(answered.state), null);
  const gone2 = play([...again, { type: "binding", update: update(B, 8, { forwardTo: PEER.locator, forwardMs: millis(2000) }), registration: false }], answered.state).state;
  t.match(gone2, { phase: "passing", epoch: 8 });
  t.equal(awaits(gone2), "marker", "the earlier one's marker is no answer to this one");
  const stamped = (at: number): OutsideEvent | null => noticed(gone2, { marker: { token: drainToken(epoch(at)), at: millis(1) }, passedMarker: null }, A);
  t.same([stamped(6), stamped(7)], [null, null], "nor what it has left stamped");
  t.same(stamped(8), { type: "marker", token: drainToken(epoch(8)) });
  t.same(play([{ type: "marker", token: drainToken(epoch(6)) }, { type: "marker", token: drainToken(epoch(8)) }, { type: "marker", token: drainToken(epoch(8)) }], gone2).said, ["drained"]);
  const before6 = play([{ type: "marker", token: drainToken(epoch(6)) }, { type: "binding", update: update(B, 6, { forwardTo: PEER.locator, forwardMs: millis(2000) }), registration: false }], left.state);
  t.same([before6.said.filter((word) => word === "drained"), awaits(before6.state)], [["drained"], null], "this move's own may be answered before the word of it comes, and is not answered again");

  const gone = play([{ type: "port", port: null }], here.state);
  t.same(gone.said, ["unseen"], "nobody said so: that is no word on where it went");
  t.match(deliveryOf(gone.state), { to: "host" });
  const bounced = play([{ type: "port", port: DOWN }, { type: "port", port: UP }, { type: "drained", token: 0 }], here.state);
  t.same(bounced.said, ["unseen", "announce:port@5"]);
  t.match(bounced.state, { phase: "here" });
  t.end();
});

await t.test("refused claims: once more on the epoch that was told, and not when ours was taken meanwhile", (t) => {
  const claiming = play([{ type: "port", port: UP }, { type: "binding", update: update(B, 4), registration: false }, { type: "seen", what: "rarp" }]).state;
  t.same(play([{ type: "decided", what: "rarp", basedOn: epoch(4), reason: "stale-epoch", epoch: epoch(6) }], claiming).said, ["announce:rarp@6"]);
  const packet = play([{ type: "decided", what: "packet", basedOn: epoch(4), reason: "stale-epoch", epoch: epoch(6) }], claiming);
  t.same(packet.said, []);
  t.match(packet.state, { phase: "away" });
  t.ok(looks(packet.state, millis(packet.now)), "the next packet tells");
  const both = play([{ type: "decided", what: "port", basedOn: epoch(4), reason: "accepted", epoch: epoch(5) }, { type: "decided", what: "rarp", basedOn: epoch(4), reason: "stale-epoch", epoch: epoch(5) }], claiming);
  t.match(both.state, { phase: "claiming", owner: A });
  const refused = play([{ type: "decided", what: "rarp", basedOn: epoch(4), reason: "both-claim", epoch: epoch(4) }], claiming);
  t.match(refused.state, { phase: "away" });
  t.notOk(looks(refused.state, millis(refused.now)));
  t.match(outside(claiming, { type: "deadline" }, millis(5000), A).state, { phase: "here" }, "nobody answers: what comes directly does not wait for ever");
  t.end();
});

await t.test("the marker that came by the old host opens the direct path at once; one of another move does not", (t) => {
  const claiming = play([{ type: "port", port: UP }, { type: "binding", update: update(B, 4), registration: false }, { type: "seen", what: "arrive" }]).state;
  const passed = (at: number): OutsideEvent => ({ type: "passed", token: drainToken(epoch(at)) });
  const accepted = (what: "arrive" | "port"): OutsideEvent => ({ type: "decided", what, basedOn: epoch(4), reason: "accepted", epoch: epoch(5) });
  t.equal(awaits(claiming), "passed");
  for (const of of [3, 4]) t.match(deliveryOf(play([passed(of)], claiming).state), { to: "port", holdDirect: true }, "it is behind an earlier move's packets");
  const clear = play([passed(5)], claiming).state;
  t.match(deliveryOf(clear), { to: "port", holdDirect: false }, "before the home agent's answer");
  t.match(clear, { phase: "claiming" }, "which it does not take the place of");
  t.equal(awaits(clear), null);
  t.match(play([accepted("arrive")], clear).state, { phase: "here" });
  t.match(play([{ type: "drained", token: 6 }], clear).state, { phase: "here" }, "no slack where it is certain");
  t.match(play([{ type: "binding", update: update(A, 5), registration: false }], clear).state, { phase: "here" });
  t.match(play([accepted("arrive"), passed(4)], claiming).state, { phase: "claiming" });
  t.match(play([accepted("arrive"), passed(5)], claiming).state, { phase: "here" }, "after the answer");
  t.match(play([{ type: "drained", token: 6 }, passed(5), accepted("arrive")], claiming).state, { phase: "here" }, "before the slack is over");
  t.match(deliveryOf(play([{ type: "decided", what: "arrive", basedOn: epoch(4), reason: "both-claim", epoch: epoch(4) }], clear).state), { to: "port", holdDirect: true }, "refused");

  // Its port came up, and the home agent took that for a claim; the guest's first packet is a claim too, and that one is refused.
  const waiting = play([{ type: "binding", update: update(B, 4), registration: false }, { type: "port", port: UP }]);
  t.match(waiting.state, { phase: "away" });
  t.equal(awaits(waiting.state), "passed");
  t.match(deliveryOf(play([passed(5)], waiting.state).state), { to: "port", holdDirect: false });
  t.match(play([passed(5), { type: "seen", what: "packet" }, accepted("port")], waiting.state).state, { phase: "here" });
  const refusal: OutsideEvent = { type: "decided", what: "packet", basedOn: epoch(4), reason: "stale-epoch", epoch: epoch(5) };
  for (const order of [[passed(5), refusal], [refusal, passed(5)]]) {
    const state = play([{ type: "seen", what: "packet" }, ...order], waiting.state).state;
    t.match(deliveryOf(state), { to: "port", holdDirect: false }, "the answer to the port's is on its way");
    t.match(play([accepted("port")], state).state, { phase: "here" });
  }
  const nobody = outside(play([passed(5)], waiting.state).state, { type: "deadline" }, millis(waiting.now + 6000), A).state;
  t.match(deliveryOf(nobody), { to: "port", holdDirect: true }, "nobody moved it here");
  t.equal(awaits(nobody), null, "and nobody looks for ever");
  t.match(deliveryOf(play([passed(5), { type: "port", port: DOWN }, { type: "port", port: UP }], waiting.state).state), { to: "port", holdDirect: true }, "its port has come anew");

  t.ok(begins(newcomer(update(B, 4)), waiting.state), "what an earlier move has left is cleared before the claim");
  t.notOk(begins({ ...waiting.state, until: null }, claiming), "but not where the port's claim may have been taken, and the marker be there");
  t.notOk(begins(claiming, claiming));
  t.same(noticed(claiming, { marker: { token: drainToken(epoch(5)), at: millis(1) }, passedMarker: null }, A), null, "the home agent's own marker is another matter");
  t.same(noticed(claiming, { marker: null, passedMarker: drainToken(epoch(4)) }, A), null);
  t.same(noticed(claiming, { marker: null, passedMarker: drainToken(epoch(5)) }, A), passed(5));
  t.end();
});

const eventOf: fc.Arbitrary<OutsideEvent> = fc.oneof(
  fc.constantFrom<OutsideEvent>({ type: "port", port: UP }, { type: "port", port: DOWN }, { type: "port", port: null }, { type: "port", port: { ...UP, index: 8 } }, { type: "leave", to: null }, { type: "leave", to: B }, { type: "deadline" }),
  fc.record({ type: fc.constant("drained" as const), token: fc.nat(2) }),
  fc.record({ type: fc.constant("marker" as const), token: fc.integer({ min: 1, max: 10 }) }),
  fc.record({ type: fc.constant("passed" as const), token: fc.integer({ min: 1, max: 10 }) }),
  fc.record({ type: fc.constant("seen" as const), what: fc.constantFrom("rarp" as const, "packet" as const, "arrive" as const, "gratuitous-arp" as const) }),
  fc.record({ type: fc.constant("decided" as const), what: fc.constantFrom("rarp" as const, "port" as const, "packet" as const), basedOn: fc.nat(9).map(epoch), reason: fc.constantFrom("accepted" as const, "stale-epoch" as const, "not-owner" as const, "both-claim" as const), epoch: fc.nat(9).map(epoch) }),
  fc.record({ type: fc.constant("binding" as const), registration: fc.boolean(), update: fc.tuple(fc.constantFrom(A, B, null), fc.nat(9), fc.boolean()).map(([owner, at, on]) => update(owner, at, on ? { forwardTo: PEER.locator, forwardMs: millis(500) } : {})) }),
);

await t.test("whatever comes: no epoch goes back, nothing is sent to a port that is down, nothing waits for ever, and the VM's host delivers to it", (t) => {
  fc.assert(fc.property(fc.array(eventOf, { maxLength: 60 }), (events) => {
    let state = newcomer(update(null, 0));
    let now = 1000;
    for (const event of events) {
      now += 7;
      const before = state;
      state = outside(state, event, millis(now), A).state;
      if (state.epoch < before.epoch) throw new Error("an epoch went back");
      if (event.type === "passed" && state !== before && before.owner === B && event.token <= drainToken(before.epoch)) throw new Error("an earlier move's marker counts");
      if (event.type === "marker" && state !== before && event.token < drainToken(before.epoch)) throw new Error("an earlier move's marker is answered");
      if (event.type === "binding" && state.epoch > before.epoch && state.phase === "passing" && before.phase === "here" && awaits(state) !== "marker" && before.marker < drainToken(state.epoch)) throw new Error("a move whose marker nobody waits for");
      if (state.clear && state.phase !== "claiming" && state.phase !== "away") throw new Error(`${state.phase} and clear`);
      if (awaits(state) !== null && state.until === null && state.phase !== "leaving") throw new Error("a marker is waited for without an end");
      const delivery = deliveryOf(state);
      if (delivery.to === "port" && !delivery.port.carrier) throw new Error("to a port that is down");
      if ((state.phase === "claiming" || state.phase === "passing") && state.until === null) throw new Error(`${state.phase} without an end`);
      if (state.phase !== "leaving" && state.phase !== "passing" && delivery.to === "host") throw new Error("passed on though it has not left");
    }
    // The VM is here, for certain, and the home agent says so.
    for (const event of [{ type: "port", port: DOWN }, { type: "port", port: UP }, { type: "seen", what: "arrive" }, { type: "decided", what: "arrive", basedOn: epoch(9), reason: "accepted", epoch: epoch(10) }, { type: "drained", token: 0 }] as const) state = outside(state, event, millis(now += 1), A).state;
    if (state.phase !== "here") state = outside(state, { type: "deadline" }, millis(now + 300), A).state;
    const delivery = deliveryOf(state);
    if (delivery.to !== "port" || delivery.holdDirect) throw new Error(`it is here, and its packets go to ${delivery.to}`);
  }), { numRuns: 2000 });
  t.end();
});

await t.test("the rim: ports, sights, entries, held packets, hooks, a restart", async (t) => {
  const { directory, clock, log, said, pass, make } = rig(t);
  const first = await make();
  const { vms, eyes, tunnel, ports } = first;
  t.ok(vms.binding(update(B, 3), true));
  t.notOk(vms.binding(update(B, 3, { vm: vmId("web2"), spec: { ...update(B, 3).spec, vm: vmId("web2"), driver: "qemu" } }), true));
  t.match(tunnel.entries(), [{ home: HOME, role: "deliver", port: "tap-web1", hold: { device: "co-hold", from: "all" }, stragglersFrom: ["10.2.0.2"] }]);
  t.equal(eyes.sights[0]?.sight.armed, true);
  eyes.waiting.push(held("straggler", 1), held("directly", 2));
  eyes.heard?.held();
  t.match(vms.views(), [{ phase: "away", held: 2 }]);

  t.throws(() => vms.arrive(VM), { code: "no-link" });
  t.throws(() => vms.leave(VM, null), { code: "not-running" });
  t.throws(() => vms.arrive(vmId("nobody")), { code: "unknown-vm" });
  eyes.sights[0]?.seen("rarp");
  t.match(said.at(-1), { kind: "announcement", what: "rarp", basedOn: 3 });
  eyes.change("other0", 9, true);
  eyes.change("tap-web1", 7, true);
  t.same(ports.frames.map(({ name, frame }) => [name, frame[14], Buffer.from(frame.subarray(6, 12)).toString("hex")]), [["tap-web1", 1, "02ca0f000001"]], "the straggler, from the gateway's MAC");
  pass(3);
  clock.advance(2);
  t.equal(ports.frames.length, 1, "a marker of the move before");
  vms.drained(VM, 0);
  t.equal(ports.frames.length, 2);
  t.match(tunnel.entries(), [{ port: "tap-web1", hold: { device: "co-hold", from: "port" } }]);
  t.equal(eyes.sights[0]?.sight.armed, false);
  first.answer("accepted", 4);
  await new Promise(setImmediate);
  t.match(vms.reports(), [{ vm: VM, state: "runs", basedOn: 4 }]);
  clock.advance(50);
  await new Promise(setImmediate);
  t.match(ports.list(), [{ name: "tap-web1", kind: "external" }], "the stack's slow path came after");

  const socket = join(directory, "control.sock");
  const before = process.umask(0);
  const opening = openControl(socket, vms, log);
  t.equal(statSync(socket).mode & 0o777, 0o600, "from its first moment on it is its owner's alone");
  t.equal(process.umask(before), 0, "and what else is made is as it was");
  const control = await opening;
  const careof = async (...words: string[]): Promise<{ code: number; stdout: string; stderr: string }> => command([process.execPath, join(REPOSITORY, "dist", "cli", "main.js"), "port", ...words]);
  t.match(await careof("leave", "web1", "--socket", socket, "--to", "host-x"), { code: 1, stderr: /unknown-host/ });
  t.match(await careof("leave", "nobody", "--socket", socket), { code: 1, stderr: /unknown-vm/ });
  t.match(await careof("leave", "web1", "--socket", join(directory, "no.sock")), { code: 1, stderr: /agent-unreachable/ });
  t.match(await careof("leave"), { code: 2 });
  writeFileSync(join(directory, "agent.yaml"), `name: host-a\nrunDir: ${directory}\n`);
  const left = await careof("leave", "web1", "--config", join(directory, "agent.yaml"), "--output", "json");
  t.match(JSON.parse(left.stdout), { vm: "web1", phase: "leaving", owner: "host-a", epoch: 4 });
  t.match(said.at(-1), { kind: "leaving", basedOn: 4 });
  t.match(tunnel.entries(), [{ role: "forward", to: "10.2.0.2", sender: { port: "tap-web1" } }]);
  t.equal(tunnel.stamps(HOME).passedMarker, null, "what is left of another move was cleared");
  pass(3);
  t.match(await careof("arrive", "web1", "--socket", socket), { code: 0, stdout: /claiming/ });
  const marker = encodeMarker({ outer: { source: ipv4("192.0.2.1"), destination: ipv4("10.1.0.2") }, inner: { source: ipv4("192.0.2.1"), destination: ipv4("198.51.100.7") }, token: 9 }).subarray(20);
  eyes.waiting.push(held("directly", 3), { home: ipv4("198.51.100.7"), came: "directly", number: 9, frame: Buffer.concat([Buffer.alloc(14), marker]) }, held("directly", 4));
  eyes.heard?.held();
  clock.advance(2);
  t.equal(ports.frames.length, 2, "what comes directly waits");
  const [send, take] = [ports.sendFrame.bind(ports), eyes.takeHeld.bind(eyes)];
  const held6 = [held("directly", 6)];
  const waits: boolean[] = [];
  ports.sendFrame = (name, frame) => {
    send(name, frame);
    eyes.waiting.push(...held6.splice(0));
  };
  eyes.takeHeld = () => {
    const frames = take();
    if (frames.length > 0) waits.push(tunnel.entries().some((entry) => entry.role === "deliver" && entry.hold?.from === "home-agents"));
    return frames;
  };
  pass(4);
  clock.advance(1);
  t.match(vms.views(), [{ phase: "here", held: 0 }]);
  t.same(ports.frames.slice(2).map(({ frame }) => frame[14]), [3, 4, 6], "and goes to the port, the marker does not");
  t.same(waits, [true], "what comes while that is sent goes before the switch too");
  vms.leave(VM, null);
  eyes.waiting.push(held("directly", 5), { home: ipv4("198.51.100.7"), came: "directly", number: 9, frame: Buffer.concat([Buffer.alloc(14), marker]) });
  eyes.heard?.held();
  t.same(eyes.passed.map(({ frame, to }) => [isMarker(frame.subarray(14)), to]), [[false, "10.2.0.2"], [true, "10.2.0.2"]], "to another host it goes, behind what it came behind");
  vms.arrive(VM);
  await control.close();
  clock.advance(50);
  await new Promise(setImmediate);
  vms.close();

  const second = await make();
  t.match(second.vms.views(), [{ vm: VM, owner: "host-a", epoch: 4, phase: "away" }], "its port is down at the restart");
  second.eyes.change("tap-web1", 7, true);
  t.match(said.at(-1), { kind: "announcement", what: "port", basedOn: 4 });
  const other = ipAddress("198.51.100.9");
  second.vms.binding(update(A, 4, { spec: { ...update(A, 4).spec, homeAddresses: [other] } }), false);
  t.same(second.tunnel.entries().map(({ home }) => home), [other], "another address takes the place of the one before");
  clock.advance(50);
  await new Promise(setImmediate);
  t.match(second.ports.list(), [{ name: "tap-web1", homeAddresses: [other] }]);
  second.vms.forget(VM);
  t.same(second.tunnel.entries(), []);
  second.vms.close();
});
