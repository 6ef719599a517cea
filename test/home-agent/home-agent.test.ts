import t from "tap";
import { Bench, CARE_OF, HOME, until } from "./bench.js";
import { ACCEPTED, Move } from "./scripted-agent.js";
import { millis } from "../../model/ids.js";
import { decision } from "../../proto/channel.js";

await t.test("start, migrate, back: one owner per epoch, the tunnel follows, the history tells", async (t) => {
  const bench = await Bench.open(t);
  t.same(await bench.where(), { vm: "web1", homeAddresses: ["198.51.100.7"], host: null, careOf: null, state: "expired", epoch: 0, since: null, lastHeartbeat: null, evidence: "none" });
  const { a, b } = await bench.withVm();
  t.match(await bench.where(), { host: "host-a", careOf: CARE_OF["host-a"], state: "bound", epoch: 1 });
  t.same(bench.entry(), { home: HOME, active: CARE_OF["host-a"], accept: [CARE_OF["host-a"]], mtu: 1480 });
  t.match(a.last("startVm"), { epoch: 1, spec: { vm: "web1", mac: "52:54:00:00:00:07", qemu: { memoryBytes: 128 * 1024 * 1024, kernel: "/k" } } });
  t.match(await b.until("bindingUpdate", (update) => update.owner === "host-a"), { epoch: 1, state: "bound" });

  for (const [from, to, source, target, reserved] of [["host-a", "host-b", a, b, 2], ["host-b", "host-a", b, a, 3]] as const) {
    const result = bench.call("POST", "/v1/migrations", { vm: "web1", host: to, wait: true });
    const move = new Move(source, target, "web1", reserved);
    const migrate = await source.until("migrate", (body) => body.epoch === reserved);
    t.same(migrate.secret, target.last("prepare")?.secret, "both ends of the relay have the same secret");
    t.equal(migrate.secret.length, 32);
    t.match(target.last("prepare"), { source: from, sourceLocator: { address: CARE_OF[from] }, epoch: reserved, parameters: { lead: true } });
    t.match(bench.entry(), { active: CARE_OF[from], accept: [CARE_OF[from], CARE_OF[to]] }, "the target may send from prepare on");
    t.match(await bench.where(), { state: "moving", host: from, epoch: reserved - 1 });
    bench.markers.length = 0;
    t.equal((await move.leadReady()).reason, "accepted");
    t.equal(bench.entry()?.active, CARE_OF[to], "re-pointed before the source hears of it");
    const lead = await source.until("lead", (body) => body.migration === move.migration);
    t.same(bench.markers.slice(0, 2), [{ careOf: CARE_OF[from], token: lead.token, active: CARE_OF[to] }, { careOf: CARE_OF[to], token: lead.token, active: CARE_OF[to] }], "markers follow the switch");
    await until("markers are repeated", () => bench.markers.length > 4);
    await move.switchOver();
    const sent = bench.markers.length;
    t.equal((await move.released()).reason, "accepted");
    t.match(await bench.where(), { state: "bound", host: to, epoch: reserved });
    // The second move's target has heard from here, before the relay could say it, that the guest may run: it does not know when that stopped.
    const pause = reserved === 2 ? { pauseMs: 14 } : { resumedAtSource: 1014 };
    await move.running(false, pause);
    await source.until("revoke", (body) => body.epoch === reserved && body.forwardTo?.address === CARE_OF[to]);
    await move.running(true, { firstDeliverableAt: 4990, uplinkOpenAt: 5003, ...pause });
    t.match((await result).body, { migration: move.migration, vm: "web1", from, to, result: "completed", reason: "accepted", pauseMs: 14, gapDownMs: 2, gapUpMs: 3, bytes: 82_000_000, hold: "led" });
    t.ok(bench.markers.length <= sent + 2, "no markers after the switch-over");
    t.match(bench.entry(), { active: CARE_OF[to] });
    await until("the old host loses the right to send", () => bench.entry()?.accept.length === 1);
  }
  t.match((await bench.call("GET", "/v1/vms/web1/history")).body, [
    { epoch: 3, host: "host-a", cause: "migration", actor: "operator", until: null, pauseMs: 14, gapDownMs: 2, gapUpMs: 3 },
    { epoch: 2, host: "host-b", careOf: CARE_OF["host-b"], cause: "migration", until: String },
    { epoch: 1, host: "host-a", cause: "start", pauseMs: null, gapDownMs: null, gapUpMs: null },
  ]);
  const metrics = await (await fetch(`http://127.0.0.1:${String(bench.at.api.port)}/metrics`)).text();
  t.match(metrics, /careof_migrations_total\{result="completed",reason="accepted"\} 2/);
  t.match(metrics, /careof_handover_holds_total\{hold="led"\} 2/);
  t.match(metrics, /careof_bindings\{state="bound"\} 1/);
  t.match(metrics, /careof_gap_down_seconds_count 2/);
  t.match((await bench.call("POST", "/v1/vms/web1/stop", {})).body, { state: "expired", host: null, epoch: 3 });
  t.equal(bench.entry(), undefined);
});

