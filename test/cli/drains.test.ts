import t from "tap";
import { MovesProgress } from "../../cli/moves-progress.js";
import { hostReply, migrationReply, vmReply } from "../../cli/replies.js";
import { layout, type Picture } from "../../cli/watch-layout.js";
import { millis } from "../../model/ids.js";
import { careof, CapturedTerminal } from "./captured-terminal.js";
import { at, hostA, moved, moving, ScriptedHomeAgent, web1 } from "./scripted-home-agent.js";

const sum = { host: "host-a", state: "running", to: [], limit: 2, order: "config", wishes: {}, actor: "operator", startedAt: at, total: 2, moved: 0, moving: 1, waiting: 1, left: 0 };
const row = { vm: "web1", state: "moving", to: "host-b", migration: "web1@4", reason: null, detail: "" };
const running = { ...sum, vms: [row, { ...row, vm: "web2", state: "waiting", to: null, migration: null }] };
const completed = { ...sum, state: "completed", moved: 2, moving: 0, waiting: 0, vms: [{ ...row, state: "moved" }, { ...row, vm: "web2", state: "moved" }] };
const incomplete = { ...completed, state: "incomplete", moved: 1, left: 1, vms: [{ ...row, state: "moved" }, { ...row, vm: "web2", state: "left", to: null, reason: "not-enough-memory", detail: "host-b: not-enough-memory" }] };
const DRAIN = "/v1/hosts/host-a/drain";

async function opened(t: { teardown: (end: () => Promise<void>) => unknown }): Promise<ScriptedHomeAgent> {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  return agent.on(`POST ${DRAIN}`, { status: 202, json: running }).on(`GET ${DRAIN}`, { json: running }).on("GET /v1/migrations", { json: [moving] }).on(`POST ${DRAIN}/interrupt`, { status: 202, json: { ...running, state: "stopping" } });
}

t.test("drain follows until nothing moves: each move on standard error, the result on standard output", async (t) => {
  const agent = await opened(t);
  agent.streams().on(`GET ${DRAIN}`, (response) => {
    response.end(JSON.stringify(running), () => {
      agent.on(`GET ${DRAIN}`, { json: completed });
      agent.emit("migration", moved);
      agent.emit("drain", { ...sum, host: "host-z", state: "completed" });
      agent.emit("drain", { ...sum, moved: 1, waiting: 0 });
      agent.emit("migration", { ...moved, migration: "web2@2", vm: "web2" });
      agent.emit("drain", { ...sum, state: "completed", moved: 2, moving: 0, waiting: 0 });
    });
  });
  const ran = await careof(["drain", "host-a", "--to", "host-b,host-c", "--limit", "3", "--order", "largest", "--output", "json", "--api", agent.url]);
  t.equal(ran.code, 0);
  t.same(JSON.parse(ran.stdout), completed);
  t.match(ran.stderr, /^host-a: 0 of 2 moved, 1 moving, 1 waiting\nweb1 → host-b {2}3\.2 s, paused 45 ms\n(.*\n)*web2 → host-b {2}3\.2 s, paused 45 ms\n/);
  t.notMatch(ran.stderr, /\u001b/);
  t.same(agent.asked[0], { method: "POST", path: DRAIN, body: { to: ["host-b", "host-c"], limit: 3, order: "largest" } });
});

