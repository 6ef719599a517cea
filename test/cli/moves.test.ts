import { setTimeout as sleep } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import fc from "fast-check";
import t from "tap";
import { millis } from "../../model/ids.js";
import { SystemClock } from "../../model/clock.js";
import { ApiClient } from "../../cli/api-client.js";
import { EventParser } from "../../cli/event-parser.js";
import { follow } from "../../cli/migration-follower.js";
import { progressLine } from "../../cli/migration-progress.js";
import { migrationReply } from "../../cli/replies.js";
import { careof, CapturedTerminal, shortLimits } from "./captured-terminal.js";
import { at, hostA, moved, moving, ScriptedHomeAgent, web1 } from "./scripted-home-agent.js";

const contract = ["migration", "vm", "from", "to", "result", "reason", "totalMs", "pauseMs", "gapDownMs", "gapUpMs", "bytes", "detail", "overflowed", "hold", "undelivered"];
const ID = "web1%404";

/** A home agent that knows one migration under way. */
async function withMove(t: { teardown: (end: () => Promise<void>) => unknown }): Promise<ScriptedHomeAgent> {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  return agent.on("POST /v1/migrations", { status: 202, json: moving }).on(`GET /v1/migrations/${ID}`, { json: moving });
}

t.test("migrate follows the events: progress on standard error, the result on standard output", async (t) => {
  const agent = await withMove(t);
  agent.streams().on(`GET /v1/migrations/${ID}`, (response) => {
    response.end(JSON.stringify(moving), () => {
      agent.emit("migration", { ...moving, migration: "other@9", vm: "other", result: "failed", reason: "x" });
      agent.emit("news", { "from a newer": "home agent" });
      agent.emit("migration", { ...moving, phase: "lead" });
      agent.emit("migration", moved);
    });
  });
  const ran = await careof(["migrate", "web1", "host-b", "--output", "json", "--api", agent.url]);
  t.equal(ran.code, 0);
  t.same(JSON.parse(ran.stdout), { migration: "web1@4", vm: "web1", from: "host-a", to: "host-b", result: "completed", reason: "accepted", totalMs: 3210, pauseMs: 45.25, gapDownMs: 0, gapUpMs: null, bytes: 130_000_000, detail: null, overflowed: null, hold: null, undelivered: null });
  t.same(Object.keys(JSON.parse(ran.stdout) as object), contract, "the order of the fields too");
  t.match(ran.stderr, /^web1 host-a → host-b {2}copy {2}77% {2}30\.0 MB left {2}100 MB\/s {2}pass 2 {2}0\.3 s left$/m);
  t.match(ran.stderr, /lead/);
  t.notMatch(ran.stderr, /other|\u001b/);
  t.same(agent.asked.find((each) => each.method === "POST")?.body, { vm: "web1", host: "host-b" });
  const text = await careof(["migrate", "web1", "host-b", "--api", agent.url]);
  t.equal(text.stdout, "web1 moved from host-a to host-b in 3.2 s: paused 45 ms, gap down 0.0 ms, up –, 130 MB\n");
  agent.on("POST /v1/migrations", { status: 202, json: { ...moved, overflowed: 7 } });
  t.match((await careof(["migrate", "web1", "host-b", "--api", agent.url])).stdout, /130 MB; 7 packets were LOST: the queue of its port was full \(ports\.queueLength\)\n$/);
  agent.on("POST /v1/migrations", { status: 202, json: { ...moved, result: "failed", reason: "relay-failed", undelivered: 3 } });
  t.match((await careof(["migrate", "web1", "host-b", "--api", agent.url])).stdout, /^web1 was not moved \(relay-failed\).*; 3 packets that waited for it at host-b were LOST\n$/);
  agent.on("POST /v1/migrations", { status: 202, json: { ...moved, hold: "led" } });
  t.equal((await careof(["migrate", "web1", "host-b", "--api", agent.url])).stdout, text.stdout, "as it should be: not a word");
  agent.on("POST /v1/migrations", { status: 202, json: { ...moved, hold: "hold-expired" } });
  t.match((await careof(["migrate", "web1", "host-b", "--api", agent.url])).stdout, /130 MB; packets may have been lost at the switch \(hold-expired\)\n$/);
  t.equal((JSON.parse((await careof(["migrate", "web1", "host-b", "--output", "json", "--api", agent.url])).stdout) as { readonly hold: string }).hold, "hold-expired");
});

