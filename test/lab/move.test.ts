import t from "tap";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { inNamespace, must } from "../../deploy/lab/command.js";
import { ABSENT_HOST } from "../../deploy/lab/files.js";
import { Lab, whereSchema, type Where } from "../../deploy/lab/lab.js";
import { PLAN } from "../../deploy/lab/plan.js";
import { leftOver } from "../../deploy/lab/registry.js";
import { REPOSITORY } from "../../deploy/lab/program.js";
import type { Traffic } from "../../deploy/lab/traffic.js";
import { Witness } from "../../deploy/lab/witness.js";
import { Running, TERMINAL } from "./running.js";
import { Watched, wayOf } from "./watched.js";

/** A real guest that moves there and back with its sessions open, and everything that may be asked wrongly meanwhile. */

const MARGIN_MS = 2200;
const PPS = 1000;
const VM = PLAN.guest.name;
/** For what comes by itself in a second or so. */
const COMES_MS = 60_000;
/** Of a move without postcopy that nothing disturbs; a phase may be too short to be told. */
const PHASES = ["prepare", "copy", "lead", "stop", "released", "settle", "completed"];
/** Before every picture of `careof watch`. */
const HOME_AND_CLEAR = "\u001b[H\u001b[J";

const lab = await Lab.start({ absentHost: true, witnessed: true });
const witness = new Witness(lab);
t.teardown(async () => {
  witness.close();
  await lab.close();
});

/** What must not change where nothing moves. */
async function bound(): Promise<Pick<Where, "vm" | "host" | "careOf" | "state" | "epoch">> {
  const { vm, host, careOf, state, epoch } = await lab.where();
  return { vm, host, careOf, state, epoch };
}

const historySchema = z.array(z.looseObject({
  epoch: z.number(), host: z.string(), until: z.string().nullable(), pauseMs: z.number().nullable(), gapDownMs: z.number().nullable(), gapUpMs: z.number().nullable(),
}));

let traffic: Traffic;

await t.test("a guest starts, and is heard from inside", async (t) => {
  t.match(await lab.where(), { state: "expired", host: null, epoch: 0 }, "never bound before");
  t.strictSame(await lab.json(whereSchema, ["where", VM]), await lab.where(), "the command and the API say the same");
  await lab.startGuest("host-a");
  t.match(await lab.where(), { vm: VM, homeAddresses: [PLAN.guest.address], state: "bound", host: "host-a", careOf: PLAN.hosts["host-a"].careOf, epoch: 1 });
  await lab.until("a heartbeat from inside the guest", COMES_MS, async () => (await lab.where()).lastHeartbeat !== null);
  traffic = await lab.traffic({ pps: PPS, bulkMbit: 20 });
});

for (const [index, to] of (["host-b", "host-a"] as const).entries()) {
  await t.test(`it moves to ${to} with every session open`, async (t) => {
    await traffic.mark(`${to}.before`);
    await sleep(MARGIN_MS);
    const move = await lab.migrate(to);
    await sleep(MARGIN_MS);
    await traffic.mark(`${to}.after`);
    await sleep(500);
    const window = await traffic.window(`${to}.before`, `${to}.after`);
    t.comment(`move ${JSON.stringify(move)}`);
    t.comment(`window ${JSON.stringify(window)}`);
    t.match(move, { vm: VM, to, result: "completed" });
    for (const [name, value] of Object.entries({ gapDownMs: move.gapDownMs, gapUpMs: move.gapUpMs })) {
      t.ok(value !== null && value >= 0 && value < 1000, `${name} is measured`, { found: value });
    }
    t.ok(move.pauseMs !== null && move.pauseMs > 0 && move.pauseMs < 1000, "the pause is measured", { found: move.pauseMs });
    t.ok(window.t1 - window.t0 > 2 * MARGIN_MS && window.sentDown > 4000 && window.sentUp > 4000, "counted over two seconds before and after", { found: window });
    t.ok(window.sentDown - window.receivedDown + window.sentUp - window.receivedUp < 20, "hardly a packet is lost", { found: window });
    t.strictSame(traffic.broken, [], "no session broke");
    t.ok((window.tcpStallDownMs ?? 99_999) < 5000 && (window.tcpStallUpMs ?? 99_999) < 5000, "TCP flows on", { found: window });
    t.match(await lab.where(), { state: "bound", host: to, careOf: PLAN.hosts[to].careOf, epoch: 2 + index });
    const entries = await lab.json(historySchema, ["history", VM]);
    t.match(entries[0], { epoch: 2 + index, host: to, until: null, pauseMs: move.pauseMs, gapDownMs: move.gapDownMs });
    t.match(entries.length, 2 + index);
    const heard = (await lab.where()).lastHeartbeat;
    await lab.until("a later heartbeat, from the new host", COMES_MS, async () => ((await lab.where()).lastHeartbeat ?? "") > (heard ?? ""));
    t.strictSame(witness.doubles(), [], "the guest never ran twice");
    await lab.until("it runs there alone", COMES_MS, () => Promise.resolve(witness.running().join() === to));
  });
}