t.test("how a drain may end, and what is said then", async (t) => {
  const agent = await opened(t);
  agent.on(`POST ${DRAIN}`, { status: 202, json: incomplete });
  const text = await careof(["drain", "host-a", "--api", agent.url]);
  t.equal(text.code, 1);
  t.match(text.stdout, /^host-a: 1 of 2 moved, 1 left \(incomplete, .*\nVM +STATE +TO +WHY\nweb2 +left +– +host-b: not-enough-memory\n`careof drain host-a` goes on; host-a takes no VMs until `careof undrain host-a`\n$/);
  t.same(agent.asked.at(-1)?.body, {}, "what is not said is left to the home agent");
  agent.on(`POST ${DRAIN}`, { status: 202, json: running });
  t.match(await careof(["drain", "host-a", "--no-wait", "--api", agent.url]), { code: 0, stdout: /running/ });
  agent.on(`GET ${DRAIN}`, { json: incomplete });
  t.match(await careof(["drain", "host-a", "--show", "--api", agent.url]), { code: 0, stdout: /1 left/ });
  t.equal(agent.asked.at(-1)?.method, "GET", "nothing was begun");
  agent.on(`GET ${DRAIN}`, { status: 404, json: { code: "not-draining", message: "host-a is not being drained", retryable: false } }).streams();
  t.match(await careof(["drain", "host-a", "--api", agent.url]), { code: 1, stdout: "", stderr: /not being drained \(not-draining\)/ }, "somebody undrained it meanwhile");
  agent.on("POST /v1/hosts/host-a/undrain", { json: hostA });
  t.match(await careof(["undrain", "host-a", "--api", agent.url]), { code: 0, stdout: "host-a takes VMs again\n" });
});

t.test("drain: why a VM was left, in whole sentences also where the terminal is narrow", async (t) => {
  const agent = await opened(t);
  const detail = "host-b: no-room (/var/lib/careof/disks: 3000000000 bytes are free, 8589934592 wanted), host-c: not-enough-memory";
  agent.on(`GET ${DRAIN}`, { json: { ...incomplete, left: 2, vms: [{ ...row, state: "left", reason: "no-host-fits", detail }, { ...row, vm: "web2", state: "left", to: null, reason: "no-host-fits", detail: "web2 lists no host but host-a" }] } });
  const terminal = new CapturedTerminal();
  terminal.columns = 80;
  t.match((await careof(["drain", "host-a", "--show", "--api", agent.url], { terminal })).stdout, new RegExp(`\nweb1 +left +host-b +no-host-fits\nweb2 +left +– +no-host-fits\nweb1: ${detail.replace(/[()]/g, "\\$&")}\nweb2: web2 lists no host but host-a\n`));
  const piped = (await careof(["drain", "host-a", "--show", "--api", agent.url])).stdout;
  t.ok(piped.includes(`\nweb1  left   host-b  ${detail}\n`), piped);
});

t.test("drain: what is not possible is said before the home agent is asked", async (t) => {
  const agent = await opened(t);
  for (const [words, says] of [
    [["--limit", "0"], /number from 1 to 64/], [["--limit", "65"], /number from 1 to 64/], [["--limit", "two"], /number from 1 to 64/], [["--limit", "-1"], /number from 1 to 64/], [["--order", "random"], /config, name, smallest, largest/],
    [["--to", ""], /"" is not a host name/], [["--to", "host-b,,host-c"], /"" is not a host name/], [["--to", "host-b,host-a"], /the VMs of host-a cannot move to host-a/],
    [["--show", "--limit", "3"], /--show begins nothing/], [["--show", "--no-wait"], /--show begins nothing/], [["--show", "--bandwidth", "0"], /--show begins nothing/], [["--channels", "17"], /a number from 1 to 16/],
  ] as const) t.match(await careof(["drain", "host-a", ...words, "--api", agent.url]), { code: 2, stdout: "", stderr: says }, words.join(" "));
  t.same(agent.asked, []);
  for (const code of ["unknown-host", "not-permitted"]) {
    agent.on(`POST ${DRAIN}`, { status: 409, json: { code, message: `no: ${code}`, retryable: false } });
    t.match(await careof(["drain", "host-a", "--to", "host-z", "--api", agent.url]), { code: 1, stdout: "", stderr: new RegExp(`\\(${code}\\)`) });
  }
});

t.test("drain: how its VMs move, as in migrate", async (t) => {
  const agent = await opened(t);
  const wishes = { bandwidth: 50_000_000, downtimeLimitMs: 300, autoConverge: true, channels: 4, timeoutMs: 120_000, onTimeout: "force", postcopy: false, encrypt: false };
  agent.on(`POST ${DRAIN}`, { status: 202, json: { ...running, wishes } });
  const words = ["--bandwidth", "50M", "--downtime-limit", "300", "--auto-converge", "--channels", "4", "--timeout", "120", "--on-timeout", "force", "--no-postcopy", "--no-encrypt"];
  const ran = await careof(["drain", "host-a", "--limit", "3", ...words, "--no-wait", "--output", "json", "--api", agent.url]);
  t.same(agent.asked.at(-1)?.body, { limit: 3, ...wishes });
  t.same(JSON.parse(ran.stdout), { ...running, wishes }, "and the answer says so");
  agent.on(`POST ${DRAIN}`, { status: 202, json: { ...running, wishes: undefined } });
  t.same(JSON.parse((await careof(["drain", "host-a", "--no-wait", "--output", "json", "--api", agent.url])).stdout), running, "a home agent that knows none");
  t.same(agent.asked.at(-1)?.body, {}, "what is not said is not asked for");
});

t.test("Ctrl-C: nothing else begins; again: what moves is cancelled; a third time: it goes on unwatched", async (t) => {
  const agent = await opened(t);
  agent.streams();
  const terminal = new CapturedTerminal();
  const ran = careof(["drain", "host-a", "--api", agent.url], { terminal });
  await terminal.until((each) => each.stderr.includes("waiting"));
  while (agent.readers === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  terminal.interrupt();
  await terminal.until((each) => each.stderr.includes("no other VM begins to move, those that do go on"));
  terminal.interrupt();
  await terminal.until((each) => each.stderr.includes("cancelling what moves"));
  while (agent.asked.filter((each) => each.path.endsWith("/interrupt")).length < 2) await new Promise((resolve) => setTimeout(resolve, 5));
  t.same(agent.asked.filter((each) => each.path.endsWith("/interrupt")).map((each) => each.body), [{ cancel: false }, { cancel: true }]);
  terminal.interrupt();
  t.match(await ran, { code: 1, stderr: /the drain of host-a goes on without being watched \(left\)/ });
});

t.test("migrate --all moves every VM of a host, a few at a time", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  const web2 = { ...web1, vm: "web2" };
  const elsewhere = { ...web1, vm: "web3", host: "host-c" };
  agent.streams().on("GET /v1/vms", { json: [web1, web2, elsewhere, { ...web1, vm: "db", state: "expired" }, { ...web1, vm: "there", host: "host-b" }] })
    .on("POST /v1/migrations", { status: 202, json: moving }).on("GET /v1/migrations/web1%404", { json: moved });
  const ran = await careof(["migrate", "--all", "--from", "host-a", "host-b", "--limit", "1", "--output", "json", "--api", agent.url]);
  t.equal(ran.code, 0, ran.stderr);
  t.same(agent.asked.filter((each) => each.method === "POST").map((each) => each.body), [{ vm: "web1", host: "host-b" }, { vm: "web2", host: "host-b" }], "neither one that is elsewhere nor one that does not run");
  t.match(JSON.parse(ran.stdout), [{ result: "completed", pauseMs: 45.25 }, { result: "completed" }]);
  agent.on("POST /v1/migrations", { status: 409, json: { code: "unsupported", message: "web1 is moved by somebody else", retryable: false } });
  const refused = await careof(["migrate", "--all", "host-b", "--api", agent.url]);
  t.match(refused, { code: 1, stdout: /^0 of 3 VMs moved to host-b, 1 was there already\nweb1 was not moved \(unsupported\): web1 is moved by somebody else\n/, stderr: /web1 stays on host-a: web1 is moved by somebody else/ });
  agent.on("GET /v1/vms", { json: [] });
  t.match(await careof(["migrate", "--all", "--from", "host-a", "host-b", "--api", agent.url]), { code: 0, stdout: "no VM runs on host-a\n" });
  for (const [words, says] of [
    [["--all"], /missing required argument 'host'/], [["--all", "web1", "host-b"], /only the host is named/], [["web1"], /missing required argument 'host'/], [[], /missing required argument 'vm'/],
    [["web1", "host-b", "--from", "host-a"], /--from goes with --all/], [["web1", "host-b", "--limit", "3"], /--limit goes with --all/], [["--all", "--no-wait", "host-b"], /--no-wait does not go with it/],
    [["--all", "--from", "host-b", "host-b"], /--from names the host/],
  ] as const) t.match(await careof(["migrate", ...words, "--api", agent.url]), { code: 2, stdout: "", stderr: says });
});

t.test("migrate --all interrupted: what moves goes on, the rest has not begun; twice: it is cancelled", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.streams().on("GET /v1/vms", { json: [web1, { ...web1, vm: "web2" }] }).on("POST /v1/migrations", { status: 202, json: moving }).on("GET /v1/migrations/web1%404", { json: moving }).on("DELETE /v1/migrations/web1%404", { status: 202, json: moving });
  const terminal = new CapturedTerminal();
  const ran = careof(["migrate", "--all", "host-b", "--limit", "1", "--output", "json", "--api", agent.url], { terminal });
  await terminal.until((each) => each.stderr.includes("1 moving"));
  while (agent.readers === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  terminal.interrupt();
  terminal.interrupt();
  while (!agent.asked.some((each) => each.method === "DELETE")) await new Promise((resolve) => setTimeout(resolve, 5));
  agent.emit("migration", { ...moved, result: "cancelled", reason: "cancelled-by-operator" });
  const { code, stdout } = await ran;
  t.equal(code, 1);
  t.match(JSON.parse(stdout), [{ vm: "web1", result: "cancelled" }, { vm: "web2", migration: null, result: "failed", reason: "cancelled-by-operator" }]);
});

/** The move of any VM, as `moving` is that of web1. */
const moveOf = (vm: string, change: object = {}) => ({ ...moving, migration: `${vm}@4`, vm, ...change });

/** Answers `POST /v1/migrations` in turn. */
function answersInTurn(agent: ScriptedHomeAgent, answers: readonly { readonly status: number; readonly json: unknown }[]): void {
  const left = [...answers];
  agent.on("POST /v1/migrations", (response) => {
    const { status, json } = left.shift() ?? { status: 500, json: {} };
    response.writeHead(status).end(JSON.stringify(json));
  });
}

t.test("migrate --all: every VM has its result, whatever became of it", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  const names = ["moves", "there", "comes", "fails", "cancelled", "lost", "forgotten", "refused", "unheard"];
  agent.streams().on("GET /v1/vms", { json: names.map((vm) => ({ ...web1, vm, host: vm === "there" ? "host-b" : "host-a" })) });
  answersInTurn(agent, [
    { status: 202, json: moveOf("moves") }, { status: 409, json: { code: "already-here", message: "it is on host-b", retryable: false } }, { status: 202, json: moveOf("fails") }, { status: 202, json: moveOf("cancelled") },
    { status: 202, json: moveOf("lost") }, { status: 202, json: moveOf("forgotten") }, { status: 409, json: { code: "not-listed", message: "host-b is not among its hosts", retryable: false } }, { status: 202, json: "nonsense" },
  ]);
  agent.on("GET /v1/migrations", { json: [] }).on("GET /v1/vms/forgotten", { json: { ...web1, vm: "forgotten", host: "host-b" } })
    .on("GET /v1/migrations/forgotten%404", { status: 404, json: { code: "unknown-migration", message: "no such migration since the home agent began", retryable: false } });
  for (const [vm, end] of [["moves", {}], ["fails", { result: "failed", reason: "relay-failed", detail: "cut" }], ["cancelled", { result: "cancelled", reason: "cancelled-by-operator" }], ["lost", { result: "lost", reason: "released-unknown" }]] as const) {
    agent.on(`GET /v1/migrations/${vm}%404`, { json: { ...moved, migration: `${vm}@4`, vm, ...end } });
  }
  const json = await careof(["migrate", "--all", "host-b", "--limit", "1", "--output", "json", "--api", agent.url]);
  t.equal(json.code, 1);
  const rows = JSON.parse(json.stdout) as readonly Record<string, unknown>[];
  t.same(rows.map(({ vm, from, to, migration, result, reason }) => [vm, from, to, migration, result, reason]), [
    ["moves", "host-a", "host-b", "moves@4", "completed", "accepted"], ["there", "host-b", "host-b", null, "completed", "already-here"], ["comes", "host-a", "host-b", null, "completed", "already-here"],
    ["fails", "host-a", "host-b", "fails@4", "failed", "relay-failed"], ["cancelled", "host-a", "host-b", "cancelled@4", "cancelled", "cancelled-by-operator"], ["lost", "host-a", "host-b", "lost@4", "lost", "released-unknown"],
    ["forgotten", "host-a", "host-b", "forgotten@4", "completed", "accepted"], ["refused", "host-a", "host-b", null, "failed", "not-listed"], ["unheard", "host-a", "host-b", null, null, "bad-reply"],
  ]);
  answersInTurn(agent, [{ status: 202, json: moveOf("fails") }, { status: 202, json: moveOf("lost") }]);
  agent.on("GET /v1/vms", { json: ["fails", "lost"].map((vm) => ({ ...web1, vm })) });
  const text = await careof(["migrate", "--all", "host-b", "--limit", "1", "--api", agent.url]);
  t.match(text.stdout, /\nfails was not moved \(relay-failed\): cut\nlost is LOST \(released-unknown\): `careof resolve lost HOST`\n$/);
  t.match(text.stderr, /fails stays on host-a: relay-failed; cut\n/);
  for (const row of rows) t.same(Object.keys(row), ["migration", "vm", "from", "to", "result", "reason", "totalMs", "pauseMs", "gapDownMs", "gapUpMs", "bytes", "detail", "overflowed", "hold", "undelivered"], String(row["vm"]));
  t.end();
});

