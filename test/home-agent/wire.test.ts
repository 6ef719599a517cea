import { createSocket } from "node:dgram";
import { setTimeout as sleep } from "node:timers/promises";
import fc from "fast-check";
import t, { type Test } from "tap";
import { WebSocket } from "ws";
import { identify } from "../../home-agent/identity.js";
import { ReplayWindow, type ReplayState } from "../../home-agent/replay.js";
import { ipAddress } from "../../model/address.js";
import { epoch, hostId, keyId, millis, NEVER_BOUND, vmId } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import { MAX_FRAME_BYTES } from "../../proto/codec.js";
import { HeartbeatKey } from "../../proto/heartbeat-key.js";
import { decodeEnvelope, signHeartbeat, verifyAnswer, type HeartbeatAnswerBody, type HeartbeatBody } from "../../proto/heartbeat.js";
import { Bench, CARE_OF, tokenHash, until } from "./bench.js";

const KEY = new HeartbeatKey(Uint8Array.from(Buffer.from("ab".repeat(32), "hex")));
const WEB1 = vmId("web1");

await t.test("identity: by name and token, in constant time and one place", (t) => {
  const host = { name: hostId("host-a"), careOf: [], tokenHash: tokenHash("secret") };
  const who = (authorization: string | undefined): unknown => identify({ headers: authorization === undefined ? {} : { authorization } }, (name) => (name === host.name ? host : null));
  t.equal(who("Bearer host-a:secret"), "host-a");
  for (const [header, code] of [
    [undefined, "bad-token"], ["", "bad-token"], ["Bearer host-a", "bad-token"], ["Basic host-a:secret", "bad-token"], ["Bearer host-a:wrong", "bad-token"], ["Bearer host-a:", "bad-token"],
    ["Bearer host-b:secret", "unknown-host"], ["Bearer HOST!:secret", "unknown-host"], [`Bearer host-a:${"x".repeat(2000)}`, "bad-token"],
  ] as const) t.throws(() => who(header), { code }, String(header).slice(0, 40));
  t.end();
});

/** What an upgrade that was refused says. */
async function refusal(t: Test, bench: Bench, options: { readonly path?: string; readonly protocol?: string; readonly authorization?: string }): Promise<{ readonly status: number; readonly body: unknown }> {
  const socket = new WebSocket(`ws://127.0.0.1:${String(bench.at.agents.port)}${options.path ?? "/v1/agent"}`, options.protocol ?? "careof.v1", { headers: { authorization: options.authorization ?? "Bearer host-a:token-host-a" } });
  socket.on("error", (error) => { t.comment(error.message); });
  return await new Promise((resolve) => {
    socket.on("open", () => { resolve({ status: 101, body: null }); });
    socket.on("unexpected-response", (_request, response) => {
      let text = "";
      response.on("data", (chunk: Buffer) => { text += chunk.toString(); });
      response.on("end", () => { resolve({ status: response.statusCode ?? 0, body: JSON.parse(text) }); });
    });
  });
}

await t.test("registrar: who is not let in, and why", async (t) => {
  const bench = await Bench.open(t);
  t.match(await refusal(t, bench, { authorization: "Bearer host-a:wrong" }), { status: 401, body: { code: "bad-token", retryable: false } });
  t.match(await refusal(t, bench, { authorization: "Bearer host-z:wrong" }), { status: 401, body: { code: "unknown-host" } });
  t.match(await refusal(t, bench, { path: "/elsewhere" }), { status: 404, body: { code: "not-found" } });
  t.match(await refusal(t, bench, { protocol: "careof.v9" }), { status: 400, body: { code: "unsupported-version" } });
  t.equal((await fetch(`http://127.0.0.1:${String(bench.at.agents.port)}/v1/agent`)).status, 426);

  const foreign = bench.agent("host-a");
  await t.rejects(foreign.connect({ locators: [ipInIp(ipAddress("10.66.6.6"))] }), { code: "foreign-care-of" });
  await t.rejects(bench.agent("host-a").connect({ host: hostId("host-b") }), { code: "not-permitted" });
  await t.rejects(bench.agent("host-a").connect({ version: 9 }), { code: "unsupported-version" });
  await t.rejects(bench.agent("host-a").connect({ locators: [] }), { code: "malformed" });
  t.match((await bench.call("GET", "/v1/hosts")).body, [{ name: "host-a", state: "gone" }, { name: "host-b", state: "gone" }, { name: "host-c", state: "gone" }]);
});

