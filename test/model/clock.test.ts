import t from "tap";
import { SystemClock, type Clock } from "../../model/clock.js";
import { millis } from "../../model/ids.js";
import { FakeClock } from "./fake-clock.js";

const fake = new FakeClock();
const clocks: readonly (readonly [string, Clock, (ms: number) => Promise<void>])[] = [
  ["SystemClock", new SystemClock({ keepAlive: true }), (ms) => new Promise((resolve) => { setTimeout(resolve, ms + 5); })],
  ["FakeClock", fake, (ms) => fake.advanceAsync(ms)],
];

for (const [name, clock, pass] of clocks) {
  t.test(`${name} keeps the contract`, async (t) => {
    const wall = clock.now();
    const begin = clock.monotonic();
    const fired: string[] = [];
    let late = -1;
    const timer = clock.after("one", millis(20), () => {
      fired.push("one");
      late = clock.monotonic() - begin - 20;
    });
    t.equal(timer.name, "one");
    clock.after("now", millis(0), () => fired.push("now"));
    clock.after("past", millis(-5), () => fired.push("past"));
    const never = clock.after("never", millis(10), () => fired.push("never"));
    t.same(fired, [], "never synchronously");
    never.cancel();
    never.cancel();
    await pass(40);
    t.same(fired.sort(), ["now", "one", "past"], "once each, and not what was cancelled");
    t.ok(late >= -1, `not before its time (${String(late)} ms)`);
    timer.cancel();
    await pass(10);
    t.equal(fired.length, 3, "once only, and cancelling what has fired does nothing");
    const chained: number[] = [];
    clock.after("outer", millis(5), () => { clock.after("inner", millis(5), () => chained.push(clock.monotonic())); });
    await pass(40);
    t.equal(chained.length, 1, "a timer may set another");
    const end = clock.monotonic();
    t.ok(end - begin >= 80, "monotonic moves");
    t.ok(Math.abs(clock.now() - wall - (end - begin)) < 1000, "and so does the wall clock");
    t.ok(clock.now() > Date.UTC(2020, 0, 1), "which counts from 1970");
  });
}

t.test("SystemClock is the kernel's CLOCK_MONOTONIC with microseconds", (t) => {
  const clock = new SystemClock();
  const before = Number(process.hrtime.bigint()) / 1e6;
  const seen = clock.monotonic();
  t.ok(seen >= before && seen < before + 1000);
  let last = seen;
  for (let i = 0; i < 1000; i++) {
    const next = clock.monotonic();
    if (next < last) t.fail("went back");
    last = next;
  }
  t.ok(!Number.isInteger(seen) || !Number.isInteger(last));
  t.end();
});

t.test("FakeClock stands still, fires in order, and tells what is set", async (t) => {
  const clock = new FakeClock({ now: 1000, monotonic: 0 });
  const fired: [string, number][] = [];
  const at = (label: string) => () => { fired.push([label, clock.monotonic()]); };
  clock.after("c", millis(30), at("c"));
  clock.after("a", millis(10), () => {
    at("a")();
    clock.after("b", millis(10), at("b"));
  });
  clock.after("b2", millis(20), at("b2"));
  t.same([clock.timers(), clock.untilNext()], [["a", "b2", "c"], 10]);
  clock.advance(29);
  t.same(fired, [["a", 10], ["b2", 20], ["b", 20]], "each at its own time, in the order in which they were set");
  t.same([clock.monotonic(), clock.now()], [29, 1029]);
  clock.setWall(5);
  clock.advance(1);
  t.same([fired.at(-1), clock.now(), clock.untilNext()], [["c", 30], 6, undefined], "a jump of the wall clock moves no timer");
  let settled = "";
  clock.after("promise", millis(1), () => {
    Promise.resolve().then(() => { settled += "1"; }).then(() => { settled += "2"; }).catch((thrown: unknown) => { t.fail(String(thrown)); });
  });
  await clock.advanceAsync(1);
  t.equal(settled, "12", "promises settle in between");
});
