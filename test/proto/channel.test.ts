import fc from "fast-check";
import t from "tap";
import { CareofError } from "../../model/errors.js";
import { epoch, millis, NEVER_BOUND, vmId } from "../../model/ids.js";
import { Channel, CLOSE_MALFORMED, decision, Refused, type Answer, type ChannelOptions } from "../../proto/channel.js";
import { decodeFrame, encodeFrame } from "../../proto/codec.js";
import type { Body } from "../../proto/messages.js";
import { FakeClock } from "../model/fake-clock.js";

const KEEP_ALIVE: Body<"keepAlive"> = { kind: "keepAlive", at: millis(1) };
const STOP: Body<"stopVm"> = { kind: "stopVm", vm: vmId("web1"), epoch: epoch(7), force: false, patienceMs: millis(0), giveBack: false };
const PREPARED: Body<"prepared"> = { kind: "prepared", decision: { reason: "accepted", epoch: NEVER_BOUND, detail: "" }, relayAddress: "192.0.2.1", relayPort: 4000, canLead: true };
const SECOND = millis(1000);

interface Request {
  readonly body: Body;
  readonly answer: Answer;
}

/** One side, with what its transport was told and what it was asked. */
class Side {
  readonly sent: Uint8Array[] = [];
  readonly closed: [number, string][] = [];
  readonly requests: Request[] = [];
  readonly errors: CareofError[] = [];
  readonly channel: Channel;
  broken = false;

  constructor(clock: FakeClock, options: Partial<ChannelOptions> = {}) {
    this.channel = new Channel({
      transport: {
        send: (frame) => {
          if (this.broken) throw new Error("not open");
          this.sent.push(frame);
        },
        close: (code, reason) => { this.closed.push([code, reason]); },
      },
      clock,
      onRequest: (body, answer) => { this.requests.push({ body, answer }); },
      onError: (error) => { this.errors.push(error); },
      ...options,
    });
  }

  /** Hands all that was sent to the other side. */
  deliver(to: Side): void {
    for (const frame of this.sent.splice(0)) to.channel.receive(frame);
  }
}

function pair(options: Partial<ChannelOptions> = {}): { readonly clock: FakeClock; readonly a: Side; readonly b: Side } {
  const clock = new FakeClock();
  return { clock, a: new Side(clock), b: new Side(clock, options) };
}

t.test("a question and its answer", async (t) => {
  const { clock, a, b } = pair();
  const asked = a.channel.ask(STOP, "prepared", SECOND);
  a.deliver(b);
  t.match(b.requests, [{ body: STOP }]);
  b.requests[0]?.answer(PREPARED);
  b.deliver(a);
  t.same(await asked, PREPARED);
  t.same([clock.timers(), a.channel.outstanding, a.requests], [[], 0, []]);
});

t.test("both ask at once, and answers come in any order", async (t) => {
  const { a, b } = pair();
  const one = a.channel.ask({ ...KEEP_ALIVE, at: millis(1) }, "keepAlive", SECOND);
  const two = a.channel.ask({ ...KEEP_ALIVE, at: millis(2) }, "keepAlive", SECOND);
  const back = b.channel.ask(STOP, "decision", SECOND);
  a.deliver(b);
  b.deliver(a);
  a.requests[0]?.answer(decision("not-running", "", epoch(9)));
  for (const { body, answer } of [...b.requests].reverse()) answer(body);
  a.deliver(b);
  b.deliver(a);
  t.same([(await one).at, (await two).at], [1, 2]);
  t.match(await back, { reason: "not-running", epoch: 9 }, "a decision that is expected resolves, whatever it is");
});

t.test("refusals, and answers of the wrong kind", async (t) => {
  const { a, b } = pair();
  const answers: readonly (readonly [Body, object])[] = [
    [decision("stale-epoch", "", epoch(12)), { code: "stale-epoch", reason: "stale-epoch", epoch: 12, retryable: false }],
    [decision("store-unavailable", "the disk is full"), { code: "store-unavailable", message: "the disk is full", retryable: true }],
    [decision("accepted"), { code: "unexpected-answer", retryable: false }],
    [KEEP_ALIVE, { code: "unexpected-answer" }],
  ];
  for (const [answer, error] of answers) {
    const asked = a.channel.ask(STOP, "prepared", SECOND);
    a.deliver(b);
    b.requests.pop()?.answer(answer);
    b.deliver(a);
    await t.rejects(asked, { name: "CareofError", ...error });
  }
  t.ok(new Refused(decision("not-owner")) instanceof CareofError);
});

