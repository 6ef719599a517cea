import fc from "fast-check";
import t from "tap";
import { LAST_PACKETS_LIMIT, LastPacketsAwaited, LastPacketsSent } from "../../../agent/migration/last-packets.js";
import { epoch, millis, type Epoch } from "../../../model/ids.js";
import { departureToken, leadToken } from "../../../model/lead-token.js";
import { FakeClock } from "../../model/fake-clock.js";

const EPOCH = epoch(7);

/** Milliseconds until the guest may run, `null` for not within a second. */
async function waits(clock: FakeClock, awaited: LastPacketsAwaited): Promise<number | null> {
  const found: number[] = [];
  awaited.wait().then((ms) => { found.push(ms); }, (thrown: unknown) => { throw thrown; });
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
  clock.advance(1000);
  t.equal(sent.length, 21);
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
  t.equal(await waits(clock, closed), null, "the agent ends: its next life lets the guest run");
});