t.test("migrate on a terminal draws one line over and over", async (t) => {
  const agent = await withMove(t);
  agent.streams(() => setTimeout(() => { agent.emit("migration", moved); }, 30));
  const terminal = new CapturedTerminal();
  terminal.errIsLive = true;
  await careof(["migrate", "web1", "host-b", "--api", agent.url], { terminal });
  t.match(terminal.stderr, /\r\u001b\[Kweb1 host-a → host-b {2}copy/);
  t.ok(terminal.stderr.endsWith("\r\u001b[K"), "and leaves nothing of it");
});

t.test("migrate: how it may end", async (t) => {
  const agent = await withMove(t);
  agent.streams();
  const cases: readonly { readonly end: object; readonly code: number; readonly says: RegExp }[] = [
    { end: moved, code: 0, says: /moved from host-a to host-b/ },
    { end: { ...moved, detail: "it stood longer than usual" }, code: 0, says: /^web1 moved .*\nit stood longer than usual\n$/ },
    { end: { ...moved, result: "failed", reason: "relay-failed" }, code: 1, says: /was not moved \(relay-failed\)/ },
    { end: { ...moved, result: "cancelled", reason: "cancelled-by-operator" }, code: 1, says: /cancelled.*runs on host-a/ },
    { end: { ...moved, result: "lost", reason: "target-gone", pauseMs: null }, code: 1, says: /LOST \(target-gone\).*careof resolve web1 HOST/ },
    { end: { ...moved, result: "lost", reason: "released-unknown", pauseMs: null, detail: "host-b is silent" }, code: 1, says: /LOST \(released-unknown\).*\nhost-b is silent\n$/ },
    { end: { ...moved, result: "lost", reason: "postcopy-broken", pauseMs: null, detail: "its hypervisor says postcopy-paused" }, code: 1, says: /is dead \(postcopy-broken\).*careof start web1 HOST` starts it from its disks\nits hypervisor says postcopy-paused/ },
  ];
  for (const { end, code, says } of cases) {
    agent.on(`GET /v1/migrations/${ID}`, { json: end });
    const text = await careof(["migrate", "web1", "host-b", "--api", agent.url]);
    t.equal(text.code, code);
    t.match(text.stdout, says);
    const json = await careof(["migrate", "web1", "host-b", "--api", agent.url, "--output", "json"]);
    t.equal(json.code, code);
    t.same(Object.keys(JSON.parse(json.stdout) as object), contract);
  }
});

t.test("migrate: what one move may have otherwise than configured", async (t) => {
  const agent = await withMove(t);
  const words = ["--bandwidth", "1.5M", "--downtime-limit", "300", "--auto-converge", "--channels", "4", "--timeout", "2.5", "--on-timeout", "force"];
  await careof(["migrate", "web1", "host-b", "--no-wait", "--api", agent.url, ...words]);
  t.same(agent.asked.at(-1)?.body, { vm: "web1", host: "host-b", bandwidth: 1_500_000, downtimeLimitMs: 300, autoConverge: true, channels: 4, timeoutMs: 2500, onTimeout: "force" });
  await careof(["migrate", "web1", "host-b", "--no-wait", "--api", agent.url, "--no-auto-converge", "--postcopy", "--bandwidth", "0"]);
  t.same(agent.asked.at(-1)?.body, { vm: "web1", host: "host-b", bandwidth: 0, autoConverge: false, postcopy: true }, "postcopy is asked for");
  await careof(["migrate", "web1", "host-b", "--no-wait", "--api", agent.url, "--no-postcopy", "--no-encrypt"]);
  t.same(agent.asked.at(-1)?.body, { vm: "web1", host: "host-b", postcopy: false, encrypt: false }, "and forbidden; in clear");
  await careof(["migrate", "web1", "host-b", "--no-wait", "--api", agent.url, "--encrypt"]);
  t.same(agent.asked.at(-1)?.body, { vm: "web1", host: "host-b", encrypt: true });
  for (const wrong of [["--bandwidth", "fast"], ["--bandwidth", "-1"], ["--bandwidth", "0.4"], ["--bandwidth", "50"], ["--bandwidth", "0.9k"], ["--bandwidth", "999999999999G"], ["--downtime-limit", "0"], ["--channels", "17"], ["--channels", "two"], ["--timeout", "0"], ["--timeout", "3601"], ["--on-timeout", "hope"]]) {
    const asked = agent.asked.length;
    t.equal((await careof(["migrate", "web1", "host-b", "--api", agent.url, ...wrong])).code, 2, wrong.join(" "));
    t.equal(agent.asked.length, asked);
  }
  t.match((await careof(["migrate", "web1", "host-b", "--api", agent.url, "--bandwidth", "50"])).stderr, /50 are bytes a second, and fewer than 1k: say 50M/, "virsh counts in MiB a second");
  await careof(["migrate", "web1", "host-b", "--no-wait", "--api", agent.url, "--bandwidth", "1k"]);
  t.match(agent.asked.at(-1)?.body, { bandwidth: 1000 });
});

t.test("migrate: a guest that writes faster than is copied is told of once, and in the line", async (t) => {
  const agent = await withMove(t);
  const detail = "it does not converge: so and so";
  const progress = { ...moving.progress, dirtyBytesPerSecond: 9e7, throttlePercent: 20 };
  agent.streams(() => setTimeout(() => {
    agent.emit("migration", { ...moving, phase: "copy", progress, detail });
    agent.emit("migration", { ...moving, phase: "lead", progress, detail: `${detail} still` });
    agent.emit("migration", { ...moved, result: "failed", reason: "timed-out", detail: `not completed; ${detail}` });
  }, 30));
  const ran = await careof(["migrate", "web1", "host-b", "--api", agent.url]);
  t.equal(ran.stderr.split(detail).length, 2, "once");
  t.match(ran.stderr, /lead .* pass 2 {2}writes 90\.0 MB\/s, held back 20%$/m);
  t.equal(ran.stdout, `web1 was not moved (timed-out); \`careof where web1\` says where it runs\nnot completed; ${detail}\n`);
});

t.test("migrate --no-wait returns at once", async (t) => {
  const agent = await withMove(t);
  const ran = await careof(["migrate", "web1", "host-b", "--no-wait", "--api", agent.url, "--output", "json"]);
  t.equal(ran.code, 0);
  t.match(JSON.parse(ran.stdout), { migration: "web1@4", result: null });
  t.equal(agent.asked.length, 1);
  t.match((await careof(["migrate", "web1", "host-b", "--no-wait", "--api", agent.url])).stdout, /web1@4: web1 moves from host-a to host-b/);
});

t.test("migrate refused: nothing was begun, and the JSON says why", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  for (const code of ["unknown-vm", "unknown-host", "not-listed", "already-here", "already-moving", "host-gone", "not-bound"]) {
    agent.on("POST /v1/migrations", { status: 409, json: { code, message: `no: ${code}`, retryable: false } });
    const ran = await careof(["migrate", "web1", "host-b", "--api", agent.url, "--output", "json"]);
    t.equal(ran.code, 1, code);
    t.match(ran.stderr, new RegExp(`\\(${code}\\)`));
    t.match(JSON.parse(ran.stdout), { migration: null, vm: "web1", to: "host-b", result: "failed", reason: code });
    t.equal((await careof(["migrate", "web1", "host-b", "--api", agent.url])).stdout, "", `${code}: text goes to standard error only`);
  }
});

t.test("Ctrl-C cancels the move and asks nothing; a second one leaves it", async (t) => {
  const agent = await withMove(t);
  agent.streams();
  agent.on(`DELETE /v1/migrations/${ID}`, (response) => {
    response.writeHead(202).end(JSON.stringify(moving));
    setTimeout(() => { agent.emit("migration", { ...moved, result: "cancelled", reason: "cancelled-by-operator" }); }, 20);
  });
  const terminal = new CapturedTerminal();
  const running = careof(["migrate", "web1", "host-b", "--api", agent.url], { terminal });
  await terminal.until((each) => each.stderr.includes("copy"));
  while (agent.readers === 0) await sleep(5);
  terminal.interrupt();
  const ran = await running;
  t.equal(ran.code, 1);
  t.match(ran.stderr, /cancelling web1@4; Ctrl-C again stops watching it/);
  t.match(ran.stdout, /not moved: cancelled/);

  agent.on(`DELETE /v1/migrations/${ID}`, { status: 409, json: { code: "not-permitted", message: "web1 is released already", retryable: false } });
  const stubborn = new CapturedTerminal();
  const second = careof(["migrate", "web1", "host-b", "--api", agent.url], { terminal: stubborn });
  await stubborn.until((each) => each.listens && each.stderr.includes("copy"));
  stubborn.interrupt();
  await stubborn.until((each) => each.stderr.includes("cannot be cancelled: web1 is released already"));
  stubborn.interrupt();
  const left = await second;
  t.equal(left.code, 1);
  t.match(left.stderr, /web1@4 goes on without being watched \(left\)/);
  t.equal(left.stdout, "");
  t.notOk(stubborn.listens);
});

t.test("Ctrl-C before the home agent has answered: the move is cancelled as it begins; a second one says that nobody knows", async (t) => {
  const agent = await withMove(t);
  agent.streams();
  let answer = (): void => undefined;
  agent.on("POST /v1/migrations", (response) => { answer = () => { response.writeHead(202).end(JSON.stringify(moving)); }; });
  agent.on(`DELETE /v1/migrations/${ID}`, (response) => {
    response.writeHead(202).end(JSON.stringify(moving));
    agent.on(`GET /v1/migrations/${ID}`, { json: { ...moved, result: "cancelled", reason: "cancelled-by-operator" } });
    agent.cut();
  });
  const asked = async (): Promise<void> => { while (agent.asked.length === 0) await sleep(5); };
  const terminal = new CapturedTerminal();
  const running = careof(["migrate", "web1", "host-b", "--output", "json", "--api", agent.url], { terminal });
  await asked();
  terminal.interrupt();
  t.match(terminal.stderr, /^the move of web1 is cancelled as soon as it has begun; Ctrl-C again stops waiting for that$/m);
  t.notOk(agent.asked.some(({ method }) => method === "DELETE"));
  answer();
  const ran = await running;
  t.equal(ran.code, 1);
  t.match(ran.stderr, /cancelling web1@4/);
  t.match(JSON.parse(ran.stdout), { migration: "web1@4", result: "cancelled" });

  agent.asked.length = 0;
  const impatient = new CapturedTerminal();
  const second = careof(["migrate", "web1", "host-b", "--output", "json", "--api", agent.url], { terminal: impatient });
  await asked();
  impatient.interrupt();
  impatient.interrupt();
  const left = await second;
  t.equal(left.code, 1);
  t.match(JSON.parse(left.stdout), { migration: null, vm: "web1", result: null, reason: "left" });
  t.notOk(impatient.listens);
});

t.test("a home agent that goes away and comes back loses no result", async (t) => {
  const agent = await withMove(t);
  agent.streams().on(`GET /v1/migrations/${ID}`, (response) => {
    response.end(JSON.stringify(moving), () => {
      agent.on(`GET /v1/migrations/${ID}`, { json: moved });
      setTimeout(() => { agent.cut(); }, 20);
    });
  });
  const ran = await careof(["migrate", "web1", "host-b", "--api", agent.url, "--output", "json"], { limits: shortLimits });
  t.equal(ran.code, 0);
  t.match(ran.stderr, /the move goes on, trying again/);
});

t.test("following ends: silence, patience, refusal", async (t) => {
  const agent = await withMove(t);
  const clock = new SystemClock({ keepAlive: true });
  const options = {
    api: new ApiClient(new URL(agent.url), shortLimits, clock), clock, migration: "web1@4", onChange: () => undefined, signal: new AbortController().signal, patience: millis(150), pause: millis(20),
  };
  const lost: string[] = [];
  agent.streams();
  await t.rejects(follow({ ...options, onLost: (error) => { lost.push(error.code); agent.on(`GET /v1/migrations/${ID}`, { status: 503, json: { code: "not-ready", message: "starting", retryable: true } }); } }), { code: "not-ready" });
  t.same(lost, ["timed-out"], "a stream that falls silent is a lost one, said once");
  agent.on(`GET /v1/migrations/${ID}`, { status: 404, json: { code: "unknown-migration", message: "no such move", retryable: false } });
  await t.rejects(follow({ ...options, onLost: () => undefined }), { code: "unknown-migration" });
  agent.on("GET /v1/events", { status: 429, json: { code: "too-many", message: "64 readers", retryable: true } });
  await t.rejects(follow({ ...options, onLost: (error) => { lost.push(error.code); } }), { code: "too-many" });
  agent.on("GET /v1/events", { json: {} });
  await t.rejects(follow({ ...options, onLost: () => undefined }), { code: "bad-reply" }, "something else than a stream");
});

t.test("watch: the state, then what happens, a JSON object a line", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.streams().on("GET /v1/vms", { json: [web1] }).on("GET /v1/hosts", { json: [hostA] }).on("GET /v1/migrations", { json: [moved, moving] });
  const terminal = new CapturedTerminal();
  const running = careof(["watch", "--output", "json", "--api", agent.url], { terminal });
  const lines = (): string[] => terminal.stdout.split("\n").filter((line) => line !== "");
  await terminal.until(() => lines().length >= 3);
  const alarm = { alarm: "lost", vm: "web1", hosts: ["host-a", "host-b"], detail: "who knows", at };
  agent.emit("alarm", alarm);
  agent.emit("vm", { ...web1, state: "lost" });
  await terminal.until(() => lines().length >= 5);
  terminal.interrupt();
  t.equal((await running).code, 0, "Ctrl-C is how it ends");
  const seen = lines().map((line) => JSON.parse(line) as { readonly event: string; readonly data: unknown });
  t.same(seen.map((each) => each.event), ["host", "vm", "migration", "alarm", "vm"]);
  t.same(seen[3]?.data, alarm);
});

