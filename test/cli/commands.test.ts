import { createHash } from "node:crypto";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { z } from "zod";
import t from "tap";
import { CareofError } from "../../model/errors.js";
import { careof, CapturedTerminal, shortLimits } from "./captured-terminal.js";
import { at, hostA, moving, ScriptedHomeAgent, web1, type Script } from "./scripted-home-agent.js";

delete process.env["CAREOF_API"];

const stay = { epoch: 3, host: "host-a", careOf: "10.1.0.2", from: at, until: null, cause: "migration", actor: "operator", pauseMs: 45.25, gapDownMs: 0, gapUpMs: null };
const longNames = { ...web1, vm: "a-virtual-machine-with-a-name-that-goes-on", host: "a-host-with-a-name-that-goes-on-as-well" };

t.test("what is answered is shown, for people and for programs", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.on("GET /v1/vms", { json: [web1, { ...web1, vm: "db", host: null, careOf: null, state: "expired", since: null, lastHeartbeat: null }] })
    .on("GET /v1/vms/web1", { json: { ...web1, unheardOf: "by this version" } })
    .on("GET /v1/vms/web1/history", { json: [stay, { ...stay, epoch: 2, until: at, cause: "start", pauseMs: null }] })
    .on("GET /v1/hosts", { json: [hostA, { ...hostA, name: "host-b", state: "gone", since: null, capabilities: null, vms: [] }] })
    .on("POST /v1/vms/web1/start", { json: web1 })
    .on("POST /v1/vms/web1/stop", { json: { ...web1, state: "expired", host: null, careOf: null } })
    .on("POST /v1/vms/web1/resolve", { json: web1 })
    .on("POST /v1/vms/web1/adopt", { json: web1 })
    .on("POST /v1/vms/web1/release", { json: { vm: "web1", host: "host-a", detail: "process 7, monitor /run/x.qmp, port tap7" } })
    .on("POST /v1/reload", { json: { hosts: 2, vms: 1, needRestart: ["listen"], nextStart: [{ vm: "web1", keys: ["homeAddresses", "mac"] }] } })
    .on("GET /v1/migrations", { json: [{ ...moving, migration: "web1@2", result: "completed" }, moving] })
    .on("DELETE /v1/migrations/web1%404", { status: 202, json: moving });
  const cases: readonly { readonly args: readonly string[]; readonly text: readonly RegExp[]; readonly json: unknown; readonly asked?: unknown }[] = [
    { args: ["where", "web1"], text: [/web1 is in care of host-a \(10\.1\.0\.2\)/, /198\.51\.100\.7/, /epoch 3/], json: web1 },
    { args: ["vms"], text: [/^VM +ADDRESS +HOST +CARE-OF +STATE +EPOCH +SINCE +HEARD$/m, /^web1 +198\.51\.100\.7 +host-a +10\.1\.0\.2 +bound +3 /m, /^db .* – +– +expired/m], json: [web1, { ...web1, vm: "db", host: null, careOf: null, state: "expired", since: null, lastHeartbeat: null }] },
    { args: ["history", "web1"], text: [/^EPOCH/m, /^3 +host-a +2026-03-01 .* migration +45 ms +0\.0 ms +–$/m], json: [stay, { ...stay, epoch: 2, until: at, cause: "start", pauseMs: null }] },
    { args: ["hosts"], text: [/^host-a +10\.1\.0\.2 +connected .* 10\.0\.2 +kvm +bpf +7\.5G +1 +web1$/m, /^host-b .* gone .* – +0 +–$/m], json: [hostA, { ...hostA, name: "host-b", state: "gone", since: null, capabilities: null, vms: [] }] },
    { args: ["start", "web1", "host-a"], text: [/in care of host-a/], json: web1, asked: { method: "POST", path: "/v1/vms/web1/start", body: { host: "host-a" } } },
    { args: ["stop", "web1"], text: [/web1 is stopped/], json: { ...web1, state: "expired", host: null, careOf: null }, asked: { method: "POST", path: "/v1/vms/web1/stop", body: { force: false } } },
    { args: ["stop", "web1", "--force"], text: [/stopped/], json: { ...web1, state: "expired", host: null, careOf: null }, asked: { method: "POST", path: "/v1/vms/web1/stop", body: { force: true } } },
    { args: ["adopt", "web1", "host-a"], text: [/in care of host-a/], json: web1, asked: { method: "POST", path: "/v1/vms/web1/adopt", body: { host: "host-a" } } },
    { args: ["release", "web1"], text: [/^web1 runs on host-a without careof: process 7/], json: { vm: "web1", host: "host-a", detail: "process 7, monitor /run/x.qmp, port tap7" }, asked: { method: "POST", path: "/v1/vms/web1/release", body: {} } },
    { args: ["resolve", "web1", "host-b"], text: [/web1/], json: web1, asked: { method: "POST", path: "/v1/vms/web1/resolve", body: { host: "host-b" } } },
    { args: ["resolve", "web1", "host-b", "--force"], text: [/web1/], json: web1, asked: { method: "POST", path: "/v1/vms/web1/resolve", body: { host: "host-b", force: true } } },
    { args: ["reload"], text: [/has taken its configuration: 2 hosts, 1 VMs\nchanges of listen need a restart.*\nweb1: changes of homeAddresses, mac count from its next start\n$/], json: { hosts: 2, vms: 1, needRestart: ["listen"], nextStart: [{ vm: "web1", keys: ["homeAddresses", "mac"] }] }, asked: { method: "POST", path: "/v1/reload", body: {} } },
    { args: ["cancel", "web1@4"], text: [/web1@4 is being cancelled; web1 stays on host-a/], json: null, asked: { method: "DELETE", path: "/v1/migrations/web1%404", body: null } },
    { args: ["cancel", "web1"], text: [/web1@4/], json: null, asked: { method: "DELETE", path: "/v1/migrations/web1%404", body: null } },
  ];
  for (const each of cases) {
    const name = each.args.join(" ");
    const text = await careof([...each.args, "--api", agent.url]);
    t.equal(text.code, 0, name);
    t.equal(text.stderr, "", `${name}: nothing on standard error`);
    for (const pattern of each.text) t.match(text.stdout, pattern, `${name}: ${String(pattern)}`);
    for (const line of text.stdout.split("\n")) t.ok(line.length <= 80, `${name}: "${line}" fits into 80 columns`);
    const json = await careof([...each.args, "--api", `${agent.url}/`, "--output", "json"]);
    t.equal(json.code, 0, `${name} as JSON`);
    const parsed: unknown = JSON.parse(json.stdout);
    if (each.json !== null) t.same(parsed, each.json, `${name}: the JSON`);
    if (each.asked !== undefined) t.same(agent.asked.at(-1), each.asked, `${name}: what was asked`);
  }
});