await t.test("without a lead the home agent re-points at the switch-over; what was not measured is null", async (t) => {
  const bench = await Bench.open(t, { change: { handover: { lead: false } } });
  const { a, b } = await bench.withVm();
  const result = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  const move = new Move(a, b, "web1", 2);
  t.equal((await a.until("migrate")).parameters.lead, false);
  t.equal((await move.leadReady()).reason, "unsupported");
  t.equal(bench.entry()?.active, CARE_OF["host-a"]);
  a.tell({
    kind: "progress", migration: move.migration, phase: "copy", transferred: 5, remaining: 6, total: 11, passes: 2, bytesPerSecond: 7, dirtyBytesPerSecond: 8, expectedDowntimeMs: millis(9),
    throttlePercent: 10, diskCopied: 0, diskTotal: 0, diskBytesPerSecond: 0,
  });
  await move.switchOver(null);
  t.equal(bench.entry()?.active, CARE_OF["host-b"]);
  t.ok(bench.markers.length >= 2);
  await move.running(false);
  t.equal((await move.released(null)).reason, "accepted", "Released may come last");
  t.match((await result).body, { result: "completed", pauseMs: null, gapDownMs: null, gapUpMs: null, progress: { transferred: 5, passes: 2 }, hold: "no-gate" }, "and why nothing was led over is said");
  t.match(await (await fetch(`http://127.0.0.1:${String(bench.at.api.port)}/metrics`)).text(), /careof_handover_holds_total\{hold="no-gate"\} 1/);
});

await t.test("an up marker that passed the check is told to the target", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" });
  await a.until("migrate");
  bench.tunnel.stamps = (): ReturnType<typeof bench.tunnel.stamps> => ({ marker: { token: 77, at: bench.config.timing.graceMs }, passedMarker: null, firstPacket: null, behindMarker: null, firstForwarded: null });
  t.match(await b.until("uplinkSeen"), { migration: "web1@2", token: 77 });
});

await t.test("cancelled: the source goes on under n+2, the target gives its place up", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  const result = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  const move = new Move(a, b, "web1", 2);
  await a.until("migrate");
  await move.leadReady();
  t.equal(bench.entry()?.active, CARE_OF["host-b"]);
  t.equal((await bench.call("DELETE", "/v1/migrations/web1@2")).status, 202);
  await a.until("abort", (body) => body.reason === "cancelled-by-operator");
  t.equal(bench.entry()?.active, CARE_OF["host-a"], "traffic goes back at once");
  await move.sourceEnded("source-runs", "cancelled-by-operator");
  await b.until("abort");
  t.match((await result).body, { result: "cancelled", reason: "cancelled-by-operator", gapDownMs: null });
  t.match(await bench.where(), { state: "bound", host: "host-a", epoch: 3 });
  t.match(await a.until("bindingUpdate", (update) => update.epoch === 3), { owner: "host-a", state: "bound" });
  t.equal((await move.targetEnded("target-never-ran")).reason, "accepted", "the late word of the target changes nothing");
  t.equal((await move.running(false)).reason, "accepted");
  t.match(await bench.where(), { host: "host-a", epoch: 3 });
  t.match((await bench.call("GET", "/v1/vms/web1/history")).body, [{ epoch: 3, host: "host-a", cause: "migration-aborted" }, { epoch: 1 }]);
  t.match(await bench.call("DELETE", "/v1/migrations/web1@2"), { status: 409, body: { code: "not-moving" } });
});