t.test("watch hears Ctrl-C, and that the home agent is silent, also when what is not used has been collected", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  let readers = 0;
  agent.streams(() => { readers++; }).on("GET /v1/vms", { json: [web1] }).on("GET /v1/hosts", { json: [hostA] }).on("GET /v1/migrations", { json: [] });
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const terminal = new CapturedTerminal();
  const running = careof(["watch", "--output", "json", "--api", agent.url], { terminal, limits: { silence: millis(1000) } });
  const told = async (lines: number): Promise<void> => {
    await terminal.until(() => terminal.stdout.split("\n").length > lines);
    for (let i = 0; i < 5; i++) {
      await sleep(10);
      collect();
    }
  };
  await told(2);
  await terminal.until(() => readers === 2);
  t.match(terminal.stderr, /has been silent for/);
  await told(4);
  terminal.interrupt();
  t.equal(await Promise.race([running.then(({ code }) => code), sleep(5000, "still there")]), 0);
});

t.test("watch in a pipe: a line per change, none per refresh", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.streams().on("GET /v1/vms", { json: [web1] }).on("GET /v1/hosts", { json: [hostA] }).on("GET /v1/migrations", { json: [] });
  const terminal = new CapturedTerminal();
  const running = careof(["watch", "--api", agent.url], { terminal });
  await terminal.until((each) => each.stdout.includes("web1 is bound"));
  for (const data of [web1, { ...web1, lastHeartbeat: "2026-03-01T10:00:09.000Z" }]) agent.emit("vm", data);
  for (const remaining of [3e7, 2e7, 1e7]) agent.emit("migration", { ...moving, progress: { ...moving.progress, remaining } });
  agent.emit("migration", moved);
  agent.emit("host", { ...hostA, state: "gone" });
  agent.emit("alarm", { alarm: "both-claim", vm: "web1", hosts: ["host-a", "host-b"], detail: "both run it", at });
  await terminal.until((each) => each.stdout.includes("ALARM"));
  terminal.interrupt();
  await running;
  const lines = terminal.stdout.trimEnd().split("\n").map((line) => line.slice(21));
  t.same(lines.slice(0, 2), ["host-a is connected", "web1 is bound in care of host-a (10.1.0.2), epoch 3"]);
  t.equal(lines.length, 6, "one for the phase, one for the end, one each for host and alarm");
  t.match(lines[3], /web1 host-a → host-b {2}completed \(accepted\): paused 45 ms/);
  t.match(lines[5], /ALARM both-claim: web1 \(host-a, host-b\) both run it/);
});