t.test("migrate --all: nothing but VMs that are there, and one whose answer never came but which moves", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.streams().on("GET /v1/vms", { json: [{ ...web1, host: "host-b" }] });
  t.match(await careof(["migrate", "--all", "host-b", "--api", agent.url]), { code: 0, stdout: "no VM runs elsewhere than on host-b\n" });
  agent.on("GET /v1/vms", { json: [web1] }).on("POST /v1/migrations", (response) => { response.destroy(); }).on("GET /v1/migrations", { json: [moving] }).on("GET /v1/migrations/web1%404", { json: moved });
  const found = await careof(["migrate", "--all", "host-b", "--output", "json", "--api", agent.url]);
  t.match([found.code, JSON.parse(found.stdout)], [0, [{ vm: "web1", migration: "web1@4", result: "completed" }]]);
});

t.test("migrate --all: who stops watching is told what is known, and a move that begins after the second Ctrl-C is cancelled too", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.streams().on("GET /v1/vms", { json: ["web1", "web2", "web3"].map((vm) => ({ ...web1, vm })) });
  for (const vm of ["web1", "web2"]) agent.on(`GET /v1/migrations/${vm}%404`, { json: moveOf(vm) }).on(`DELETE /v1/migrations/${vm}%404`, { status: 202, json: moveOf(vm) });
  const late: (() => void)[] = [];
  let begun = 0;
  agent.on("POST /v1/migrations", (response) => {
    const vm = `web${String(begun += 1)}`;
    const answer = (): void => { response.writeHead(202).end(JSON.stringify(moveOf(vm))); };
    if (vm === "web1") answer();
    else late.push(answer);
  });
  const terminal = new CapturedTerminal();
  const running = careof(["migrate", "--all", "host-b", "--output", "json", "--api", agent.url], { terminal });
  const until = async (fits: () => boolean): Promise<void> => { while (!fits()) await new Promise((resolve) => setTimeout(resolve, 5)); };
  await until(() => late.length === 1 && agent.readers === 1);
  terminal.interrupt();
  terminal.interrupt();
  late[0]?.();
  await until(() => agent.asked.filter((each) => each.method === "DELETE").length === 2);
  await until(() => agent.readers === 2);
  terminal.interrupt();
  const { code, stdout } = await running;
  t.match([code, JSON.parse(stdout)], [1, [{ vm: "web1", migration: "web1@4", result: null, reason: "left" }, { vm: "web2", migration: "web2@4", result: null, reason: "left" }, { vm: "web3", migration: null, result: "failed", reason: "cancelled-by-operator" }]]);
  t.notOk(terminal.listens);
});

