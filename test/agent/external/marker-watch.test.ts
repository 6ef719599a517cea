import t from "tap";
import { MarkerWatch } from "../../../agent/external/marker-watch.js";
import { vmId, type VmId } from "../../../model/ids.js";
import { FakeClock } from "../../model/fake-clock.js";

const [ONE, TWO] = [vmId("one"), vmId("two")];

function made(looked: (vm: VmId, watch: MarkerWatch) => void = () => undefined): { readonly clock: FakeClock; readonly watch: MarkerWatch; readonly looks: Map<VmId, number>; readonly during: (ms: number) => Record<string, number> } {
  const clock = new FakeClock();
  const looks = new Map<VmId, number>();
  const watch: MarkerWatch = new MarkerWatch(clock, (vm) => {
    looks.set(vm, (looks.get(vm) ?? 0) + 1);
    looked(vm, watch);
  });
  const during = (ms: number): Record<string, number> => {
    looks.clear();
    clock.advance(ms);
    return Object.fromEntries(looks);
  };
  return { clock, watch, looks, during };
}

await t.test("often at first, then less and less; something new begins anew, nothing ends it", (t) => {
  const { clock, watch, during } = made();
  t.same(clock.timers(), []);
  watch.set(ONE, "its marker");
  t.same(during(1), { one: 1 }, "within a millisecond");
  t.same(during(49), { one: 49 });
  t.same(during(450), { one: 90 });
  t.same(during(4500), { one: 225 });
  watch.set(ONE, "its marker");
  t.same(during(20), { one: 1 }, "said again: nothing new");
  watch.set(ONE, "another");
  watch.set(TWO, "its marker");
  t.same(during(1), { one: 1, two: 1 });
  watch.set(ONE, null);
  t.same(during(10), { two: 10 });
  watch.close();
  t.same(clock.timers(), []);
  watch.set(ONE, null);
  t.same(clock.timers(), []);
  t.end();
});

await t.test("what a look finds counts at once, for whichever VM", (t) => {
  const { clock, watch, during } = made((vm, watch) => {
    if (vm === ONE) watch.set(TWO, null);
    watch.set(ONE, "the next");
  });
  watch.set(ONE, "its marker");
  watch.set(TWO, "its marker");
  t.same(during(1), { one: 1 });
  t.same(during(1), { one: 1 });
  watch.close();
  t.same(clock.timers(), []);
  t.end();
});

await t.test("a change each few microseconds puts no look off", (t) => {
  const { clock, watch, looks } = made();
  watch.set(ONE, "its marker");
  for (let n = 0; n < 100; n++) {
    clock.advance(0.1);
    watch.set(TWO, String(n));
  }
  t.ok((looks.get(ONE) ?? 0) >= 9, `${String(looks.get(ONE))} in 10 ms`);
  t.end();
});

await t.test("many VMs: a bounded number of looks, everybody has a turn, and a new one does not wait for those that have waited long", (t) => {
  const { clock, watch, looks, during } = made();
  const all = Array.from({ length: 2000 }, (_, n) => vmId(`vm-${String(n)}`));
  for (const vm of all) watch.set(vm, "its marker");
  t.equal(clock.timers().length, 1, "one timer for all");
  for (let ms = 0; ms < 600; ms++) {
    looks.clear();
    clock.advance(1);
    const sum = [...looks.values()].reduce((a, b) => a + b, 0);
    if (sum > 40) t.fail(`${String(sum)} looks in a millisecond`);
  }
  const counts = during(1000);
  t.equal(Object.keys(counts).length, all.length, "each had one");
  watch.set(ONE, "its marker");
  t.match(during(2), { one: 2 });
  t.end();
});