t.test("watch in a pipe: what keeps a move from ending is said once, and why it failed", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.streams().on("GET /v1/vms", { json: [web1] }).on("GET /v1/hosts", { json: [hostA] }).on("GET /v1/migrations", { json: [moving] });
  const terminal = new CapturedTerminal();
  const running = careof(["watch", "--api", agent.url], { terminal });
  await terminal.until((each) => each.stdout.includes("copy"));
  while (agent.readers === 0) await sleep(5);
  const detail = "it does not converge: so and so. What helps: \u001b[Jthis";
  for (const more of ["", ""]) agent.emit("migration", { ...moving, detail: `${detail}${more}` });
  agent.emit("migration", { ...moving, phase: "lead", detail });
  agent.emit("migration", { ...moved, result: "failed", reason: "timed-out", detail: "not completed within 120000 ms" });
  await terminal.until((each) => each.stdout.includes("timed-out"));
  terminal.interrupt();
  await running;
  const lines = terminal.stdout.trimEnd().split("\n").map((line) => line.slice(21)).slice(2);
  t.equal(lines.length, 4, lines.join("\n"));
  t.match(lines[1], /^web1 host-a → host-b {2}copy .* writes 1\.0 MB\/s {2}it does not converge: so and so\. What helps: \?\[Jthis$/);
  t.match(lines[2], /^web1 host-a → host-b {2}lead .* writes 1\.0 MB\/s$/);
  t.match(lines[3], /failed \(timed-out\): .*; not completed within 120000 ms$/);
});