await t.test("wishes that cannot be are refused with a stable code, and change nothing", async (t) => {
  const before = await bound();
  const cases: readonly (readonly [string, string, string, number])[] = [
    ["nope", "host-b", "unknown-vm", 404],
    [VM, "host-z", "unknown-host", 404],
    ["web2", "host-b", "not-listed", 409],
    ["web2", "host-a", "not-bound", 409],
    [VM, "host-a", "already-here", 409],
    [VM, ABSENT_HOST.name, "host-gone", 409],
  ];
  for (const [vm, host, code, status] of cases) {
    t.match(await lab.http("POST", "/v1/migrations", JSON.stringify({ vm, host })), { status, body: { code } }, `POST ${vm} to ${host}: ${code}`);
  }
  const refused = await lab.careof(["migrate", "nope", "host-b"]);
  t.match(refused, { code: 1, stderr: /unknown-vm/ }, "the command says so too");
  t.match((await lab.careof(["migrate", VM])).code, 2, "wrong usage is another exit code");
  for (const body of ["{", "[]", '{"vm":"web1"}', '{"vm":"web1","host":7}', '{"vm":"WEB 1","host":"host-b"}', '{"vm":"web1","host":"host-b","x":1}']) {
    const answer = await lab.http("POST", "/v1/migrations", body);
    t.ok(answer.status >= 400 && answer.status < 500, `${body}: ${String(answer.status)}`);
    t.match(answer.body, { code: String, message: String, retryable: Boolean });
  }
  t.match(await lab.http("POST", "/v1/migrations", JSON.stringify({ vm: VM, host: "x".repeat(2_000_000) })), { status: 413, body: { code: String } });
  t.match((await lab.http("DELETE", "/v1/vms")).status, 405);
  t.match((await lab.http("GET", "/v1/nothing")).status, 404);
  t.match(await bound(), before);
});

await t.test("strangers and malformed messages are refused, and change nothing", async (t) => {
  const before = await bound();
  const url = `ws://${PLAN.homeAgent.core}:${String(PLAN.ports.agents)}/v1/agent`;
  const intrude = async (...words: string[]): Promise<unknown> =>
    JSON.parse(await must(inNamespace(lab.namespace("r"), [process.execPath, join(REPOSITORY, "dist", "test", "lab", "intruder.js"), ...words])));
  const token = lab.files.absentHostToken;
  t.match(await intrude("register", url, ABSENT_HOST.name, "wrong"), { refused: 401, body: { code: "bad-token" } });
  t.match(await intrude("register", url, "host-z", token), { refused: 401, body: { code: "unknown-host" } });
  t.match(await intrude("foreign-care-of", url, ABSENT_HOST.name, token), { reason: "foreign-care-of" });
  t.match(await intrude("other-name", url, ABSENT_HOST.name, token), { reason: /unknown-host|not-permitted|bad-token/ });
  for (const what of ["garbage", "text", "huge"]) t.match(await intrude(what, url, ABSENT_HOST.name, token), { closed: Number }, what);
  t.match(await intrude("heartbeats", `${PLAN.homeAgent.core}:${String(PLAN.ports.heartbeats)}`, VM), { sent: 5 });
  t.match(await bound(), before);
  t.match(await lab.http("GET", "/healthz"), { status: 200 });
  t.match(await traffic.idle(), { type: "idle" }, "the guest is as reachable as before");
});

await t.test("two wishes at once: one is refused, the other completes", async (t) => {
  const [first, second] = await Promise.all([
    lab.careof(["migrate", VM, "host-b", "--output", "json"]),
    lab.careof(["migrate", VM, "host-b", "--output", "json"]),
  ]);
  t.match([first.code, second.code].sort(), [0, 1]);
  t.match(first.code === 0 ? second.stderr : first.stderr, /already-moving|already-here/);
  t.match(await lab.where(), { state: "bound", host: "host-b", epoch: 4 });
});

