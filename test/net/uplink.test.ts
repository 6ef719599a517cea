import t from "tap";
import { CareofError } from "../../model/errors.js";
import { createLogger } from "../../model/log.js";
import { AGAIN_AT_MOST_MS, AGAIN_MS, SECOND_LOOK_MS, SETTLE_MS, UplinkMender } from "../../net/uplink-mender.js";
import type { UplinkListener, UplinkLoss, UplinkNews } from "../../net/uplink-news.js";
import { FakeClock } from "../model/fake-clock.js";
import { Topology } from "./lab/topology.js";
import { uplinkComesBack } from "./uplink-again.js";

/** An uplink that goes and comes as the test says. */
class Said implements UplinkNews {
  away: "uplink-down" | "uplink-gone" | null = null;
  listener: UplinkListener | null = null;
  closed = 0;

  watch(listener: UplinkListener): void {
    this.listener = listener;
  }

  look(): "uplink-down" | "uplink-gone" | null {
    return this.away;
  }

  close(): void {
    this.closed++;
  }
}

function mender(renew: () => Promise<void> = () => Promise.resolve()): { news: Said; clock: FakeClock; renewed: () => number; mended: UplinkLoss[]; lines: string[]; mender: UplinkMender } {
  const [news, clock, mended, lines]: [Said, FakeClock, UplinkLoss[], string[]] = [new Said(), new FakeClock(), [], []];
  const log = createLogger("test", "silent");
  const note = (fields: { readonly reason?: string }): void => { lines.push(fields.reason ?? ""); };
  Object.assign(log, { warn: note, error: note });
  let count = 0;
  const made = new UplinkMender({
    uplink: "eth0", news, clock, log, mended: (why) => { mended.push(why); },
    renew: () => {
      count++;
      return renew();
    },
  });
  made.start();
  return { news, clock, mended, lines, mender: made, renewed: () => count };
}

t.test("some losses at once are one renewal, then one more look", async (t) => {
  const { clock, mended, news, renewed } = mender();
  news.listener?.there();
  await clock.advanceAsync(10_000);
  t.equal(renewed(), 0, "that it is there is no loss");
  for (const why of ["address-gone", "uplink-gone", "uplink-down"] as const) news.listener?.lost(why);
  await clock.advanceAsync(SETTLE_MS - 1);
  t.equal(renewed(), 0);
  news.listener?.there();
  await clock.advanceAsync(1);
  t.same([renewed(), mended], [1, ["uplink-gone"]], "further news does not put it off, and the greatest loss gives the reason");
  await clock.advanceAsync(SECOND_LOOK_MS);
  t.equal(renewed(), 2);
  await clock.advanceAsync(60_000);
  t.same([renewed(), mended, clock.timers()], [2, ["uplink-gone"], []], "the second look leads to nothing more");
});

t.test("what is away is waited for, and said once", async (t) => {
  const { clock, lines, mended, news, renewed } = mender();
  news.away = "uplink-down";
  news.listener?.lost("uplink-down");
  await clock.advanceAsync(SETTLE_MS);
  news.listener?.lost("address-gone");
  await clock.advanceAsync(60_000);
  t.same([renewed(), lines, clock.timers()], [0, ["uplink-down"], []]);
  news.away = null;
  news.listener?.there();
  await clock.advanceAsync(SETTLE_MS);
  t.same([renewed(), mended, lines], [1, ["uplink-down"], ["uplink-down", "uplink-down"]]);
});

t.test("what the kernel refuses is tried again, sooner when there is news, and said once", async (t) => {
  let refuses = true;
  const { clock, lines, mended, news, renewed } = mender(() => (refuses ? Promise.reject(new CareofError("kernel-refused", "no such address")) : Promise.resolve()));
  news.listener?.lost("address-gone");
  await clock.advanceAsync(SETTLE_MS);
  t.same([renewed(), lines], [1, ["kernel-refused"]]);
  await clock.advanceAsync(7 * AGAIN_MS);
  t.same([renewed(), lines, mended], [4, ["kernel-refused"], []], "after one second, two, and four");
  await clock.advanceAsync(3_600_000);
  const before = renewed();
  await clock.advanceAsync(10 * AGAIN_AT_MOST_MS);
  t.equal(renewed(), before + 10, "as often as that for ever");
  news.listener?.lost("uplink-down");
  await clock.advanceAsync(SETTLE_MS + 3 * AGAIN_MS);
  t.equal(renewed(), before + 13, "and often again when there is news");
  refuses = false;
  news.listener?.there();
  await clock.advanceAsync(SETTLE_MS);
  t.same([renewed(), lines, mended], [before + 14, ["kernel-refused", "uplink-down"], ["uplink-down"]]);
});

t.test("what throws instead of being rejected is a refusal, too", async (t) => {
  const { clock, lines, news } = mender(() => { throw new CareofError("no-link", "it has just gone"); });
  news.listener?.lost("uplink-down");
  await clock.advanceAsync(SETTLE_MS);
  t.same([lines, clock.timers()], [["no-link"], ["uplink"]]);
});

t.test("news that could not be read is a loss of which it is said why, once", async (t) => {
  const { clock, lines, mended, news } = mender();
  for (let n = 0; n < 3; n++) news.listener?.lost("news-missed", new CareofError("kernel-refused", "out of memory", { retryable: true }));
  await clock.advanceAsync(SETTLE_MS);
  t.same([lines, mended], [["kernel-refused", "news-missed"], ["news-missed"]]);
});

t.test("what is lost while it is renewed is renewed behind it, one at a time", async (t) => {
  const ends: (() => void)[] = [];
  const { clock, mended, news, renewed } = mender(() => new Promise((resolve) => { ends.push(resolve); }));
  news.listener?.lost("uplink-down");
  await clock.advanceAsync(SETTLE_MS);
  news.listener?.lost("uplink-gone");
  await clock.advanceAsync(10 * SETTLE_MS);
  t.same([renewed(), mended], [1, []]);
  ends[0]?.();
  await clock.advanceAsync(SETTLE_MS);
  t.same([renewed(), mended], [2, ["uplink-down"]]);
  ends[1]?.();
  await clock.advanceAsync(0);
  t.same(mended, ["uplink-down", "uplink-gone"]);
});

t.test("closed, and deaf", async (t) => {
  const { clock, lines, mender: made, news, renewed } = mender();
  news.listener?.failed(new CareofError("kernel-refused", "no more"));
  t.same(lines, ["kernel-refused"]);
  news.listener?.lost("uplink-down");
  made.close();
  news.listener?.lost("uplink-down");
  await clock.advanceAsync(60_000);
  t.same([renewed(), news.closed], [0, 1]);
});

t.test("the uplinks of a home agent and of a host", { timeout: 300_000 }, async (t) => {
  const topology = new Topology();
  t.teardown(() => topology.close());
  topology.guests[0]?.on(topology.a);
  await uplinkComesBack(t, topology);
});