t.test("watch on a terminal: a table that is kept, also across a restart of the home agent", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.streams().on("GET /v1/vms", { json: [web1] }).on("GET /v1/hosts", { json: [hostA] }).on("GET /v1/migrations", { json: [moving] });
  const terminal = new CapturedTerminal();
  terminal.outIsLive = true;
  terminal.columns = 80;
  const running = careof(["watch", "--api", agent.url], { terminal });
  await terminal.until((each) => each.stdout.includes("host-a ✓"));
  t.match(terminal.stdout, /VM +ADDRESS[\s\S]*web1 host-a → host-b {2}copy/);
  agent.emit("vm", { ...web1, host: "host-b", epoch: 4 });
  await terminal.until((each) => each.stdout.includes("web1 is bound in care of host-b"));
  agent.cut();
  await terminal.until((each) => each.stdout.includes("trying again"));
  const before = terminal.stdout.length;
  await terminal.until((each) => each.stdout.slice(before).includes("host-a ✓") && !each.stdout.slice(each.stdout.lastIndexOf("\u001b[H")).includes("trying again"));
  terminal.interrupt();
  t.equal((await running).code, 0);
  t.ok(terminal.stdout.startsWith("\u001b[?1049h"), "uses a screen of its own");
  t.ok(terminal.stdout.endsWith("\u001b[?25h\u001b[?1049l"), "and gives it back");
});

