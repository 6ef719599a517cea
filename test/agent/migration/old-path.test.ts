import t from "tap";
import { OldPath } from "../../../agent/migration/old-path.js";
import { millis, type Millis } from "../../../model/ids.js";
import { FakeClock } from "../../model/fake-clock.js";

const TOKEN = 4711;
const LIMIT = millis(500);

/** A source whose guest has so many packets in front of its port, and takes one a millisecond. */
function world(waiting: number | null): { readonly clock: FakeClock; readonly path: OldPath; readonly over: Millis[]; readonly arrive: (token: number) => Millis; readonly closed: () => number } {
  const clock = new FakeClock();
  const start = clock.monotonic();
  const over: Millis[] = [];
  let marker: { token: number; at: Millis } | null = null;
  let closed = 0;
  const path = new OldPath({
    clock, stamps: () => ({ marker, passedMarker: null, firstPacket: null, behindMarker: null, firstForwarded: null }),
    queue: () => (waiting === null ? null : { isEmpty: () => clock.monotonic() - start >= waiting, take: () => ({ frames: 0, packets: [], unfit: 0 }), close: () => { closed++; } }),
  });
  return {
    clock, path, over, closed: () => closed,
    arrive: (token) => {
      marker = { token, at: clock.monotonic() };
      return marker.at;
    },
  };
}

void t.test("the marker's arrival ends it, where nothing waits for the guest", (t) => {
  for (const waiting of [0, null]) {
    const { clock, path, over, arrive, closed } = world(waiting);
    path.watch(TOKEN, LIMIT, (at) => { over.push(at); });
    clock.advance(20);
    arrive(TOKEN + 1);
    clock.advance(20);
    t.same(over, [], "another move's");
    const at = arrive(TOKEN);
    clock.advance(LIMIT);
    t.same(over, [at]);
    t.equal(closed(), waiting === null ? 0 : 1);
  }
  t.end();
});

void t.test("a guest that has not taken everything is waited for, and was not deaf meanwhile", (t) => {
  const { clock, path, over, arrive, closed } = world(90);
  path.watch(TOKEN, LIMIT, (at) => { over.push(at); });
  clock.advance(10);
  const at = arrive(TOKEN);
  clock.advance(75);
  t.same(over, []);
  clock.advance(10);
  t.equal(over.length, 1);
  t.ok((over[0] ?? 0) - at > 70 && (over[0] ?? 0) - at < 81, "the last look that found something");
  t.equal(closed(), 1);
  clock.advance(LIMIT);
  t.equal(over.length, 1);
  t.end();
});

void t.test("a guest that never takes it is not waited for long; of a marker that never comes, and of an end in between, nothing is said and nothing is left", (t) => {
  const never = world(10_000);
  never.path.watch(TOKEN, LIMIT, (at) => { never.over.push(at); });
  never.arrive(TOKEN);
  never.clock.advance(140);
  t.same(never.over, [], "it is waited for");
  never.clock.advance(LIMIT);
  t.equal(never.over.length, 1, "and not for ever: others may fill its queue all the time");
  t.equal(never.closed(), 1);

  const lost = world(0);
  lost.path.watch(TOKEN, LIMIT, (at) => { lost.over.push(at); });
  lost.clock.advance(LIMIT + 10);
  t.same([lost.over, lost.closed()], [[], 1]);

  const ended = world(50);
  ended.path.watch(TOKEN, LIMIT, (at) => { ended.over.push(at); });
  ended.arrive(TOKEN);
  ended.clock.advance(5);
  ended.path.close();
  ended.clock.advance(LIMIT);
  t.same([ended.over, ended.closed()], [[], 1]);
  t.end();
});

void t.test("behind the stop any marker will do", (t) => {
  const { clock, path, over, arrive } = world(0);
  path.watchLate(millis(300), (at) => { over.push(at); });
  clock.advance(100);
  const at = arrive(TOKEN + 1);
  clock.advance(300);
  t.same(over, [at]);
  t.end();
});