await t.test("what waited at a target that gives up is in the result where it is known by then, and in the metrics once", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  const lost = async (): Promise<string> => /careof_handover_undelivered_packets_total (\d+)/.exec(await (await fetch(`http://127.0.0.1:${String(bench.at.api.port)}/metrics`)).text())?.[1] ?? "none";
  const first = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  const early = new Move(a, b, "web1", 2);
  await a.until("migrate");
  await early.leadReady();
  await early.targetEnded("target-never-ran", "relay-failed", 5);
  await early.sourceEnded("source-runs", "relay-failed");
  t.match((await first).body, { result: "failed", undelivered: 5, overflowed: null });
  t.equal(await lost(), "5");

  const second = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  const late = new Move(a, b, "web1", 4);
  await a.until("migrate", (body) => body.epoch === 4);
  await late.leadReady();
  await bench.call("DELETE", "/v1/migrations/web1@4");
  await late.sourceEnded("source-runs", "cancelled-by-operator");
  t.match((await second).body, { result: "cancelled", undelivered: null }, "not known yet, and not called nothing");
  for (let said = 0; said < 2; said++) t.equal((await late.targetEnded("target-never-ran", "cancelled-by-operator", 3)).reason, "accepted");
  t.match((await bench.call("GET", "/v1/migrations/web1@4")).body, { result: "cancelled", undelivered: 3 });
  t.equal(await lost(), "8", "a word that is said twice counts once");
});

await t.test("the target fails, before and after RELEASE", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  b.on("prepare", (_body, answer) => { answer(decision("prepare-failed", "no memory")); });
  t.match((await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true })).body, { result: "failed", reason: "prepare-failed" });
  t.match(await bench.where(), { state: "bound", host: "host-a", epoch: 3 });
  t.equal(a.count("migrate"), 0);

  b.on("prepare", (_body, answer) => { answer({ kind: "prepared", decision: { reason: "accepted", epoch: ACCEPTED.epoch, detail: "" }, relayAddress: "127.0.0.1", relayPort: 1, canLead: false }); });
  const second = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  const move = new Move(a, b, "web1", 4);
  t.equal((await a.until("migrate", (body) => body.epoch === 4)).parameters.lead, false, "the target cannot lead");
  await move.switchOver(null);
  await move.released(null);
  t.match(await bench.where(), { host: "host-b", epoch: 4 });
  t.match(await bench.call("DELETE", "/v1/migrations/web1@4"), { status: 409, body: { code: "not-permitted" } });
  await move.targetEnded("target-never-ran");
  const resume = await a.until("resume");
  t.match(resume, { migration: "web1@4", epoch: 5, evidence: "target-never-ran" });
  t.equal(bench.entry()?.active, CARE_OF["host-a"]);
  await move.sourceEnded("source-runs", "relay-failed");
  t.match((await second).body, { result: "failed", reason: "relay-failed" });
  t.match(await bench.where(), { state: "bound", host: "host-a", epoch: 5 });
});

await t.test("the target is gone: before RELEASE the source goes on, after it the binding is lost and a person decides", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  const first = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  await a.until("migrate");
  await b.disconnect();
  await a.until("abort", (body) => body.reason === "target-gone");
  await new Move(a, b, "web1", 2).sourceEnded("source-runs");
  t.match((await first).body, { result: "failed", reason: "target-gone" });
  await b.connect();

  const second = bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b", wait: true });
  const move = new Move(a, b, "web1", 4);
  await a.until("migrate", (body) => body.epoch === 4);
  await move.switchOver(null);
  await move.released(null);
  await b.disconnect();
  t.match((await second).body, { result: "lost" });
  t.match(await bench.where(), { state: "lost", epoch: 4 });
  t.match(bench.homeAgent.alarms.recent().at(-1), { alarm: "lost", vm: "web1" });
  t.match(await bench.call("POST", "/v1/vms/web1/resolve", { host: "host-b" }), { status: 409, body: { code: "host-gone" } });
  t.match(await bench.call("POST", "/v1/vms/web1/resolve", { host: "host-c" }), { status: 409, body: { code: "not-permitted" } });
  a.on("resume", (_body, answer) => { answer(decision("not-moving", "nothing is known of it here")); });
  const refused = await bench.call("POST", "/v1/vms/web1/resolve", { host: "host-a" });
  t.match(refused, { status: 409, body: { code: "not-moving", message: /host-a does not say that it runs web1 \(not-moving: nothing is known of it here\)/ } }, "what the source answers, the person hears");
  t.match(await bench.where(), { state: "lost", epoch: 4 });
  a.on("resume", (_body, answer) => { answer(ACCEPTED); });
  const resolved = bench.call("POST", "/v1/vms/web1/resolve", { host: "host-a" });
  await until("it is asked again", () => a.count("resume") === 2);
  t.match(await a.until("resume"), { epoch: 5, evidence: "resolved-by-operator" });
  await move.sourceEnded("source-runs");
  t.match(await resolved, { status: 200, body: { state: "bound", host: "host-a", epoch: 5 } }, "the answer is where it is, not where it was");
  t.match((await bench.call("GET", "/v1/vms/web1/history")).body, [{ epoch: 5, host: "host-a", cause: "resolved", actor: "operator" }, { epoch: 4, host: "host-b", cause: "migration" }, { epoch: 3, cause: "migration-aborted" }, { epoch: 1 }]);
  t.match(await bench.where(), { state: "bound", host: "host-a", epoch: 5 });
  t.equal(bench.entry()?.active, CARE_OF["host-a"]);
});