await t.test("a home agent that is killed forgets nothing, and traffic flows meanwhile", async (t) => {
  const before = await bound();
  const entries = await lab.json(historySchema, ["history", VM]);
  await traffic.mark("kill.before");
  await lab.endPart("home-agent", "SIGKILL");
  await sleep(1000);
  lab.startPart("home-agent");
  await lab.connected(["host-a", "host-b"], COMES_MS);
  await sleep(500);
  await traffic.mark("kill.after");
  await sleep(300);
  const window = await traffic.window("kill.before", "kill.after");
  t.comment(JSON.stringify(window));
  t.match(await bound(), before);
  t.match(await lab.json(historySchema, ["history", VM]), entries);
  t.ok(window.sentDown - window.receivedDown + window.sentUp - window.receivedUp < 5, "packets need no home agent process");
  await lab.until("heartbeats are accepted again", COMES_MS, async () => Date.now() - Date.parse((await lab.where()).lastHeartbeat ?? "1970-01-01") < 1500);
});

await t.test("a host agent that is killed finds its guest again", async (t) => {
  const qemus = qemuPids(lab);
  await traffic.mark("agent.before");
  await lab.endPart("host-b", "SIGKILL");
  lab.startPart("host-b");
  await lab.connected(["host-a", "host-b"], COMES_MS);
  await lab.until("it is bound", COMES_MS, async () => (await lab.where()).state === "bound");
  await sleep(300);
  await traffic.mark("agent.after");
  await sleep(300);
  const window = await traffic.window("agent.before", "agent.after");
  t.ok(window.sentDown - window.receivedDown + window.sentUp - window.receivedUp < 5, "packets need no agent process", { found: window });
  t.strictSame(qemuPids(lab), qemus, "the same QEMU");
  t.match(await lab.where(), { host: "host-b", epoch: 4 });
});

await t.test("vms and hosts say where it is, in JSON and on 80 columns", async (t) => {
  const here = { vm: VM, host: "host-b", careOf: PLAN.hosts["host-b"].careOf, state: "bound", epoch: 4 };
  const [json, hostsJson, piped, hostsPiped, screen] = await Promise.all([
    lab.json(z.array(z.looseObject({})), ["vms"]), lab.json(z.array(z.looseObject({})), ["hosts"]),
    ended(Running.piped(t, lab, ["vms"])), ended(Running.piped(t, lab, ["hosts"])), ended(Running.onTerminal(t, lab, ["vms"], ["hosts"])),
  ]);
  for (const each of json) t.strictSame(Object.keys(each).sort(), ["careOf", "epoch", "evidence", "homeAddresses", "host", "lastHeartbeat", "since", "state", "vm"]);
  t.match(json, [here, { vm: "web2", host: null, state: "expired" }]);
  for (const each of hostsJson) t.strictSame(Object.keys(each).sort(), ["capabilities", "careOf", "draining", "memoryFreeBytes", "name", "since", "software", "state", "vms"]);
  t.match(hostsJson, [{ name: "host-a", state: "connected", draining: false, vms: [] }, { name: "host-b", state: "connected", draining: false, vms: [VM] }, { name: ABSENT_HOST.name, state: "gone", vms: [] }]);
  for (const text of [piped, screen]) {
    t.match(text, /^VM +ADDRESS +HOST +CARE-OF +STATE +EPOCH +SINCE +HEARD\r?$/m);
    t.match(text, /^web1 +198\.51\.100\.7 +host-b +10\.2\.0\.2 +bound +4 +[0-9.]+ (s|min) +[0-9.]+ s\r?$/m);
    t.match(text, /^web2 +198\.51\.100\.8 +– .*expired/m);
  }
  for (const text of [hostsPiped, screen]) {
    t.match(text, /^HOST +CARE-OF +STATE +SINCE .*VMS/m);
    t.match(text, /^host-b +10\.2\.0\.2 +connected +[0-9.]+ (s|min) .* 1\b/m);
    t.match(text, /^host-c .* gone /m);
  }
  for (const text of [piped, hostsPiped, screen]) t.strictSame(tooWide(text), []);
});