await t.test("registrar: nothing before Register, nothing malformed, nothing too large", async (t) => {
  const bench = await Bench.open(t);
  const raw = async (): Promise<{ readonly socket: WebSocket; readonly closed: Promise<number> }> => {
    const socket = new WebSocket(`ws://127.0.0.1:${String(bench.at.agents.port)}/v1/agent`, "careof.v1", { headers: { authorization: "Bearer host-a:token-host-a" } });
    socket.on("error", (error) => { t.comment(error.message); });
    const closed = new Promise<number>((resolve) => { socket.on("close", resolve); });
    await new Promise((resolve) => { socket.once("open", resolve); });
    return { socket, closed };
  };
  const early = bench.agent("host-a");
  await t.rejects(early.connect({ version: 9 }), "another version than ours");
  const garbage = await raw();
  garbage.socket.send(Buffer.from("ffffffff", "hex"));
  t.equal(await garbage.closed, 4002);
  const large = await raw();
  large.socket.send(Buffer.alloc(MAX_FRAME_BYTES + 1));
  t.equal(await large.closed, 1009);
  const text = await raw();
  text.socket.send("hello");
  t.equal(await text.closed, 1003);
  t.equal((await fetch(`http://127.0.0.1:${String(bench.at.api.port)}/healthz`)).status, 200, "and it lives on");
});

await t.test("registrar: a newer connection replaces the older, silence ends one", async (t) => {
  const bench = await Bench.open(t);
  const { a } = await bench.withVm();
  const newer = bench.agent("host-a");
  newer.runs.set(WEB1, epoch(1));
  const registered = await newer.connect();
  t.match(registered, { decision: { reason: "accepted" }, tunnelAddresses: ["192.0.2.1"], keepAliveMs: 200, lifetimeMs: 30_000, heartbeatPort: bench.at.heartbeats.port });
  t.match(registered.bindings, [{ vm: "web1", owner: "host-a", epoch: 1, state: "bound", spec: { listsHost: true, driver: "qemu" } }, { vm: "ext1", owner: null, state: "expired", epoch: 0 }]);
  await until("the older one is closed", () => !a.connected);
  t.match(await bench.where(), { state: "bound", host: "host-a", epoch: 1 });
  t.match((await bench.call("GET", "/v1/hosts")).body, [{ name: "host-a", state: "connected", vms: ["web1"], software: "scripted", capabilities: { canLead: true } }, { state: "connected" }, { state: "gone" }]);
  newer.keepAlive = false;
  await until("the silent one is closed", () => !newer.connected);
  await until("and seen to be gone", async () => ((await bench.call("GET", "/v1/hosts")).body as unknown as { state: string }[])[0]?.state === "gone");
});

await t.test("registrar: a home agent that stood still itself calls nobody silent whose word is on its way", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  const still = new Int32Array(new SharedArrayBuffer(4));
  // The second time it stands still again when it has just read what had come.
  for (const pause of [100, 10, 100]) {
    // Far longer than three keep-alives: by then the look for silent hosts is due, and comes before what they send.
    Atomics.wait(still, 0, 0, 1000);
    await sleep(pause);
  }
  t.same([a.connected, b.connected], [true, true]);
  t.match((await bench.call("GET", "/v1/hosts")).body, [{ name: "host-a", state: "connected" }, { name: "host-b", state: "connected" }, { state: "gone" }]);
});