t.test("the fields of JSON keep their order", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  const backwards = (object: object): unknown => Object.fromEntries(Object.entries(object).reverse());
  agent.on("GET /v1/vms", { json: [backwards({ ...web1, reachable: false })] }).on("GET /v1/hosts", { json: [backwards(hostA)] });
  for (const [command, keys] of [
    ["vms", ["vm", "homeAddresses", "host", "careOf", "state", "epoch", "since", "lastHeartbeat", "evidence", "reachable"]],
    ["hosts", ["name", "careOf", "state", "since", "draining", "capabilities", "software", "vms"]],
  ] as const) {
    const [row] = z.array(z.looseObject({})).parse(JSON.parse((await careof([command, "--output", "json", "--api", agent.url])).stdout));
    t.same(Object.keys(row ?? {}), keys, command);
  }
});

t.test("every state is said in words", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  const states: readonly [overlay: Partial<Record<keyof typeof web1, unknown>>, says: RegExp][] = [
    [{ state: "moving" }, /is moving away from host-a/],
    [{ state: "stale" }, /has been silent; it was last in care of host-a/],
    [{ state: "expired", host: null, careOf: null }, /runs nowhere: start it/],
    [{ state: "expired" }, /is gone; it was last in care of host-a/],
    [{ state: "lost" }, /LOST in a move from host-a.*careof resolve web1 HOST/],
    [{ lastHeartbeat: null, since: null, evidence: null }, /last heartbeat +none/],
    [{ evidence: "\u001b[2Jgone\r" }, /known by +\?\[2Jgone\?$/m],
  ];
  for (const [overlay, says] of states) {
    agent.on("GET /v1/vms/web1", { json: { ...web1, ...overlay } });
    const ran = await careof(["where", "web1", "--api", agent.url]);
    t.match(ran.stdout, says);
  }
});