t.test("several moves: how far the disks are, and once for each why it does not end", (t) => {
  const progress = { ...moving.progress, total: 0, diskCopied: 3e7, diskTotal: 12e7, diskBytesPerSecond: 9e6 };
  const detail = "it does not converge: so and so";
  const view = (change: object) => migrationReply.parse({ ...moving, ...change });
  const live = new CapturedTerminal();
  live.errIsLive = true;
  let now = millis(0);
  const drawn = new MovesProgress(live, () => now);
  drawn.sum("host-a: 0 of 2 moved");
  drawn.show(view({ progress }));
  t.ok(live.stderr.endsWith("\r\u001b[Khost-a: 0 of 2 moved  web1 → host-b disks 25%"), live.stderr);
  drawn.show(view({}));
  t.ok(live.stderr.endsWith("web1 → host-b 77%"));
  for (const vm of ["web1", "web2", "web1"]) drawn.show(view({ vm, migration: `${vm}@4`, detail }));
  t.same(live.stderr.split("\n").length, 3, "a line that stays for each");
  t.match(live.stderr, /\r\u001b\[Kweb1 → host-b: it does not converge: so and so\n/);
  drawn.show(view({ phase: "postcopy" }));
  t.match(live.stderr, /web1 → host-b postcopy {2}web2 → host-b 77%$/);

  const piped = new CapturedTerminal();
  const kept = new MovesProgress(piped, () => now);
  kept.sum("host-a: 0 of 2 moved");
  for (const time of [0, 4000, 9999, 10_000, 15_000, 20_000]) {
    now = millis(time);
    kept.show(view({ progress }));
  }
  kept.show(view({ detail }));
  kept.show(view({ ...moved, result: "failed", reason: "timed-out", detail: `not completed; ${detail}` }));
  const line = "web1 host-a → host-b  copy  disks 25%  90.0 MB left  9.0 MB/s  10 s left\n";
  t.equal(piped.stderr, `host-a: 0 of 2 moved\n${line}${line}web1 → host-b: ${detail}\nweb1 stays on host-a: timed-out; not completed; ${detail}\n`);
  t.end();
});

t.test("watch fits the screen: no line too long, none too many, and the moves are always to be seen", (t) => {
  const vms = (count: number, name: string) => Array.from({ length: count }, (_, i) => vmReply.parse({ ...web1, vm: `${name}${String(i)}`, ...(i === count - 1 ? { state: "moving" } : {}) }));
  const hosts = (count: number) => Array.from({ length: count }, (_, i) => hostReply.parse({ ...hostA, name: `host-${String(i)}`, draining: i === 0 }));
  const picture = (change: Partial<Picture>): Picture => ({ hosts: hosts(2), vms: vms(2, "web"), moves: [], events: [], trouble: null, now: Date.parse(at) + 1000, ...change });
  const move = (vm: string) => migrationReply.parse({ ...moving, vm, migration: `${vm}@4` });
  const advice = "it does not converge: the guest writes 40 MB/s and 41 MB/s are copied, so that it would have to stand for 837 ms, and 20 ms are allowed. What helps: --auto-converge slows the guest down";
  const events = Array.from({ length: 8 }, (_, i) => `12:00:0${String(i)}  event ${String(i)}`);
  for (const columns of [40, 80, 120]) {
    for (const rows of [10, 24, 50]) {
      for (const count of [0, 1, 3, 20, 200]) {
        for (const moves of [[], [move("web0")], vms(9, "web").map((vm) => move(vm.vm)), vms(9, "web").map((vm) => ({ ...move(vm.vm), detail: advice }))]) {
          const lines = layout(picture({ vms: vms(count, count === 3 ? "a-virtual-machine-with-a-name-that-goes-on-" : "web"), hosts: hosts(count), moves, events }), { columns, rows });
          t.ok(lines.length <= rows, `${String(lines.length)} lines on ${String(rows)}`);
          t.ok(lines.every((line) => line.length <= columns), `${String(columns)} columns`);
          if (rows >= 24 && moves.length > 0) t.ok(lines.some((line) => line.startsWith("web0 host-a → host-b")), "the move is there");
        }
      }
    }
  }
  const many = layout(picture({ vms: vms(50, "web"), moves: [move("web49")], events }), { columns: 80, rows: 24 });
  const stuck = layout(picture({ moves: [{ ...move("web0"), detail: advice }, move("web1")] }), { columns: 80, rows: 24 });
  const said = stuck.findIndex((line) => line.startsWith("web0: it does not converge"));
  t.match(stuck[said - 1], /^web1 host-a → host-b/, "below the moves");
  t.equal(stuck.slice(said, said + 3).map((line) => line.trim()).join(" "), `web0: ${advice}`, "in whole words");
  t.equal(layout(picture({ moves: vms(4, "web").map((vm) => ({ ...move(vm.vm), detail: advice })) }), { columns: 80, rows: 24 }).filter((line) => line.endsWith(" …")).length, 1);
  t.match(many[0], /^careof {2}host-0 draining {3}host-1 ✓$/);
  t.match(many[2], /^VM +ADDRESS +HOST/);
  t.match(many[3], /^web49 +198\.51\.100\.7 +host-a → host-b .*moving/, "who is not simply bound comes first");
  t.ok(many.some((line) => /^… and \d+ more VMs$/.test(line)));
  t.equal(many.at(-1), "12:00:07  event 7", "the newest event is seen");
  t.match(layout(picture({ trouble: "nobody answers" }), { columns: 80, rows: 24 }).join("\n"), /no contact, trying again: nobody answers/);
  t.match(layout(picture({ hosts: hosts(30) }), { columns: 80, rows: 24 })[0], /^careof {2}30 hosts: 1 draining, 29 connected$/);
  t.match(layout(picture({}), { columns: 44, rows: 24 })[2], /^VM +ADDRESS +HOST +STATE +HEARD$/, "columns go before names are cut");
  t.end();
});
