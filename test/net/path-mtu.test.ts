import fc from "fast-check";
import t from "tap";
import { ipv4, type Ipv4 } from "../../model/address.js";
import type { Clock } from "../../model/clock.js";
import { millis } from "../../model/ids.js";
import { LEAST_PATH_MTU } from "../../model/locator.js";
import { decodeFragNeeded, encodeProbe, type FragNeeded } from "../../net/frag-needed.js";
import { ASK_BEFORE, LEARNED_FOR, PathMtus } from "../../net/path-mtu.js";
import { FakePathWire } from "../../net/path-mtu-fake.js";
import { FakeClock } from "../model/fake-clock.js";
import { checksum, encode, ICMP, IPIP } from "./lab/packets.js";

const SELF = ipv4("192.0.2.1");
const FAR = ipv4("10.2.0.2");
const ROUTER = ipv4("192.0.2.2");

/** RFC 792: what a router sends about `quoted`. */
function unreachable(quoted: Buffer, { mtu = 1400, code = 4, type = 3, spoil = 0 } = {}): Buffer {
  const payload = Buffer.concat([Buffer.alloc(8), quoted]);
  payload.writeUInt8(type, 0);
  payload.writeUInt8(code, 1);
  payload.writeUInt16BE(mtu, 6);
  payload.writeUInt16BE(checksum(payload) ^ spoil, 2);
  return encode({ source: ROUTER, destination: SELF, protocol: ICMP, payload });
}

const outer = (change: Parameters<typeof encode>[0] | object = {}): Buffer => encode({ source: SELF, destination: FAR, protocol: IPIP, payload: Buffer.alloc(1480, 69), ...change });

t.test("what a router says of a tunnel packet is read, whatever it quotes beyond the eight bytes", (t) => {
  const said: FragNeeded = { source: SELF, destination: FAR, length: 1500, mtu: 1400 };
  t.same(decodeFragNeeded(unreachable(outer())), said);
  t.same(decodeFragNeeded(unreachable(outer().subarray(0, 28))), said);
  t.same(decodeFragNeeded(unreachable(outer().subarray(0, 31))), said, "an odd length too");
  t.match(decodeFragNeeded(unreachable(outer(), { mtu: 0 })), { mtu: 1492 }, "RFC 1191 §7.1: a router that names none");
  t.same(decodeFragNeeded(unreachable(encodeProbe(SELF, FAR, 1500))), said, "a probe is such a packet");
  t.equal(encodeProbe(SELF, FAR, 576).length, 576);
  t.end();
});

t.test("anything else is nothing", (t) => {
  const table: readonly [string, Buffer][] = [
    ["another code", unreachable(outer(), { code: 1 })],
    ["another type", unreachable(outer(), { type: 11 })],
    ["a wrong checksum", unreachable(outer(), { spoil: 1 })],
    ["less than eight bytes beyond the header", unreachable(outer().subarray(0, 27))],
    ["a packet that was no tunnel's", unreachable(outer({ protocol: 17 }))],
    ["a packet that might have been fragmented", unreachable(outer({ dontFragment: false }))],
    ["a packet that would have fitted", unreachable(outer(), { mtu: 1500 })],
    ["nothing", Buffer.alloc(0)],
  ];
  for (const [what, message] of table) t.equal(decodeFragNeeded(message), null, what);
  fc.assert(fc.property(fc.uint8Array({ maxLength: 120 }), (bytes) => { decodeFragNeeded(Buffer.from(bytes)); }));
  fc.assert(fc.property(fc.nat(1599), fc.nat(255), (at, value) => {
    const message = unreachable(outer());
    if (at < message.length) message[at] = value;
    const said = decodeFragNeeded(message);
    return said === null || said.mtu < said.length;
  }));
  t.end();
});

interface Change { readonly to: Ipv4; readonly mtu: number }

function watched(paths: readonly (readonly [Ipv4, number])[] = [[FAR, 1500]], other: Clock | null = null): { mtus: PathMtus; wire: FakePathWire; clock: FakeClock; changes: Change[] } {
  const wire = new FakePathWire();
  const clock = new FakeClock();
  const changes: Change[] = [];
  const mtus = new PathMtus({ wire, clock: other ?? clock, address: SELF, changed: (to, mtu) => { changes.push({ to, mtu }); }, failed: (error) => { throw error; } });
  mtus.set(new Map(paths));
  return { mtus, wire, clock, changes };
}

t.test("a path is probed when it is new, and what routers say lowers it", (t) => {
  const { mtus, wire, clock, changes } = watched();
  wire.carries.set(FAR, 1400);
  t.equal(mtus.mtu(FAR), 1500);
  t.equal(mtus.mtu(ROUTER), null);
  clock.advance(2000);
  t.same(changes, [{ to: FAR, mtu: 1400 }]);
  t.equal(mtus.mtu(FAR), 1400);
  t.same([...new Set(wire.probes.map(({ length }) => length))], [1500, 1400], "and then whether that fits all the way");
  mtus.probe(FAR);
  clock.advance(2000);
  t.equal(wire.probes.at(-1)?.length, 1400);
  mtus.close();
  t.ok(wire.closed);
  t.end();
});