t.test("tables fit a terminal and are whole in a pipe", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.on("GET /v1/vms", { json: [longNames] });
  const terminal = new CapturedTerminal();
  terminal.columns = 80;
  const live = await careof(["vms", "--api", agent.url], { terminal });
  for (const line of live.stdout.split("\n")) t.ok(line.length <= 80, line);
  t.match(live.stdout, /…/);
  const piped = await careof(["vms", "--api", agent.url]);
  t.match(piped.stdout, new RegExp(longNames.vm));
  const host = { ...hostA, name: longNames.host.slice(0, 30), careOf: ["2001:db8:1234:5678:9abc:def0:1234:5678", "10.1.0.2"], draining: true };
  agent.on("GET /v1/hosts", { json: [{ ...host, memoryFreeBytes: 5.6e9, vms: [longNames.vm, "web1"] }, { ...host, memoryFreeBytes: -(2 ** 30) }, { ...host, state: "gone", capabilities: null, memoryFreeBytes: null }] });
  const hosts = new CapturedTerminal();
  hosts.columns = 80;
  const table = (await careof(["hosts", "--api", agent.url], { terminal: hosts })).stdout;
  for (const line of table.split("\n")) t.ok(line.length <= 80, line);
  t.match(table, /^HOST +STATE +SINCE +MEMORY +VMS\n.* draining .* 5\.2\/7\.5G +2\n.* draining .* -1\.0\/7\.5G +1\n.* gone, draining .* – +1\n$/, "what tells hosts apart and what drain places by stay");
  const whole = await careof(["hosts", "--api", agent.url]);
  for (const word of [host.name, longNames.vm, host.careOf.join(","), "7.5G"]) t.ok(whole.stdout.includes(word), `${word} in a pipe`);
  agent.on("GET /v1/vms", { json: [] });
  t.match((await careof(["vms", "--api", agent.url])).stdout, /no VM is configured/);
});

t.test("a refusal is shown with its code and exit code 1", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.on("GET /v1/vms/web1", { status: 404, json: { code: "unknown-vm", message: 'no VM "web1" is configured', retryable: false } })
    .on("POST /v1/vms/web1/start", { status: 409, json: { code: "not-listed", message: "web1 does not list host-c", retryable: false } })
    .on("GET /v1/vms/idle", { json: { ...web1, vm: "idle" } })
    .on("GET /v1/migrations", { json: [] })
    .on("POST /v1/reload", { status: 400, json: { code: "config-invalid", message: 'home.yaml:2:1: unknown key "nmae"\nhome.yaml:3:1: name: no', retryable: false } });
  const cases: readonly [args: readonly string[], says: RegExp][] = [
    [["where", "web1"], /^careof: no VM "web1" is configured \(unknown-vm\)\n$/],
    [["start", "web1", "host-c"], /web1 does not list host-c \(not-listed\)/],
    [["cancel", "idle"], /idle is not moving \(not-moving\)/],
  ];
  for (const [args, says] of cases) {
    const ran = await careof([...args, "--api", agent.url]);
    t.equal(ran.code, 1, args.join(" "));
    t.match(ran.stderr, says);
    t.equal(ran.stdout, "");
  }
});

