import { execFileSync, spawn, spawnSync } from "node:child_process";
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { z } from "zod";
import { HeartbeatService, HeartbeatSession, MAX_RESENDS, type Verdict } from "../../guest/heartbeat.js";
import { runHeartbeat } from "../../guest/main.js";
import { keyId, millis, vmId } from "../../model/ids.js";
import { decodeEnvelope, signAnswer, verifyHeartbeat, type HeartbeatAnswerBody, type HeartbeatBody } from "../../proto/heartbeat.js";
import { HeartbeatKey } from "../../proto/heartbeat-key.js";
import { FakeClock } from "../model/fake-clock.js";

const root = join(import.meta.dirname, "..", "..", "..");
const vectors = z.object({
  key: z.string(),
  bootId: z.string(),
  sent: z.number(),
  nonce: z.string(),
  heartbeats: z.array(z.object({
    what: z.string(), vm: z.string(), keyId: z.number(), sequence: z.number(), timeMs: z.number(), intervalMs: z.number(), nonce: z.string().nullable(),
    body: z.string(), tag: z.string(), envelope: z.string(),
  })).min(1),
  answers: z.array(z.object({ what: z.string(), envelope: z.string(), verdict: z.string(), nonce: z.string() })).min(1),
}).parse(JSON.parse(readFileSync(join(root, "test", "guest", "vectors.json"), "utf8")));

const key = HeartbeatKey.fromHex(vectors.key);
const bootId = bytes(vectors.bootId);
const directory = mkdtempSync(join(tmpdir(), "careof-heartbeat-"));
t.teardown(() => { rmSync(directory, { recursive: true, force: true }); });
const program = join(directory, "heartbeat");
execFileSync("gcc", ["-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", program, join(root, "guest", "heartbeat.c")], { stdio: "inherit" });

function bytes(hex: string): Uint8Array {
  return new Uint8Array(Buffer.from(hex, "hex"));
}

function hex(data: Uint8Array | null): string | null {
  return data === null ? null : Buffer.from(data).toString("hex");
}

const sender = { vm: vmId("web1"), keyId: keyId(1), key, bootId, interval: millis(500) };

t.test("heartbeats of the vectors", (t) => {
  for (const vector of vectors.heartbeats) {
    const own = { ...sender, vm: vmId(vector.vm), keyId: keyId(vector.keyId), interval: millis(vector.intervalMs) };
    const session = new HeartbeatSession(own, { sequence: vector.sequence - 1, nonce: vector.nonce === null ? null : bytes(vector.nonce) });
    t.equal(hex(session.next(millis(vector.timeMs))), vector.envelope, `TypeScript: ${vector.what}`);
    const nonce = vector.nonce === null ? [] : ["--nonce", vector.nonce];
    const printed = execFileSync(program, [
      "--vm", vector.vm, "--key-hex", vectors.key, "--key-id", String(vector.keyId), "--interval", String(vector.intervalMs), ...nonce,
      "--print-vector", vectors.bootId, String(vector.sequence), String(vector.timeMs),
    ], { encoding: "utf8" });
    t.equal(printed, `${vector.envelope}\n`, `C: ${vector.what}`);
    const envelope = decodeEnvelope(bytes(vector.envelope));
    t.same([hex(envelope.body), hex(envelope.tag), envelope.keyId], [vector.body, vector.tag, vector.keyId], `decoded: ${vector.what}`);
    const verified = verifyHeartbeat(envelope, (vm, id) => (vm === vector.vm && id === vector.keyId ? key : "unknown-vm"));
    t.match(verified, { body: { vm: vector.vm, sequence: vector.sequence, timeMs: vector.timeMs, intervalMs: vector.intervalMs } }, `verified: ${vector.what}`);
  }
  t.end();
});

t.test("the documented heartbeat is the first of the vectors", (t) => {
  const readme = readFileSync(join(root, "proto", "README.md"), "utf8");
  const first = vectors.heartbeats[0];
  for (const part of [first?.tag ?? "no tag", first?.envelope ?? "no envelope"]) t.ok(readme.includes(part), part);
  const line = /^body +([0-9a-f ]+)$/m.exec(readme)?.[1];
  t.equal(line?.replaceAll(" ", ""), first?.body);
  t.end();
});