t.test("a router further on that carries still less is found by itself", (t) => {
  const { mtus, wire, clock } = watched();
  wire.carries.set(FAR, 1400);
  clock.advance(0);
  wire.carries.set(FAR, 1300);
  clock.advance(2000);
  t.equal(mtus.mtu(FAR), 1300);
  t.end();
});

t.test("it lasts while it is true, without a packet of anybody's lost for it, and not longer", (t) => {
  const { mtus, wire, clock, changes } = watched();
  wire.carries.set(FAR, 1400);
  clock.advance(3 * LEARNED_FOR);
  t.same(changes, [{ to: FAR, mtu: 1400 }], "asked about and confirmed");
  wire.carries.delete(FAR);
  clock.advance(LEARNED_FOR + ASK_BEFORE);
  t.same(changes, [{ to: FAR, mtu: 1400 }, { to: FAR, mtu: 1500 }]);
  t.equal(mtus.mtu(FAR), 1500);
  t.end();
});

t.test("timers that fire a little too early: what was learned is renewed and forgotten all the same, and nothing spins", (t) => {
  const clock = new FakeClock();
  let set = 0;
  const early: Clock = {
    now: () => clock.now(), monotonic: () => clock.monotonic(),
    after: (name, delay, run) => {
      set += 1;
      return clock.after(name, millis(Math.max(0, delay - 0.7)), run);
    },
  };
  const { mtus, wire, changes } = watched([[FAR, 1500]], early);
  wire.carries.set(FAR, 1400);
  clock.advance(3 * LEARNED_FOR);
  t.same(changes, [{ to: FAR, mtu: 1400 }], "asked about and confirmed");
  t.ok(set < 60, `${String(set)} timers`);
  wire.carries.delete(FAR);
  clock.advance(LEARNED_FOR + ASK_BEFORE);
  t.same(changes, [{ to: FAR, mtu: 1400 }, { to: FAR, mtu: 1500 }]);
  t.equal(mtus.mtu(FAR), 1500);
  t.end();
});

t.test("what is said of a path that carries more now is learned anew", (t) => {
  const { mtus, wire, clock } = watched();
  wire.carries.set(FAR, 1300);
  clock.advance(2000);
  wire.carries.set(FAR, 1400);
  clock.advance(LEARNED_FOR + 2000);
  t.equal(mtus.mtu(FAR), 1400);
  t.end();
});

t.test("forged messages: no path of ours, no packet of ours, nothing below the floor, nothing higher", (t) => {
  const { mtus, wire, changes } = watched([[FAR, 1500]]);
  const said: FragNeeded = { source: SELF, destination: FAR, length: 1500, mtu: 1400 };
  wire.say({ ...said, source: ROUTER });
  wire.say({ ...said, destination: ROUTER });
  wire.say({ ...said, length: 1501, mtu: 1400 });
  wire.say({ ...said, mtu: 1500, length: 1500 });
  t.same(changes, []);
  wire.say({ ...said, mtu: 0 });
  t.equal(mtus.mtu(FAR), LEAST_PATH_MTU);
  wire.say({ ...said, mtu: 68 });
  wire.say({ ...said, mtu: 1400 });
  t.same(changes, [{ to: FAR, mtu: LEAST_PATH_MTU }]);
  t.end();
});

t.test("whatever is said in whatever order: between the floor and what is configured, and in the end as configured", (t) => {
  const messages = fc.array(fc.record({ source: fc.constantFrom(SELF, ROUTER), destination: fc.constantFrom(FAR, ROUTER), length: fc.nat(2000), mtu: fc.nat(2000), wait: fc.nat(LEARNED_FOR) }), { maxLength: 30 });
  fc.assert(fc.property(messages, (all) => {
    const { mtus, wire, clock, changes } = watched();
    for (const { wait, ...said } of all) {
      clock.advance(wait);
      wire.say(said);
      const mtu = mtus.mtu(FAR) ?? 0;
      if (mtu < LEAST_PATH_MTU || mtu > 1500) return false;
      if (mtu !== (changes.at(-1)?.mtu ?? 1500)) return false;
    }
    clock.advance(2 * LEARNED_FOR);
    return mtus.mtu(FAR) === 1500;
  }));
  t.end();
});

t.test("paths that go are forgotten, those that stay are not", (t) => {
  const { mtus, wire, clock } = watched();
  wire.carries.set(FAR, 1400);
  clock.advance(millis(2000));
  mtus.set(new Map([[FAR, 1450], [ROUTER, 1500]]));
  t.equal(mtus.mtu(FAR), 1400);
  mtus.set(new Map([[FAR, 1300]]));
  t.equal(mtus.mtu(FAR), 1300, "configured for less");
  mtus.set(new Map());
  t.equal(mtus.mtu(FAR), null);
  const sent = wire.probes.length;
  clock.advance(2 * LEARNED_FOR);
  t.equal(wire.probes.length, sent, "and nothing is sent there any more");
  t.end();
});
