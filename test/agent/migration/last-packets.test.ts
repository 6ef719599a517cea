import fc from "fast-check";
import t from "tap";
import type { Guest } from "../../../agent/hypervisor/driver.js";
import { LAST_PACKETS_LIMIT, LastPacketsAwaited, LastPacketsSent } from "../../../agent/migration/last-packets.js";
import type { SourceRelay } from "../../../agent/migration/relay.js";
import { SourceRun } from "../../../agent/migration/run-source.js";
import { Urgency } from "../../../agent/migration/urgency.js";
import { TargetRun } from "../../../agent/migration/run-target.js";
import { beginSource } from "../../../agent/migration/source.js";
import { beginTarget } from "../../../agent/migration/target.js";
import type { CareofError } from "../../../model/errors.js";
import { epoch, millis, type Epoch } from "../../../model/ids.js";
import { departureToken, leadToken } from "../../../model/lead-token.js";
import { createLogger } from "../../../model/log.js";
import { FakeClock } from "../../model/fake-clock.js";
import { PLAN } from "./world.js";

const EPOCH = epoch(7);

/** Milliseconds until the guest may run, `null` for not within a second. */
async function waits(clock: FakeClock, awaited: LastPacketsAwaited): Promise<number | null> {
  const found: number[] = [];
  awaited.wait().then((ms) => { if (ms !== null) found.push(ms); }, (thrown: unknown) => { throw thrown; });
  await clock.advanceAsync(0);
  for (let ms = 0; ms < 1000 && found.length === 0; ms += 5) await clock.advanceAsync(5);
  return found[0] ?? null;
}

void t.test("the source says it behind the last packet, more than once", (t) => {
  const clock = new FakeClock();
  const sent: number[] = [];
  const last = new LastPacketsSent(clock, EPOCH, (token) => { sent.push(token); });
  t.same(sent, []);
  last.begin();
  t.same(sent, [departureToken(EPOCH)], "at once");
  clock.advance(1000);
  t.equal(sent.length, 20);
  t.same([...new Set(sent)], [departureToken(EPOCH)]);
  last.begin();
  last.close();
  t.equal(clock.timers().length, 0, "no timer is left");
  clock.advance(1000);
  t.equal(sent.length, 21);
  last.begin();
  clock.advance(1000);
  t.equal(sent.length, 21, "the guest runs here again: its packets are not at an end");
  t.end();
});

void t.test("its token is one that a marker can have and no other marker of a move has", (t) => {
  fc.assert(fc.property(fc.nat(Number.MAX_SAFE_INTEGER), (n) => {
    const token = departureToken(n as Epoch);
    return Number.isInteger(token) && token > 100_000_000 && token <= 0xffff_ffff && (token !== leadToken(n as Epoch) || n >= 0x7fff_ffff);
  }));
  t.end();
});

void t.test("the target waits for the word, not longer than the limit, and not at all when it has come before", async (t) => {
  const clock = new FakeClock();
  t.equal(await waits(clock, new LastPacketsAwaited(clock, EPOCH)), LAST_PACKETS_LIMIT, "nobody says anything");
  const early = new LastPacketsAwaited(clock, EPOCH);
  t.equal(early.seen(1), false, "one of its own markers");
  t.equal(early.seen(departureToken(epoch(6))), false, "of another move");
  t.equal(early.seen(departureToken(EPOCH)), true);
  t.equal(await waits(clock, early), 0);
  t.equal(await waits(clock, early), 0, "again");
  const late = new LastPacketsAwaited(clock, EPOCH);
  clock.after("word", millis(40), () => { late.seen(departureToken(EPOCH)); });
  t.equal(await waits(clock, late), 40);
  const closed = new LastPacketsAwaited(clock, EPOCH);
  closed.close();
  t.equal(await closed.wait(), null, "the agent ends: its next life lets the guest run");
  const given = new LastPacketsAwaited(clock, EPOCH);
  const waiting = given.wait();
  t.equal(clock.timers().length, 1);
  given.close();
  t.equal(await waiting, null, "who waits is told, and does not hang");
  t.equal(clock.timers().length, 0, "and no timer is left");
  t.equal(await waits(clock, early), 0);
  t.equal(clock.timers().length, 0, "nor by one who has not to wait");
});

/** A guest that has everything, as far as the target's half of a move asks. */
class LoadedGuest implements Guest {
  readonly vm = PLAN.vm;
  readonly identity = { pid: 1, startTicks: "1", bootId: "", control: "", console: "" };
  readonly reachable = true;
  resumed = 0;
  destroyed = 0;
  get disks(): never { throw new Error("it has none"); }
  subscribe(): () => void { return () => undefined; }
  status(): Promise<"running" | "loaded"> { return Promise.resolve(this.resumed > 0 ? "running" : "loaded"); }
  resume(): Promise<void> { this.resumed++; return Promise.resolve(); }
  progress(): never { throw new Error("nobody asks"); }
  receive(): Promise<void> { return Promise.resolve(); }
  send(): Promise<void> { return Promise.resolve(); }
  preferSwitchover(): Promise<void> { return Promise.resolve(); }
  forceSwitchover(): Promise<void> { return Promise.resolve(); }
  halt(): Promise<void> { return Promise.resolve(); }
  startPostcopy(): Promise<void> { return Promise.resolve(); }
  continueSwitchover(): Promise<void> { return Promise.resolve(); }
  cancelSend(): Promise<void> { return Promise.resolve(); }
  powerDown(): Promise<void> { return Promise.resolve(); }
  destroy(): Promise<void> { this.destroyed++; return Promise.resolve(); }
  release(): Promise<void> { return Promise.resolve(); }
}