t.test("answers of the vectors", (t) => {
  for (const vector of vectors.answers) {
    const session = new HeartbeatSession(sender, { sequence: vectors.sent, nonce: bytes(vectors.nonce) });
    t.same([session.take(bytes(vector.envelope)), hex(session.nonce)], [vector.verdict, vector.nonce], `TypeScript: ${vector.what}`);
    const printed = execFileSync(program, [
      "--vm", "web1", "--key-hex", vectors.key, "--nonce", vectors.nonce, "--print-vector", vectors.bootId, String(vectors.sent), "0", "--answer", vector.envelope,
    ], { encoding: "utf8" });
    t.same(printed.split("\n").slice(1, 3), [vector.verdict, vector.nonce], `C: ${vector.what}`);
  }
  t.end();
});

t.test("every cut and every flipped bit of an answer: neither program takes it", (t) => {
  const good = bytes(vectors.answers[0]?.envelope ?? "");
  for (let i = 0; i < good.length * 8; i++) {
    const flipped = Uint8Array.from(good);
    flipped[i >> 3] = (flipped[i >> 3] ?? 0) ^ (1 << (i & 7));
    const session = new HeartbeatSession(sender, { sequence: vectors.sent });
    const verdict = session.take(flipped);
    // The tag does not cover the key id, which only says which key to try.
    if (verdict === "accepted") t.equal(decodeEnvelope(flipped).keyId === 1, false, `bit ${String(i)}`);
    else t.equal(session.nonce, null);
  }
  for (let length = 0; length < good.length; length++) {
    t.equal(new HeartbeatSession(sender, { sequence: vectors.sent }).take(good.subarray(0, length)), "malformed");
  }
  t.end();
});

t.test("the C program says what is wrong and exits 2", (t) => {
  const base = ["--vm", "web1", "--key-hex", vectors.key, "--to", "127.0.0.1:9"];
  const cases: readonly (readonly [string, readonly string[], RegExp])[] = [
    ["nothing", [], /--vm wants/],
    ["a bad name", ["--vm", "Web 1"], /--vm wants/],
    ["no key", ["--vm", "web1", "--to", "127.0.0.1:9"], /--key-hex and --key-file/],
    ["two keys", [...base, "--key-file", "/dev/null"], /--key-hex and --key-file/],
    ["a short key", ["--vm", "web1", "--key-hex", "00"], /64 hexadecimal/],
    ["no destination", base.slice(0, 4), /--to is needed/],
    ["a host name", [...base, "--to", "home:4434"], /address in digits/],
    ["a port too large", [...base, "--to", "127.0.0.1:65536"], /1 to 65535/],
    ["an interval of 0", [...base, "--interval", "0"], /10 to 3600000/],
    ["a negative interval", [...base, "--interval", "-1"], /10 to 3600000/],
    ["an unknown option", [...base, "--loud", "1"], /unknown/],
    ["an option without value", [...base, "--key-id"], /lacks its value/],
    ["an argument", [...base, "now"], /only options/],
    ["a nonce of its own", [...base, "--nonce", vectors.nonce], /go with --print-vector/],
  ];
  for (const [what, args, complaint] of cases) {
    const ran = spawnSync(program, args, { encoding: "utf8" });
    t.equal(ran.status, 2, what);
    t.match(ran.stderr, complaint, what);
    t.equal(ran.stdout, "", what);
  }
  const help = spawnSync(program, ["--help"], { encoding: "utf8" });
  t.equal(help.status, 0);
  const missing = spawnSync(program, ["--vm", "web1", "--key-file", join(directory, "none"), "--to", "127.0.0.1:9"], { encoding: "utf8" });
  t.equal(missing.status, 1, "a key file that is not there");
  t.match(missing.stderr, /cannot read/);
  t.end();
});

/** A home agent of a few lines: answers by `reply`, keeps what it verified. */
class Home {
  readonly heard: HeartbeatBody[] = [];
  readonly socket: Socket = createSocket("udp4");
  readonly #waiting = new Set<() => void>();

