import { Buffer } from "node:buffer";
import t from "tap";
import { LeftBehind } from "../../../agent/migration/left-behind.js";
import { createLogger } from "../../../model/log.js";
import { FakeClock } from "../../model/fake-clock.js";

function world(waiting: number, refused: (packet: Buffer) => boolean = () => false): { readonly left: LeftBehind; readonly clock: FakeClock; readonly passedOn: number[]; readonly taken: number[]; readonly closed: () => number } {
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
      if (refused(packet)) throw new Error("too big");
      passedOn.push(packet.readUInt16BE(0));
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
  const { left, clock, passedOn } = world(5, (packet) => packet[1] === 2);
  left.begin();
  clock.advance(10);
  t.same(passedOn, [0, 1, 3, 4]);
  t.end();
});

void t.test("nothing more is taken from a guest that runs here again", (t) => {
  const { left, clock, passedOn, closed } = world(1000, () => {
    if (passedOn.length === 10) left.close();
    return false;
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

void t.test("nor is its queue looked at when it was taken back at once", (t) => {
  const { left, clock, taken } = world(10);
  left.begin();
  left.close();
  clock.advance(100);
  t.same(taken, []);
  t.end();
});