await t.test("claims and denials over the wire", async (t) => {
  const bench = await Bench.open(t);
  const [a, b, c] = [bench.agent("host-a"), bench.agent("host-b"), bench.agent("host-c")];
  for (const agent of [a, b, c]) await agent.connect();
  t.match(await a.report("web1", "runs", 0), { reason: "accepted", epoch: 1 });
  t.match(await a.report("web1", "runs", 0), { reason: "stale-epoch", epoch: 1 });
  t.match(await a.report("web1", "runs", 1, "refresh"), { reason: "accepted", epoch: 1 });
  t.match(await b.report("web1", "runs", 1), { reason: "both-claim", epoch: 1 });
  t.match(bench.homeAgent.alarms.recent().at(-1), { alarm: "both-claim", hosts: ["host-a", "host-b"] });
  t.match(await b.report("web1", "absent", 1, "stopped"), { reason: "not-owner" });
  t.match(await c.report("web1", "runs", 1), { reason: "not-listed" });
  t.match(await a.report("nobody", "runs", 0), { reason: "unknown-vm" });
  const foreign = await a.ask({ kind: "vmReport", vm: WEB1, state: "runs", basedOn: epoch(1), locator: ipInIp(ipAddress("10.66.6.6")), unreachable: false, evidence: "running" }, "decision");
  t.match(foreign, { reason: "foreign-care-of", epoch: 1 });
  t.match(await a.ask({ kind: "startVm", spec: a.last("bindingUpdate")?.spec ?? b.last("bindingUpdate")?.spec ?? never(), epoch: NEVER_BOUND, adopt: null }, "decision"), { reason: "unsupported" });
  await a.disconnect();
  await until("the owner is gone", () => bench.call("GET", "/v1/hosts").then(({ body }) => (body as unknown as { state: string }[])[0]?.state === "gone"));
  t.match(await b.report("web1", "runs", 1), { reason: "not-owner" }, "silence moves nothing");
  await a.connect();
  t.match(await a.report("web1", "absent", 1, "guest-gone"), { reason: "accepted" });
  t.match(await bench.where(), { state: "expired", host: null, epoch: 1 });
  t.match(await b.report("web1", "runs", 1), { reason: "accepted", epoch: 2 });
  t.equal(bench.entry()?.active, CARE_OF["host-b"]);
  const metrics = await (await fetch(`http://127.0.0.1:${String(bench.at.api.port)}/metrics`)).text();
  t.match(metrics, /careof_registrations_total\{reason="stale-epoch"\} 1/);
  t.match(metrics, /careof_alarms_total\{kind="both-claim"\} 1/);
});

function never(): never {
  throw new Error("no specification has come");
}

/** A guest that sends heartbeats over UDP. */
class Guest {
  readonly #socket = createSocket("udp4");
  readonly #port: number;
  readonly answers: HeartbeatAnswerBody[] = [];
  nonce: Uint8Array | null = null;
  boot = 1;
  sequence = 0;

  constructor(t: Test, port: number) {
    this.#port = port;
    this.#socket.on("message", (datagram) => {
      const answer = verifyAnswer(decodeEnvelope(datagram), KEY);
      if ("body" in answer) this.answers.push(answer.body);
    });
    t.teardown(() => { this.#socket.close(); });
  }

  body(change: Partial<HeartbeatBody> = {}): Uint8Array {
    this.sequence += 1;
    return signHeartbeat({ vm: WEB1, bootId: new Uint8Array(16).fill(this.boot), sequence: this.sequence, timeMs: millis(Date.now()), intervalMs: millis(500), nonce: this.nonce, ...change }, keyId(1), KEY);
  }

  send(datagram: Uint8Array): void {
    this.#socket.send(datagram, this.#port, "127.0.0.1");
  }

  async heard(datagram: Uint8Array, limitMs = 10_000): Promise<HeartbeatAnswerBody | null> {
    const before = this.answers.length;
    this.send(datagram);
    const end = Date.now() + limitMs;
    while (this.answers.length === before && Date.now() < end) await sleep(3);
    return this.answers[before] ?? null;
  }

  /** No answer comes. */
  async silence(datagram: Uint8Array): Promise<HeartbeatAnswerBody | null> {
    return this.heard(datagram, 300);
  }
}

await t.test("heartbeats by UDP: nonce first, then accepted; replays, forgeries and strangers change nothing", async (t) => {
  const bench = await Bench.open(t);
  await bench.withVm();
  const guest = new Guest(t, bench.at.heartbeats.port);
  const first = await guest.heard(guest.body());
  t.equal(first?.reason, "stale-nonce");
  t.equal((await bench.where())["lastHeartbeat"], null);
  guest.nonce = first?.nonce ?? null;
  const good = guest.body();
  t.match(await guest.heard(good), { reason: "accepted", sequence: 2 });
  t.match(await bench.where(), { state: "bound", evidence: "heartbeat", lastHeartbeat: /^\d{4}-.*Z$/ });
  t.match(await guest.heard(good), { reason: "replayed" });
  const forged = Buffer.from(guest.body());
  forged[forged.length - 1] = (forged[forged.length - 1] ?? 0) ^ 1;
  t.equal(await guest.silence(forged), null, "a wrong tag gets no answer");
  t.equal(await guest.silence(guest.body({ vm: vmId("nobody") })), null);
  t.equal(await guest.silence(Buffer.from("garbage")), null);
  t.equal(await guest.silence(Buffer.alloc(5000)), null);
  guest.boot = 2;
  guest.sequence = 0;
  const reboot = await guest.heard(guest.body());
  t.equal(reboot?.reason, "stale-nonce", "the other boot's nonce is not its own");
  guest.nonce = reboot?.nonce ?? null;
  t.equal((await guest.heard(guest.body()))?.reason, "accepted");
  t.equal((await guest.heard(good))?.reason, "stale-nonce", "the former boot is over for good");
  const metrics = await (await fetch(`http://127.0.0.1:${String(bench.at.api.port)}/metrics`)).text();
  for (const line of ["accepted\"} 2", "stale-nonce\"} 3", "replayed\"} 1", "bad-tag\"} 1", "unknown-vm\"} 1", "malformed\"} 1"]) t.ok(metrics.includes(`careof_heartbeats_total{reason="${line}`), line);
});