  constructor(reply: (body: HeartbeatBody, count: number) => Pick<HeartbeatAnswerBody, "reason" | "nonce"> | null) {
    this.socket.on("message", (datagram, from) => {
      const result = verifyHeartbeat(decodeEnvelope(datagram), () => key);
      if (!("body" in result)) return;
      this.heard.push(result.body);
      const answer = reply(result.body, this.heard.length);
      if (answer !== null) {
        const { sequence, bootId } = result.body;
        this.socket.send(signAnswer({ ...answer, sequence, bootId, timeMs: millis(Date.now()) }, keyId(1), key), from.port, from.address);
      }
      for (const wake of this.#waiting) wake();
    });
  }

  async listen(): Promise<string> {
    this.socket.bind(0, "127.0.0.1");
    await once(this.socket, "listening");
    return `127.0.0.1:${String(this.socket.address().port)}`;
  }

  async until(enough: (heard: readonly HeartbeatBody[]) => boolean): Promise<void> {
    await new Promise<void>((resolve) => {
      const look = (): void => {
        if (!enough(this.heard)) return;
        this.#waiting.delete(look);
        resolve();
      };
      this.#waiting.add(look);
      look();
    });
  }
}

const NONCE = bytes("0f".repeat(16));
const firstStale = (body: HeartbeatBody): Pick<HeartbeatAnswerBody, "reason" | "nonce"> =>
  (hex(body.nonce) === hex(NONCE) ? { reason: "accepted", nonce: null } : { reason: "stale-nonce", nonce: NONCE });

const programs: readonly (readonly [string, (to: string, intervalMs: number) => () => Promise<void>])[] = [
  ["C", (to, intervalMs) => {
    const keyFile = join(directory, "c.key");
    writeFileSync(keyFile, `${vectors.key}\n`);
    const child = spawn(program, ["--vm", "web1", "--key-file", keyFile, "--to", to, "--interval", String(intervalMs)], { stdio: "inherit" });
    const exited = once(child, "exit");
    return async () => {
      child.kill("SIGTERM");
      t.same(await exited, [0, null], "ends by SIGTERM with 0");
    };
  }],
  ["TypeScript", (to, intervalMs) => {
    writeFileSync(join(directory, "ts.key"), vectors.key);
    const file = join(directory, "heartbeat.yaml");
    writeFileSync(file, `vm: web1\nkeyFile: ts.key\nto: ${to}\nintervalMs: ${String(intervalMs)}\nlog: { level: silent }\n`);
    const stop = new AbortController();
    const done = runHeartbeat(file, stop.signal);
    return async () => {
      stop.abort();
      await done;
    };
  }],
];

for (const [name, start] of programs) {
  t.test(`${name}: the nonce is echoed at once, then a heartbeat every interval`, async (t) => {
    const home = new Home(firstStale);
    const to = await home.listen();
    const began = performance.now();
    const stop = start(to, 300);
    await home.until((heard) => heard.length >= 2);
    const second = performance.now() - began;
    await home.until((heard) => heard.length >= 4);
    const fourth = performance.now() - began;
    await stop();
    home.socket.close();
    t.same(home.heard.slice(0, 4).map((body) => [body.sequence, hex(body.nonce)]), [[1, null], [2, hex(NONCE)], [3, hex(NONCE)], [4, hex(NONCE)]]);
    t.equal(new Set(home.heard.map((body) => hex(body.bootId))).size, 1, "one boot id");
    t.equal(home.heard[0]?.intervalMs, 300);
    t.ok(Math.abs((home.heard[0]?.timeMs ?? 0) - Date.now()) < 60_000, "wall time");
    t.ok(fourth - second >= 2 * 270 - 15, `two intervals took ${String(Math.round(fourth - second))} ms`);
  });

  t.test(`${name}: nobody there, then somebody`, async (t) => {
    const gone = new Home(() => null);
    const to = await gone.listen();
    const port = gone.socket.address().port;
    const stop = start(to, 20);
    // It has begun.
    await gone.until((heard) => heard.length > 0);
    gone.socket.close();
    await new Promise((resolve) => setTimeout(resolve, 150));
    const home = new Home(firstStale);
    home.socket.bind(port, "127.0.0.1");
    await home.until((heard) => hex(heard.at(-1)?.nonce ?? null) === hex(NONCE));
    t.ok((home.heard[0]?.sequence ?? 0) > 1, "it went on meanwhile");
    await stop();
    home.socket.close();
  });

  t.test(`${name}: a home agent that never accepts the nonce is not shouted at`, async (t) => {
    const home = new Home(() => ({ reason: "stale-nonce", nonce: NONCE }));
    const to = await home.listen();
    const began = performance.now();
    const stop = start(to, 400);
    await home.until((heard) => heard.length > MAX_RESENDS);
    await new Promise((resolve) => setTimeout(resolve, 700));
    await stop();
    home.socket.close();
    const intervals = (performance.now() - began) / 400;
    t.ok(home.heard.length <= Math.ceil(intervals + 0.25) * (1 + MAX_RESENDS), `${String(home.heard.length)} heartbeats in ${intervals.toFixed(2)} intervals`);
  });
}

t.test("C --once: 0 when it was accepted, 1 when nobody answers; no network is survived", async (t) => {
  const home = new Home(firstStale);
  const to = await home.listen();
  const once1 = spawn(program, ["--vm", "web1", "--key-hex", vectors.key, "--to", to, "--once"]);
  t.same(await once(once1, "exit"), [0, null]);
  home.socket.close();
  const nobody = spawnSync(program, ["--vm", "web1", "--key-hex", vectors.key, "--to", "127.0.0.1:9", "--once"]);
  t.equal(nobody.status, 1);
  const unreachable = spawnSync(program, ["--vm", "web1", "--key-hex", vectors.key, "--to", "240.0.0.1:9", "--once", "--verbose"], { encoding: "utf8" });
  t.equal(unreachable.status, 1, "not killed by an error of the network");
});

t.test("the service's timers", (t) => {
  const clock = new FakeClock();
  const session = new HeartbeatSession(sender);
  const sent: number[] = [];
  const verdicts: Verdict[] = [];
  let random = 0;
  const begin = clock.monotonic();
  const service = new HeartbeatService({
    session, interval: millis(1000), clock, random: () => random,
    send: () => { sent.push(clock.monotonic() - begin); },
    onChange: (verdict) => { verdicts.push(verdict); },
  });
  service.start();
  service.start();
  t.same(sent, [0], "the first at once, and starting twice is starting once");
  clock.advance(900);
  random = 1;
  clock.advance(900);
  clock.advance(1100);
  t.same(sent, [0, 900, 1800, 2900], "jitter from -10 to +10 per cent");
  const stale = signAnswer({ reason: "stale-nonce", nonce: NONCE, sequence: 1, bootId, timeMs: millis(0) }, keyId(1), key);
  for (let i = 0; i < 10; i++) service.receive(stale);
  t.equal(sent.length, 4 + MAX_RESENDS, "bounded");
  t.same(verdicts, ["stale-nonce"], "said once");
  service.stop();
  service.receive(stale);
  clock.advance(10_000);
  t.equal(sent.length, 4 + MAX_RESENDS);
  t.same(clock.timers(), [], "nothing left set");
  t.end();
});

t.test("configuration errors", async (t) => {
  const cases: readonly (readonly [string, string, string])[] = [
    ["an unknown key", "vm: web1\nkeyFile: good.key\nto: 127.0.0.1:1\nloud: true\n", "config-invalid"],
    ["a host name", "vm: web1\nkeyFile: good.key\nto: home:1\n", "config-invalid"],
    ["port 0", "vm: web1\nkeyFile: good.key\nto: 127.0.0.1:0\n", "config-invalid"],
    ["an interval of 5", "vm: web1\nkeyFile: good.key\nto: 127.0.0.1:1\nintervalMs: 5\n", "config-invalid"],
    ["a key id of -1", "vm: web1\nkeyFile: good.key\nkeyId: -1\nto: 127.0.0.1:1\n", "config-invalid"],
    ["no key file", "vm: web1\nkeyFile: none.key\nto: 127.0.0.1:1\n", "key-unreadable"],
    ["a bad key", "vm: web1\nkeyFile: bad.key\nto: 127.0.0.1:1\n", "malformed-key"],
    ["no YAML", "vm: [web1\n", "config-malformed"],
  ];
  writeFileSync(join(directory, "good.key"), vectors.key);
  writeFileSync(join(directory, "bad.key"), vectors.key.slice(1));
  const file = join(directory, "wrong.yaml");
  for (const [what, text, code] of cases) {
    writeFileSync(file, text);
    await t.rejects(runHeartbeat(file, AbortSignal.timeout(50)), { name: "CareofError", code }, what);
  }
});
