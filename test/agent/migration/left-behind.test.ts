import { Buffer } from "node:buffer";
import t from "tap";
import { LeftBehind, type PassedOn } from "../../../agent/migration/left-behind.js";
import { SourceRun } from "../../../agent/migration/run-source.js";
import { recoverSource } from "../../../agent/migration/source.js";
import { Urgency } from "../../../agent/migration/urgency.js";
import { millis } from "../../../model/ids.js";
import { createLogger } from "../../../model/log.js";
import { FakeClock } from "../../model/fake-clock.js";
import { PLAN } from "./world.js";

function world(waiting: number, answer: (packet: Buffer) => PassedOn = () => "sent"): { readonly left: LeftBehind; readonly clock: FakeClock; readonly passedOn: number[]; readonly taken: number[]; readonly closed: () => number } {
  const clock = new FakeClock();
  const packets = Array.from({ length: waiting }, (_, index) => Buffer.from([index >> 8, index & 255]));
  const passedOn: number[] = [];
  const taken: number[] = [];
  let closed = 0;
  const left = new LeftBehind({
    clock, log: createLogger("agent", "silent"),
    queue: () => ({
      isEmpty: () => packets.length === 0,
      take: (limit) => {
        const some = packets.splice(0, limit);
        taken.push(some.length);
        return { frames: some.length, packets: some, unfit: 0 };
      },
      close: () => { closed++; },
    }),
    passOn: (packet) => {
      const passed = answer(packet);
      if (passed === "sent") passedOn.push(packet.readUInt16BE(0));
      return passed;
    },
  });
  return { left, clock, passedOn, taken, closed: () => closed };
}

void t.test("what the guest had not taken goes after it, in order and once", (t) => {
  const { left, clock, passedOn, taken, closed } = world(1000);
  left.begin();
  t.equal(passedOn.length, 0, "RELEASE goes first");
  clock.advance(4);
  t.equal(passedOn.length, 0);
  left.begin();
  clock.advance(100);
  t.same(passedOn, Array.from({ length: 1000 }, (_, index) => index));
  t.ok(taken.every((portion) => portion < 100), "not all in one turn");
  t.equal(taken.reduce((sum, each) => sum + each, 0), 1000);
  t.equal(closed(), 1);
  left.close();
  t.equal(closed(), 1);
  t.end();
});

void t.test("one that cannot be sent does not keep the others", (t) => {
  const { left, clock, passedOn } = world(5, (packet) => {
    if (packet[1] === 2) throw new Error("too big");
    return "sent";
  });
  left.begin();
  clock.advance(10);
  t.same(passedOn, [0, 1, 3, 4]);
  t.end();
});

void t.test("nothing more is taken from a guest that runs here again", (t) => {
  const { left, clock, passedOn, closed } = world(1000, () => {
    if (passedOn.length === 10) left.close();
    return "sent";
  });
  left.begin();
  clock.advance(100);
  t.ok(passedOn.length > 10 && passedOn.length < 100, "what has been taken is sent");
  t.equal(closed(), 1);
  left.begin();
  clock.advance(100);
  t.ok(passedOn.length < 100);
  t.end();
});

void t.test("where the way out is full, the rest waits, in order", (t) => {
  let room = 100;
  const { left, clock, passedOn } = world(300, () => (room-- > 0 ? "sent" : "full"));
  left.begin();
  clock.advance(50);
  t.equal(passedOn.length, 100);
  room = 1000;
  clock.advance(50);
  t.same(passedOn, Array.from({ length: 300 }, (_, index) => index));
  t.end();
});

void t.test("before the guest's process goes, everything at once", (t) => {
  for (const begun of [0, 5]) {
    const { left, clock, passedOn, closed } = world(1000);
    left.begin();
    clock.advance(begun);
    left.finish();
    t.equal(passedOn.length, 1000);
    t.equal(closed(), 1);
    clock.advance(100);
    t.equal(passedOn.length, 1000);
  }
  const never = world(10);
  never.left.finish();
  t.same(never.taken, [], "a guest that was not released keeps its own");
  let room = 5;
  const full = world(50, () => (room-- > 0 ? "sent" : "full"));
  full.left.begin();
  full.left.finish();
  t.equal(full.passedOn.length, 5, "it does not wait for room");
  t.equal(full.closed(), 1);
  t.end();
});

void t.test("nor is its queue looked at when it was taken back at once", (t) => {
  const { left, clock, taken } = world(10);
  left.begin();
  left.close();
  clock.advance(100);
  t.same(taken, []);
  t.end();
});

/** A source whose guest has been released, with packets in front of its port. */
function released(): { readonly run: SourceRun; readonly clock: FakeClock; readonly passedOn: () => number } {
  const clock = new FakeClock();
  const log = createLogger("test", "silent");
  const left = Array.from({ length: 10 }, () => Buffer.alloc(20));
  let passedOn = 0;
  const run = new SourceRun(recoverSource(PLAN, "released", { stopAt: null, markerAt: null, bytes: 0 }, false), {
    clock, log, urgency: new Urgency(log), guest: null, stream: { lead: false, maxBandwidth: 0, downtimeLimitMs: millis(20), autoConverge: false, channels: 1, postcopy: false },
    openRelay: () => Promise.reject(new Error("none")), record: () => undefined, stamps: () => null, clearStamps: () => undefined, sendUpMarker: () => undefined,
    queue: () => ({ isEmpty: () => left.length === 0, take: (limit) => { const packets = left.splice(0, limit); return { frames: packets.length, packets, unfit: 0 }; }, close: () => undefined }),
    passOn: () => { passedOn++; return "sent"; },
    forward: () => undefined, deliver: () => undefined, say: () => undefined, report: () => undefined, destroyed: () => Promise.resolve(),
  });
  return { run, clock, passedOn: () => passedOn };
}

void t.test("of a released guest: after a moment, at its end at the latest, and never once it may run here again", async (t) => {
  const later = released();
  await later.clock.advanceAsync(100);
  t.equal(later.passedOn(), 10);
  later.run.close();

  const revoked = released();
  await revoked.clock.advanceAsync(1);
  t.equal(revoked.run.take({ kind: "revoke" }), "accepted");
  await revoked.clock.advanceAsync(1);
  t.equal(revoked.passedOn(), 10);
  revoked.run.close();

  const resumed = released();
  await resumed.clock.advanceAsync(1);
  t.equal(resumed.run.take({ kind: "resume" }), "accepted");
  await resumed.clock.advanceAsync(100);
  t.equal(resumed.passedOn(), 0);
  resumed.run.close();
});
