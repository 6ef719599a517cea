import { pino } from "pino";
import t from "tap";
import { Held, HELD_LONGEST } from "../../../agent/external/held.js";
import { Losses } from "../../../agent/external/losses.js";
import { Outbox } from "../../../agent/outbox.js";
import { millis, vmId } from "../../../model/ids.js";
import { decision } from "../../../proto/channel.js";
import type { Body } from "../../../proto/messages.js";
import { FakeClock } from "../../model/fake-clock.js";

function rig() {
  const clock = new FakeClock();
  const said: Body[] = [];
  const answers: (() => void)[] = [];
  const log = pino({ level: "silent" });
  const outbox = new Outbox({ registered: true, ask: (body) => new Promise((resolve) => { said.push(body); answers.push(() => { resolve(decision("accepted")); }); }) }, clock, log);
  const held = new Held({ packets: 2, longest: HELD_LONGEST });
  const device = { full: 0 };
  const losses = new Losses(vmId("web1"), held, { clock, log, outbox, eyes: { overflowed: () => device.full-- > 0 ? 1 : 0 } });
  const answer = async (): Promise<void> => {
    answers.shift()?.();
    await new Promise(setImmediate);
  };
  return { clock, said, held, device, losses, answer };
}

t.test("what was lost is told once, also what is lost while the last word waits for its answer", async (t) => {
  const { clock, said, held, device, losses, answer } = rig();
  losses.tell();
  t.same(said, [], "nothing was lost");
  for (let i = 0; i < 5; i++) held.put(Buffer.alloc(1), "directly", clock.monotonic());
  losses.tell();
  losses.tell();
  t.match(said, [{ kind: "drained", vm: "web1", token: 0, overflowed: 3, expired: 0 }]);
  held.put(Buffer.alloc(1), "directly", clock.monotonic());
  device.full = 1;
  losses.tell();
  t.equal(said.length, 1);
  await answer();
  t.match(said.slice(1), [{ overflowed: 2, expired: 0 }], "one of its own queue, and one of the device that all share");
  await answer();
  t.equal(said.length, 2);
});

t.test("packets for which nobody comes are dropped when their time is over, not with the next one", (t) => {
  const { clock, said, held, losses } = rig();
  held.put(Buffer.alloc(1), "directly", clock.monotonic());
  losses.watch();
  clock.advance(HELD_LONGEST - 1000);
  held.put(Buffer.alloc(1), "straggler", clock.monotonic());
  losses.watch();
  clock.advance(2000);
  t.match([held.size, held.expired], [1, 1]);
  t.match(said, [{ overflowed: 0, expired: 1 }]);
  clock.advance(HELD_LONGEST + 1000);
  t.match([held.size, held.expired], [0, 2]);
  held.put(Buffer.alloc(1), "directly", clock.monotonic());
  losses.watch();
  losses.close();
  clock.advance(millis(2 * HELD_LONGEST));
  t.equal(held.size, 1, "closed");
  t.end();
});