t.test("watch: the first contact must succeed", async (t) => {
  const ran = await careof(["watch", "--api", "http://127.0.0.1:1"]);
  t.equal(ran.code, 1);
  t.match(ran.stderr, /home-agent-unreachable/);
});

t.test("events arrive whole, however they are cut into pieces", (t) => {
  const stream = ": hi\n\nid: 1\nevent: vm\ndata: {\"a\":\ndata: 1}\n\nevent:host\r\ndata:{}\r\n\r\ndata: x\r\revent: none\n\nretry: 5\ndata\n\n";
  const whole = new EventParser().push(stream);
  t.same(whole, [{ event: "vm", data: '{"a":\n1}' }, { event: "host", data: "{}" }, { event: "message", data: "x" }, { event: "message", data: "" }]);
  fc.assert(fc.property(fc.array(fc.nat(stream.length), { maxLength: 12 }), (cuts) => {
    const parser = new EventParser();
    const edges = [0, ...cuts.sort((a, b) => a - b), stream.length];
    const found = edges.slice(1).flatMap((end, i) => parser.push(stream.slice(edges[i], end)));
    return JSON.stringify(found) === JSON.stringify(whole);
  }));
  t.throws(() => new EventParser().push(`data: ${"x".repeat(1 << 20)}`), { code: "bad-reply" });
  const hoarder = new EventParser();
  t.throws(() => { for (let i = 0; i < 2000; i++) hoarder.push(`data: ${"x".repeat(1000)}\n`); }, { code: "bad-reply" });
  t.end();
});

t.test("a line of progress", (t) => {
  const of = (overlay: object): string => progressLine(migrationReply.parse({ ...moving, ...overlay }));
  t.equal(of({ progress: null, phase: "prepare" }), "web1 host-a → host-b  prepare");
  t.equal(of({ progress: { ...moving.progress, total: 0 } }), "web1 host-a → host-b  copy");
  t.equal(of({ progress: { ...moving.progress, bytesPerSecond: 0, passes: 0 } }), "web1 host-a → host-b  copy  77%  30.0 MB left");
  t.equal(of({ result: "completed" }), "web1 host-a → host-b  completed");
  const disks = { ...moving.progress, total: 0, diskCopied: 30e6, diskTotal: 120e6, diskBytesPerSecond: 9e6 };
  t.equal(of({ progress: disks }), "web1 host-a → host-b  copy  disks 25%  90.0 MB left  9.0 MB/s  10 s left");
  t.equal(of({ progress: { ...disks, diskBytesPerSecond: 0 } }), "web1 host-a → host-b  copy  disks 25%  90.0 MB left");
  t.equal(of({ progress: { ...disks, total: 120e6, remaining: 60e6, bytesPerSecond: 0, passes: 0 } }), "web1 host-a → host-b  copy  50%  60.0 MB left", "the memory's turn");
  t.equal(of({ phase: "co\u001b[Jpy", progress: null }), "web1 host-a → host-b  co?[Jpy");
  t.end();
});