t.test("nonsense, silence and absence are told apart, in one sentence each", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  const noise = createServer((socket) => {
    socket.on("error", () => undefined);
    socket.end("220 mail.example ESMTP\r\n");
  });
  await new Promise<void>((resolve) => { noise.listen(0, "127.0.0.1", resolve); });
  t.teardown(() => { noise.close(); });
  const closed = createServer();
  await new Promise<void>((resolve) => { closed.listen(0, "127.0.0.1", resolve); });
  const free = (closed.address() as AddressInfo).port;
  await new Promise<void>((resolve) => { closed.close(() => { resolve(); }); });
  const cases: readonly { readonly name: string; readonly script?: Script; readonly api?: string; readonly says: RegExp }[] = [
    { name: "not JSON", script: { text: "<html>" }, says: /makes no sense here \(not JSON\).*\(bad-reply\)/ },
    { name: "a field is missing", script: { json: { ...web1, epoch: undefined } }, says: /makes no sense here \(epoch: .*\(bad-reply\)/ },
    { name: "a field has another type", script: { json: { ...web1, homeAddresses: "198.51.100.7" } }, says: /homeAddresses: /},
    { name: "an unknown state", script: { json: { ...web1, state: "dancing" } }, says: /state: / },
    { name: "a time that is none", script: { json: { ...web1, since: "yesterday" } }, says: /since: / },
    { name: "an error that is none", script: { status: 500, text: "oops" }, says: /status 500 and not JSON/ },
    { name: "an error of another shape", script: { status: 502, json: { error: "bad gateway" } }, says: /status 502/ },
    { name: "a redirection", script: (response) => { response.writeHead(302, { location: "http://127.0.0.1:1/" }).end(); }, says: /cannot reach the home agent/ },
    { name: "breaks off", script: (response) => { response.writeHead(200, { "content-length": "100" }).write("{"); response.socket?.destroySoon(); }, says: /cannot reach the home agent/ },
    { name: "never answers", script: () => undefined, says: /did not answer GET vms\/web1 within 0\.3 s \(timed-out\)/ },
    { name: "never ends its answer", script: (response) => { response.writeHead(200).write("{"); }, says: /timed-out/ },
    { name: "refused", api: `http://127.0.0.1:${String(free)}`, says: /cannot reach the home agent at .*ECONNREFUSED.*systemctl start careof-home-agent.*--api URL or CAREOF_API.*\(home-agent-unreachable\)/ },
    { name: "no such name", api: "http://careof.invalid", says: /home-agent-unreachable/ },
    { name: "not HTTP", api: `http://127.0.0.1:${String((noise.address() as AddressInfo).port)}`, says: /home-agent-unreachable/ },
  ];
  for (const { name, script, api, says } of cases) {
    if (script !== undefined) agent.on("GET /v1/vms/web1", script);
    const ran = await careof(["where", "web1", "--api", api ?? agent.url], { limits: shortLimits });
    t.equal(ran.code, 1, name);
    t.match(ran.stderr, says, name);
    t.equal(ran.stderr.trimEnd().split("\n").length, 1, `${name}: one line`);
    t.equal(ran.stdout, "", `${name}: nothing on standard output`);
  }
  agent.on("GET /v1/vms/web1", { json: { ...web1, evidence: "x".repeat(5000) } });
  t.match((await careof(["where", "web1", "--api", agent.url], { limits: { bodyBytes: 1000 } })).stderr, /more than 1000 bytes/);
});