await t.test("heartbeats handed on by hosts: the answer goes back the same way; only an external VM follows them", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  const c = bench.agent("host-c");
  await c.connect();
  const guest = new Guest(t, bench.at.heartbeats.port);
  const relay = async (agent: typeof a, datagram: Uint8Array): Promise<string> => {
    const before = agent.count("heartbeatAnswer");
    agent.tell({ kind: "relayedHeartbeat", envelope: datagram, port: 999, address: ipAddress("198.51.100.7") });
    await until("an answer", () => agent.count("heartbeatAnswer") > before);
    const answer = agent.last("heartbeatAnswer");
    const read = answer === undefined ? null : verifyAnswer(decodeEnvelope(answer.envelope), KEY);
    t.match(answer, { port: 999, address: "198.51.100.7" });
    if (read === null || !("body" in read)) throw new Error("no answer");
    guest.nonce = read.body.nonce ?? guest.nonce;
    return read.body.reason;
  };
  t.equal(await relay(a, guest.body()), "stale-nonce");
  t.equal(await relay(a, guest.body()), "accepted");
  t.equal(await relay(c, guest.body()), "not-listed");
  await relay(b, guest.body());
  t.match(await bench.where(), { host: "host-a", epoch: 1 }, "qemu: a heartbeat moves nothing");

  t.match(await a.report("ext1", "runs", 0), { reason: "accepted", epoch: 1 });
  guest.nonce = null;
  const ext = (): Uint8Array => guest.body({ vm: vmId("ext1") });
  await relay(b, ext());
  await relay(b, ext());
  t.match(await bench.where("ext1"), { host: "host-a", epoch: 1 }, "both claim it: nothing moves");
  t.match(bench.homeAgent.alarms.recent().at(-1), { alarm: "both-claim", vm: "ext1" });
  t.match(await a.report("ext1", "absent", 1, "resync"), { reason: "accepted" });
  await relay(b, ext());
  await until("it follows", async () => (await bench.where("ext1"))["host"] === "host-b");
  t.match(await bench.where("ext1"), { epoch: 2, evidence: "heartbeat" });
  t.match(await a.report("ext1", "runs", 2, "running"), { reason: "accepted", epoch: 3 }, "an announcement is stronger");
});

await t.test("replay window: each heartbeat of a boot once, in any order within the window", (t) => {
  const window = new ReplayWindow(new Uint8Array(32).fill(1));
  const boot = new Uint8Array(16).fill(7);
  const beat = (sequence: number, nonce: Uint8Array | null): Parameters<ReplayWindow["check"]>[1] => ({ vm: WEB1, bootId: boot, sequence, nonce });
  const { nonce } = window.check(null, beat(1, null));
  t.equal(window.check(null, beat(1, new Uint8Array(16))).reason, "stale-nonce");
  t.equal(new ReplayWindow(new Uint8Array(32).fill(2)).check(null, beat(1, nonce)).reason, "stale-nonce", "after a restart of the home agent nothing old is fresh");
  fc.assert(fc.property(fc.array(fc.integer({ min: 1, max: 80 }), { maxLength: 120 }), (sequences) => {
    let state: ReplayState | null = null;
    let highest = 0;
    const seen = new Set<number>();
    for (const sequence of sequences) {
      const verdict = window.check(state, beat(sequence, nonce));
      const fresh = !seen.has(sequence) && (sequence > highest - 32);
      if (verdict.reason !== (fresh ? "accepted" : "replayed")) throw new Error(`${String(sequence)}: ${verdict.reason}`);
      state = verdict.state;
      if (fresh) seen.add(sequence);
      highest = Math.max(highest, sequence);
    }
  }));
  t.end();
});