await t.test("it moves on, and whoever watches sees it: in JSON, as lines, and on a terminal", async (t) => {
  const [watched, lines, screen] = [await Watched.start(t, lab), Running.piped(t, lab, ["watch"]), Running.onTerminal(t, lab, ["watch"])];
  await lab.until("they show where it is", COMES_MS, () => Promise.resolve(lines.lines.length > 0 && screen.out.includes(VM)));
  const move = await lab.migrate("host-a");
  t.match(move, { result: "completed" });
  t.match(await lab.where(), { host: "host-a", epoch: 5 });
  const completed = /web1 host-b → host-a {2}completed \(accepted\): paused/;
  await lab.until("they show the end", COMES_MS, () => Promise.resolve(wayOf(watched.moves, move.migration).at(-1) === "completed" && completed.test(lines.out) && completed.test(screen.out)));
  const frames = screen.out.split(HOME_AND_CLEAR).slice(1);
  lines.interrupt();
  screen.interrupt();
  t.strictSame([await watched.end(), await lines.ended, await screen.ended], [0, 0, 0], "Ctrl-C is its ordinary end");

  const way = wayOf(watched.moves, move.migration);
  t.strictSame(way, PHASES.filter((phase) => way.includes(phase)), "its phases, each once and in order", { found: way });
  t.equal(way[0], "prepare");
  for (const phase of ["copy", "lead", "completed"]) t.ok(way.includes(phase), phase, { found: way });
  const copied = watched.moves.filter((each) => each.phase === "copy" && (each.progress?.total ?? 0) > 0);
  t.ok(copied.length > 0, "and how far its copy is");
  t.match(copied[0], { vm: VM, from: "host-b", to: "host-a", result: null });
  t.strictSame(watched.vms.filter((each) => each.vm === VM).map(({ state, host, epoch }) => `${state} ${String(host)} ${String(epoch)}`).filter((each, at, all) => each !== all[at - 1]).slice(-3), ["bound host-b 4", "moving host-b 4", "bound host-a 5"]);

  const told = lines.lines.map((line) => line.replace(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d {2}/, ""));
  t.strictSame(told.filter((line, at) => line === lines.lines[at]), [], "every line begins with the time");
  // One more where it is said what keeps the copy from ending, as on a machine that copies slowly.
  const phases = told.flatMap((line) => { const phase = /^web1 host-b → host-a {2}([a-z]+)/.exec(line)?.[1]; return phase === undefined ? [] : [{ phase, warns: line.includes("it does not converge") }]; });
  t.strictSame(phases.filter(({ phase, warns }, at) => !(warns && phases[at - 1]?.phase === phase)).map(({ phase }) => phase), way, "a line for each phase");
  for (const line of ["web1 is bound in care of host-b (10.2.0.2), epoch 4", "web1 is moving in care of host-b (10.2.0.2), epoch 4", "web1 is bound in care of host-a (10.1.0.2), epoch 5"]) t.ok(told.includes(line), line, { found: told });

  t.ok(frames.some((frame) => /^web1 .* host-b → host-a .* moving /m.test(frame) && /^web1 host-b → host-a {2}(prepare|copy|lead|stop|released|settle)/m.test(frame)), "the table and a line of its own show the move", { found: frames });
  t.strictSame(frames.filter((frame) => frame.split("\n").length > TERMINAL.rows), [], "no more lines than there are");
  t.strictSame(frames.flatMap(tooWide), []);
});

await t.test("it was one guest all the time", async (t) => {
  await traffic.idle();
  const end = await traffic.quit();
  t.equal(end.survived, true, "every session, the idle one too");
  t.strictSame(witness.doubles(), []);
  const stopped = await lab.careof(["stop", VM]);
  t.equal(stopped.code, 0, stopped.stderr);
  t.match(await lab.where(), { state: "expired", host: null });
  await lab.until("nobody runs it", COMES_MS, () => Promise.resolve(witness.running().length === 0));
  witness.close();
  t.strictSame(await lab.close(), []);
  t.strictSame(leftOver(lab.run), []);
});

async function ended(running: Running): Promise<string> {
  if (await running.ended !== 0) throw new Error(`it failed: ${running.out} ${running.said.join(" ")}`);
  return running.out;
}

/** Lines that do not fit into the terminal. */
function tooWide(text: string): readonly string[] {
  return text.split(/\r*\n/).filter((line) => line.length > TERMINAL.columns);
}

/** QEMU processes of this lab, by their command lines, which name its directory. */
function qemuPids(of: Lab): string[] {
  return readdirSync("/proc").filter((pid) => /^[0-9]+$/.test(pid) && isQemu(pid, of.directory));
}

function isQemu(pid: string, directory: string): boolean {
  try {
    if (!statSync(`/proc/${pid}`).isDirectory()) return false;
    const line = readFileSync(`/proc/${pid}/cmdline`, "utf8");
    return line.includes("qemu-system") && line.includes(directory);
  } catch {
    return false; // ended meanwhile
  }
}