await t.test("a stop that takes its time: no migration meanwhile, and whoever asked gets his answer", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  let stopped = (): void => {};
  a.on("stopVm", (_body, answer) => { stopped = (): void => { answer(ACCEPTED); }; });
  const both = [bench.call("POST", "/v1/vms/web1/stop", {}), bench.call("POST", "/v1/vms/web1/stop", {})];
  await a.until("stopVm");
  t.match(await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" }), { status: 409, body: { code: "stop-pending", retryable: true } });
  t.equal(b.count("prepare"), 0);
  stopped();
  for (const { status, body } of await Promise.all(both)) t.match({ status, body }, { status: 200, body: { state: "expired", host: null } });
  t.equal(a.count("stopVm"), 1);
});

await t.test("refused: a stable code, nothing changed", async (t) => {
  const bench = await Bench.open(t);
  const { a, b } = await bench.withVm();
  const before = await bench.where();
  for (const [method, path, body, status, code] of [
    ["POST", "/v1/migrations", { vm: "nobody", host: "host-b" }, 404, "unknown-vm"],
    ["POST", "/v1/migrations", { vm: "web1", host: "nowhere" }, 404, "unknown-host"],
    ["POST", "/v1/migrations", { vm: "web1", host: "host-c" }, 409, "not-listed"],
    ["POST", "/v1/migrations", { vm: "web1", host: "host-a" }, 409, "already-here"],
    ["POST", "/v1/migrations", { vm: "ext1", host: "host-a" }, 409, "unsupported"],
    ["POST", "/v1/vms/web1/start", { host: "host-b" }, 409, "already-running"],
    ["POST", "/v1/vms/web1/start", { host: "host-c" }, 409, "not-listed"],
    ["POST", "/v1/vms/web1/start", { host: "nowhere" }, 404, "unknown-host"],
    ["POST", "/v1/vms/ext1/stop", {}, 409, "not-running"],
    ["POST", "/v1/vms/web1/resolve", { host: "host-a" }, 409, "not-permitted"],
    ["GET", "/v1/vms/nobody", undefined, 404, "unknown-vm"],
    ["GET", "/v1/vms/nobody/history", undefined, 404, "unknown-vm"],
    ["DELETE", "/v1/migrations/web1@9", undefined, 404, "unknown-migration"],
  ] as const) {
    const answer = await bench.call(method, path, body);
    t.equal(answer.status, status, `${method} ${path} ${JSON.stringify(body)}: ${JSON.stringify(answer.body)}`);
    t.equal(answer.body["code"], code, `${path} ${JSON.stringify(body)}`);
  }
  t.same(await bench.where(), before);
  await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" });
  t.match(await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" }), { status: 409, body: { code: "already-moving" } });
  t.match(await bench.call("POST", "/v1/vms/web1/stop", {}), { status: 409, body: { code: "already-moving" } });
  await a.until("migrate");
  await new Move(a, b, "web1", 2).sourceEnded("source-runs");
  await b.disconnect();
  await until("the host is seen to be gone", async () => (await bench.call("POST", "/v1/migrations", { vm: "web1", host: "host-b" })).body["code"] === "host-gone");
  await a.disconnect();
  await until("the owner is seen to be gone", async () => (await bench.call("POST", "/v1/vms/web1/stop", {})).body["code"] === "host-gone");
});