t.test("a time limit, and the answer after it", async (t) => {
  const { clock, a, b } = pair();
  const asked = a.channel.ask(STOP, "decision", SECOND);
  a.deliver(b);
  clock.advance(999);
  t.equal(a.channel.outstanding, 1);
  clock.advance(1);
  await t.rejects(asked, { code: "timed-out", retryable: true });
  b.requests[0]?.answer(decision("accepted"));
  b.deliver(a);
  t.same([a.channel.lateAnswers, a.channel.outstanding, a.channel.ended], [1, 0, false]);
});

t.test("what is told wants no answer and gets none", (t) => {
  const { a, b } = pair();
  t.equal(a.channel.tell(KEEP_ALIVE), true);
  a.deliver(b);
  b.requests[0]?.answer(decision("accepted"));
  b.requests[0]?.answer(decision("accepted"));
  t.same(b.sent, []);
  t.end();
});

t.test("limits, in both directions", async (t) => {
  const clock = new FakeClock();
  const a = new Side(clock, { limits: { maxOutstanding: 4 } });
  const b = new Side(clock, { limits: { maxOutstanding: 2 } });
  const ask = (): Promise<Body<"keepAlive">> => a.channel.ask(STOP, "keepAlive", SECOND);
  const asked = [ask(), ask()];
  const tooMany = [ask(), ask()];
  await t.rejects(a.channel.ask(STOP, "keepAlive", SECOND), { code: "too-many", retryable: true }, "the asking side's");
  a.deliver(b);
  t.equal(b.requests.length, 2);
  b.deliver(a);
  for (const one of tooMany) await t.rejects(one, { code: "too-many", retryable: true }, "the answering side's");
  for (const { answer } of b.requests) answer(KEEP_ALIVE);
  b.deliver(a);
  t.match(await Promise.all(asked), [KEEP_ALIVE, KEEP_ALIVE]);
  const again = a.channel.ask(STOP, "keepAlive", SECOND);
  a.deliver(b);
  b.requests[2]?.answer(KEEP_ALIVE);
  b.deliver(a);
  t.match(await again, KEEP_ALIVE, "there is room again");
});

t.test("answered once", async (t) => {
  const { a, b } = pair();
  const asked = a.channel.ask(STOP, "decision", SECOND);
  a.deliver(b);
  const answer = b.requests[0]?.answer ?? ((): void => { t.fail("not asked"); });
  t.throws(() => { answer({ ...KEEP_ALIVE, at: millis(-1) }); }, { code: "malformed-frame" }, "what cannot be sent");
  answer(decision("accepted"));
  t.throws(() => { answer(decision("accepted")); }, { code: "answered-twice" });
  b.deliver(a);
  t.match(await asked, { reason: "accepted" });
});

t.test("a handler that throws", async (t) => {
  const failing = (code: string): Partial<ChannelOptions> => ({ onRequest: () => { throw new CareofError(code, "it went wrong"); } });
  for (const [code, reason] of [["not-owner", "not-owner"], ["disk-on-fire", "unspecified"]] as const) {
    const { a, b } = pair(failing(code));
    const asked = a.channel.ask(STOP, "decision", SECOND);
    a.deliver(b);
    b.deliver(a);
    t.match(await asked, { reason, detail: "it went wrong" });
    t.match(b.errors, [{ code }]);
    t.equal(b.channel.ended, false);
  }
  const clock = new FakeClock();
  const a = new Side(clock);
  const loud = new Channel({ transport: { send: () => undefined, close: () => undefined }, clock, onRequest: () => { throw new Error("a bug"); } });
  a.channel.tell(KEEP_ALIVE);
  t.throws(() => { loud.receive(a.sent[0] ?? new Uint8Array(0)); }, { code: "internal" }, "with nobody to tell it is thrown on");
});

t.test("the end of the connection", async (t) => {
  const { clock, a, b } = pair();
  const asked = [a.channel.ask(STOP, "decision", SECOND), a.channel.ask(STOP, "decision", SECOND)];
  a.deliver(b);
  a.channel.end(new CareofError("host-gone", "no keep-alive"));
  a.channel.end(new CareofError("other", "a second cause"));
  for (const one of asked) await t.rejects(one, { code: "host-gone", retryable: true });
  await t.rejects(a.channel.ask(STOP, "decision", SECOND), { code: "host-gone", retryable: true });
  t.equal(a.channel.tell(KEEP_ALIVE), false);
  t.same([a.sent, clock.timers(), a.closed], [[], [], []]);
  b.channel.end(new CareofError("host-gone", "gone"));
  t.doesNotThrow(() => { for (const { answer } of b.requests) answer(decision("accepted")); }, "an answer that nobody hears");
  t.same(b.sent, []);
  a.channel.receive(encodeFrame({ id: 1, inReplyTo: 0, body: KEEP_ALIVE }));
  t.same(a.requests, [], "nothing is received any more");
});