t.test("wrong usage is exit code 2 and asks nobody", async (t) => {
  const cases: readonly (readonly string[])[] = [
    [], ["nope"], ["where"], ["where", "web1", "web2"], ["where", "WEB"], ["where", "../x"], ["vms", "--output", "xml"], ["vms", "--api", "nowhere"], ["vms", "--api", "file:///etc"], ["migrate", "web1"],
    ["migrate", "web1", "host b"], ["cancel", "web1@0"], ["start", "web1", "host-a", "--fast"], ["home-agent"], ["keygen"], ["keygen", "vm", "A"], ["doctor", "now"],
  ];
  for (const args of cases) {
    const ran = await careof(args);
    t.equal(ran.code, 2, args.join(" "));
    t.equal(ran.stdout, "", `${args.join(" ")}: nothing on standard output`);
    t.not(ran.stderr, "", `${args.join(" ")}: says why`);
  }
  for (const [args, hint] of [[["keygen", "host"], "careof keygen host"], [["keygen", "vm"], "careof keygen vm"], [["port", "arrive"], "careof port arrive"], [["where"], "careof where"], [["--nope"], "careof"]] as const) {
    t.match((await careof(args)).stderr, `(${hint} --help says how)`, `the hint of ${args.join(" ")} is a command that there is`);
  }
  process.env["CAREOF_API"] = "nowhere";
  t.equal((await careof(["vms"])).code, 2, "a malformed CAREOF_API");
  delete process.env["CAREOF_API"];
});

t.test("help of every command", async (t) => {
  const top = await careof(["--help"]);
  t.equal(top.code, 0);
  const operators = ["where", "vms", "hosts", "history", "watch", "migrate", "cancel", "drain", "undrain", "start", "stop", "adopt", "release", "resolve", "reload"];
  const names = [...operators, "keygen", "doctor", "demo", "home-agent", "agent", "heartbeat"];
  for (const name of names) t.match(top.stdout, new RegExp(`^  ${name} `, "m"), `${name} is listed`);
  for (const name of names.filter((each) => each !== "demo")) {
    const { code, stdout } = await careof([name, "--help"]);
    t.equal(code, 0, name);
    t.match(stdout, new RegExp(`^Usage: careof ${name}`), name);
    t.match(stdout, new RegExp(`Examples:\n  careof ${name}`), `${name}: has examples`);
    if (operators.includes(name)) t.match(stdout, /--output.*[\s\S]*CAREOF_API/, `${name}: common options`);
    for (const line of stdout.split("\n")) t.ok(line.length <= 80, `${name}: "${line}"`);
  }
  t.equal((await careof(["--version"])).stdout, "9.9.9\n");
});

t.test("CAREOF_API says where the home agent is", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.on("GET /below/v1/vms", { json: [web1] });
  process.env["CAREOF_API"] = `${agent.url}/below`;
  const ran = await careof(["vms"]);
  delete process.env["CAREOF_API"];
  t.equal(ran.code, 0);
  t.match(ran.stdout, /web1/);
});

const hostSecret = z.strictObject({ host: z.string(), token: z.string(), tokenHash: z.string() });
const hostFile = z.strictObject({ host: z.string(), tokenFile: z.string(), tokenHash: z.string() });