/** A target that has its guest's state and waits for RELEASE alone. */
async function target(clock: FakeClock): Promise<{ readonly run: TargetRun; readonly guest: LoadedGuest; readonly records: string[]; readonly reports: string[] }> {
  const guest = new LoadedGuest();
  const records: string[] = [];
  const reports: string[] = [];
  const run = new TargetRun(beginTarget(PLAN), {
    clock, log: createLogger("test", "silent"),
    prepare: (owned) => { owned({ guest }); return Promise.resolve(); },
    record: (state) => { records.push(state); }, recordArrived: () => undefined,
    stamps: () => null, overflowed: () => 0, undelivered: () => null, sendUpMarker: () => undefined,
    report: ({ kind }) => { reports.push(kind); }, runs: () => undefined, undo: () => Promise.resolve(),
  }, null);
  await run.prepare();
  run.take({ kind: "stream", status: "completed" });
  return { run, guest, records, reports };
}

void t.test("a target that has the right to run lets the guest stand for its last packets, and reports when it runs", async (t) => {
  const clock = new FakeClock();
  const { run, guest, records, reports } = await target(clock);
  run.granted(PLAN.epoch);
  await clock.advanceAsync(40);
  t.same([records, guest.resumed, reports], [["continued"], 0, []], "it may, and stands");
  run.uplinkSeen(3);
  await clock.advanceAsync(5);
  t.equal(guest.resumed, 0, "one of its own markers says something else");
  run.uplinkSeen(departureToken(PLAN.epoch));
  await clock.advanceAsync(5);
  t.equal(guest.resumed, 1);
  t.ok(reports.includes("running"));
  run.close();
});

void t.test("a source or a home agent that says nothing costs a quarter of a second, not the guest", async (t) => {
  const clock = new FakeClock();
  const { run, guest } = await target(clock);
  run.granted(PLAN.epoch);
  await clock.advanceAsync(LAST_PACKETS_LIMIT - 1);
  t.equal(guest.resumed, 0);
  await clock.advanceAsync(10);
  t.equal(guest.resumed, 1);
  run.close();
});

void t.test("the word that came before RELEASE costs nothing", async (t) => {
  const clock = new FakeClock();
  const { run, guest } = await target(clock);
  run.uplinkSeen(departureToken(PLAN.epoch));
  run.granted(PLAN.epoch);
  await clock.advanceAsync(0);
  t.equal(guest.resumed, 1);
  run.close();
});

void t.test("a target that ends while its guest stands neither continues it later nor leaves a timer", async (t) => {
  const clock = new FakeClock();
  const { run, guest, reports } = await target(clock);
  run.granted(PLAN.epoch);
  await clock.advanceAsync(40);
  run.take({ kind: "guest", status: "gone", at: millis(40) });
  await clock.advanceAsync(5);
  t.ok(reports.includes("targetEnded"));
  await clock.advanceAsync(1000);
  t.equal(guest.resumed, 0);
  t.equal(guest.destroyed, 1, "what was to be done behind it is done");
  run.close();
  t.equal(clock.timers().length, 0);

  const second = await target(clock);
  second.run.granted(PLAN.epoch);
  await clock.advanceAsync(40);
  second.run.uplinkSeen(departureToken(PLAN.epoch));
  second.run.close();
  await clock.advanceAsync(1000);
  t.equal(second.guest.resumed, 0, "the agent ended at the very moment");
  t.equal(clock.timers().length, 0);
});

void t.test("a source that is told to give up says no more that its guest's packets are at an end", async (t) => {
  const clock = new FakeClock();
  const markers: number[] = [];
  let closed: (cause: CareofError | null) => void = () => undefined;
  const relay: SourceRelay = {
    socket: "", diskSocket: "", closed: new Promise((resolve) => { closed = resolve; }), bytes: 0, diskBytes: 0,
    hold: () => undefined, stall: () => undefined, taken: () => Promise.resolve(), flow: () => undefined, open: () => 0, endDisks: () => Promise.resolve(), release: () => Promise.resolve(), releaseEarly: () => undefined,
    cut: (cause) => { closed(cause); },
  };
  const log = createLogger("test", "silent");
  const run = new SourceRun(beginSource(PLAN), {
    clock, log, urgency: new Urgency(log), guest: null, stream: { lead: false, maxBandwidth: 0, downtimeLimitMs: millis(20), autoConverge: false, channels: 1, postcopy: false },
    openRelay: () => Promise.resolve(relay), record: () => undefined, stamps: () => null, queue: () => null, clearStamps: () => undefined, sendUpMarker: (token) => { markers.push(token); },
    forward: () => undefined, passOn: () => "sent", deliver: () => undefined, say: () => undefined, report: () => undefined, destroyed: () => Promise.resolve(),
  });
  await clock.advanceAsync(1);
  run.take({ kind: "stopped", at: millis(1) });
  await clock.advanceAsync(10);
  const before = markers.length;
  t.ok(before > 0, "it has begun");
  run.take({ kind: "abort", reason: "cancelled-by-operator" });
  await clock.advanceAsync(200);
  t.equal(markers.length, before);
  run.close();
});