t.test("a transport that cannot send ends it", async (t) => {
  const { a } = pair();
  const first = a.channel.ask(STOP, "decision", SECOND);
  a.broken = true;
  const second = a.channel.ask(STOP, "decision", SECOND);
  await t.rejects(first, { code: "channel-lost", retryable: true });
  await t.rejects(second, { code: "channel-lost", retryable: true });
  const { a: other } = pair();
  other.broken = true;
  t.equal(other.channel.tell(KEEP_ALIVE), false);
  t.equal(other.channel.ended, true);
});

t.test("malformed frames close the connection with 4002 and the reason", async (t) => {
  const open = encodeFrame({ id: 3, inReplyTo: 0, body: STOP });
  const cases: readonly (readonly [string, readonly Uint8Array[], RegExp])[] = [
    ["no protobuf", [Uint8Array.of(0xff)], /^frame: /],
    ["an empty name", [new Uint8Array(Buffer.from("5a020a00", "hex"))], /^vmReport\.vm: /],
    ["too large", [new Uint8Array(300_000)], /300000 bytes/],
    ["an id that is still open", [open, open], /still open/],
    ["an answer that asks", [encodeFrame({ id: 1, inReplyTo: 1, body: decision("accepted") })], /wants an answer/],
  ];
  for (const [what, messages, reason] of cases) {
    const { a } = pair();
    const asked = a.channel.ask(STOP, "decision", SECOND);
    for (const message of messages) a.channel.receive(message);
    t.equal(a.closed.length, 1, what);
    t.equal(a.closed[0]?.[0], CLOSE_MALFORMED, what);
    t.match(a.closed[0]?.[1], reason, what);
    t.ok(Buffer.byteLength(a.closed[0]?.[1] ?? "") <= 123, "fits a close frame");
    t.equal(a.channel.ended, true, what);
    await t.rejects(asked, { name: "CareofError", retryable: true }, what);
  }
});

t.test("a body of another version", async (t) => {
  const { a } = pair();
  const asked = a.channel.ask(STOP, "decision", SECOND);
  a.sent.length = 0;
  a.channel.receive(new Uint8Array(Buffer.from("0805a20600", "hex")));
  t.match(a.sent.map((sent) => decodeFrame(sent)), [{ inReplyTo: 5, body: { kind: "decision", reason: "unsupported" } }], "a question is answered");
  a.channel.receive(new Uint8Array(Buffer.from("a20600", "hex")));
  t.equal(a.sent.length, 1, "what was told is not");
  a.channel.receive(new Uint8Array(Buffer.from("1001a20600", "hex")));
  await t.rejects(asked, { code: "unsupported", retryable: false }, "an answer rejects the question");
  t.same([a.channel.ended, a.closed, a.requests], [false, [], []]);
});

t.test("whatever comes, each question settles exactly once and nothing is thrown", async (t) => {
  const step = fc.oneof(
    fc.constant("ask" as const), fc.constant("answer" as const), fc.nat({ max: 700 }), fc.uint8Array({ maxLength: 12 }),
    fc.record({ id: fc.nat({ max: 6 }), inReplyTo: fc.nat({ max: 6 }) }, { noNullPrototype: true }),
  );
  await fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
    const { clock, a, b } = pair();
    const asked: Promise<unknown>[] = [];
    let settled = 0;
    const count = (): void => { settled++; };
    for (const now of steps) {
      if (now === "ask") asked.push(a.channel.ask(STOP, "decision", millis(500)).then(count, count));
      else if (now === "answer") {
        a.deliver(b);
        b.requests.shift()?.answer(decision("accepted"));
        b.deliver(a);
      } else if (typeof now === "number") clock.advance(now);
      else if (now instanceof Uint8Array) a.channel.receive(now);
      else a.channel.receive(encodeFrame({ ...now, body: decision("accepted") }));
    }
    a.channel.end(new CareofError("host-gone", "the end"));
    await Promise.all(asked);
    if (settled !== asked.length || clock.timers().length > 0 || a.closed.length > 1) throw new Error("unsettled, or closed twice");
  }), { numRuns: 300 });
  t.end();
});