t.test("keygen makes secrets that nobody else reads", async (t) => {
  const directory = t.testdir({ taken: "old" });
  const made = hostSecret.parse(JSON.parse((await careof(["keygen", "host", "host-a", "--output", "json"])).stdout));
  t.match(made.token, /^[A-Za-z0-9_-]{43}$/);
  t.equal(made.tokenHash, createHash("sha256").update(made.token).digest("hex"), "the hash is of the token");
  const text = await careof(["keygen", "host", "host-a"]);
  t.match(text.stdout, /tokenHash +[0-9a-f]{64}/);
  t.notMatch(text.stdout, new RegExp(made.token), "another one each time");

  const file = join(directory, "token");
  const written = await careof(["keygen", "host", "host-a", "--out", file, "--output", "json"]);
  const token = readFileSync(file, "utf8").trim();
  t.equal(hostFile.parse(JSON.parse(written.stdout)).tokenHash, createHash("sha256").update(token).digest("hex"));
  t.notMatch(written.stdout, new RegExp(token), "what is in a file is not shown");

  const key = join(directory, "web1.key");
  const first = await careof(["keygen", "vm", "web1", "--out", key, "--output", "json"]);
  t.same(JSON.parse(first.stdout), { vm: "web1", keyFile: key });
  const before = readFileSync(key, "utf8");
  t.match(before, /^[0-9a-f]{64}\n$/);
  t.equal(statSync(key).mode & 0o777, 0o600);
  const again = await careof(["keygen", "vm", "web1", "--out", key]);
  t.equal(again.code, 1);
  t.match(again.stderr, /--force overwrites it \(file-exists\)/);
  t.equal(readFileSync(key, "utf8"), before, "nothing changed");
  writeFileSync(join(directory, "open.key"), "x", { mode: 0o644 });
  t.equal((await careof(["keygen", "vm", "web1", "--out", join(directory, "open.key"), "--force"])).code, 0);
  t.equal(statSync(join(directory, "open.key")).mode & 0o777, 0o600, "overwriting closes it");
  t.match((await careof(["keygen", "vm", "web1", "--out", join(directory, "no", "where")])).stderr, /\(cannot-write\)/);
});

t.test("the parts are started with their file, and an interrupt shuts them down", async (t) => {
  const terminal = new CapturedTerminal();
  const seen: string[] = [];
  const part = (name: string) => async (file: string, signal: AbortSignal): Promise<void> => {
    seen.push(`${name} ${file}`);
    setTimeout(() => { terminal.interrupt(); }, 5);
    await new Promise<void>((resolve) => { signal.addEventListener("abort", () => { resolve(); }); });
    seen.push("over");
  };
  const parts = { homeAgent: part("home-agent"), agent: part("agent"), heartbeat: part("heartbeat") };
  for (const name of ["home-agent", "agent", "heartbeat"]) t.equal((await careof([name, "--config", `${name}.yaml`], { terminal, parts })).code, 0, name);
  t.same(seen, ["home-agent home-agent.yaml", "over", "agent agent.yaml", "over", "heartbeat heartbeat.yaml", "over"]);
  t.notOk(terminal.listens, "signals are given back");
  const broken = await careof(["agent", "-c", "x.yaml"], { parts: { agent: () => Promise.reject(new CareofError("config-invalid", 'x.yaml:3:1: unknown key "nmae"')) } });
  t.equal(broken.code, 1);
  t.match(broken.stderr, /x\.yaml:3:1: unknown key "nmae" \(config-invalid\)/);
});

t.test("demo and doctor decide their exit code", async (t) => {
  const seen: unknown[] = [];
  const parts = {
    demo: (args: readonly string[]): Promise<number> => {
      seen.push(args);
      return Promise.resolve(1);
    },
    doctor: (options: { readonly output: string; readonly configFile: string | null; readonly fix: boolean; readonly persist: boolean; readonly write: (text: string) => void }): Promise<number> => {
      options.write("looked\n");
      seen.push([options.output, options.configFile, options.fix, options.persist]);
      return Promise.resolve(0);
    },
  };
  t.equal((await careof(["demo", "--json", "out.json", "--quick"], { parts })).code, 1);
  await careof(["demo", "--help"], { parts });
  t.equal((await careof(["doctor", "--output", "json", "--config", "a.yaml"], { parts })).stdout, "looked\n");
  await careof(["doctor"], { parts });
  await careof(["doctor", "--fix", "--persist"], { parts });
  t.match(await careof(["doctor", "--persist"], { parts }), { code: 2, stderr: /--persist goes with --fix/ });
  t.same(seen, [["--json", "out.json", "--quick"], ["--help"], ["json", "a.yaml", false, false], ["text", null, false, false], ["text", null, true, true]]);
});
