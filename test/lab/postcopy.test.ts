import t, { type Test } from "tap";
import { PLAN } from "../../deploy/lab/plan.js";
import { BusyGuest, type Moved } from "./busy-guest.js";

/** A guest that writes to its memory as fast as it can, over less bandwidth than that: it goes on at the target while its memory follows it. */

const SLOW = ["--bandwidth", "20M"];

const guest = await BusyGuest.start(t, 32);
const { lab, traffic } = guest;

async function move(t: Test, words: readonly string[]): Promise<Moved> {
  return guest.move(t, words, "completed", 240_000);
}

await t.test("there and back, whatever it writes", async (t) => {
  for (const round of [1, 2]) {
    await traffic.idle();
    await traffic.mark(`before${String(round)}`);
    const { move: moved, said } = await move(t, [...SLOW, "--postcopy"]);
    t.match(said, / postcopy /, "and it is told");
    t.ok((moved.pauseMs ?? Infinity) < 3000, "it stood for the change-over, not for the copy");
    await traffic.idle();
    await traffic.mark(`after${String(round)}`);
    const { sentDown, receivedDown, sentUp, receivedUp, serviceGapDownMs } = await traffic.window(`before${String(round)}`, `after${String(round)}`);
    t.same({ receivedDown, receivedUp }, { receivedDown: sentDown, receivedUp: sentUp }, "no packet was lost");
    t.comment(`longest silence ${String(serviceGapDownMs)} ms`);
  }
});

await t.test("one that converges needs none", async (t) => {
  const { said } = await move(t, ["--downtime-limit", "2000", "--postcopy"]);
  t.notMatch(said, / postcopy /);
});

await t.test("what it cannot do is refused", async (t) => {
  const ran = await lab.careof(["migrate", PLAN.guest.name, guest.other, "--postcopy", "--channels", "2"], 20_000);
  t.equal(ran.code, 1);
  t.match(ran.stderr, /multifd.*unsupported/);
});

await t.test("it was one guest all the time", async (t) => {
  await guest.wasOne(t);
});
