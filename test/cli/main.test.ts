import { spawn, type ChildProcess } from "node:child_process";
import { createSocket } from "node:dgram";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import t from "tap";
import { hostA, moved, moving, ScriptedHomeAgent, web1 } from "./scripted-home-agent.js";

const main = fileURLToPath(new URL("../../cli/main.js", import.meta.url));
const root = fileURLToPath(new URL("../../..", import.meta.url));

interface Process {
  readonly child: ChildProcess;
  readonly ended: Promise<{ readonly code: number | null; readonly stdout: string; readonly stderr: string }>;
  /** Resolves when standard error contains the text. */
  readonly says: (text: string) => Promise<void>;
}

/** The real executable. */
function careof(...args: readonly string[]): Process {
  const environment = { ...process.env };
  delete environment["CAREOF_API"];
  const child = spawn(process.execPath, [main, ...args], { stdio: ["ignore", "pipe", "pipe"], env: environment });
  const output = { stdout: "", stderr: "" };
  const waiting: (() => void)[] = [];
  child.stdout.setEncoding("utf8").on("data", (text: string) => { output.stdout += text; });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    output.stderr += text;
    for (const each of waiting) each();
  });
  return {
    child,
    ended: new Promise((resolve) => { child.on("close", (code) => { resolve({ code, ...output }); }); }),
    says: async (text) => new Promise((resolve) => {
      const look = (): void => {
        if (output.stderr.includes(text)) resolve();
      };
      waiting.push(look);
      look();
    }),
  };
}

t.test("version, usage, nobody there", async (t) => {
  const { version } = z.object({ version: z.string() }).parse(JSON.parse(readFileSync(join(root, "package.json"), "utf8")));
  t.match(await careof("--version").ended, { code: 0, stdout: `${version}\n`, stderr: "" });
  t.match(await careof().ended, { code: 2, stdout: "" });
  t.match(await careof("vms", "--api", "http://127.0.0.1:1").ended, { code: 1, stdout: "", stderr: /^careof: cannot reach the home agent at http:\/\/127\.0\.0\.1:1 / });
});

t.test("a configuration with a mistake is refused with line and column, by every part", async (t) => {
  const directory = t.testdir({
    "home-agent.yaml": "name: home-1\nnmae: home-2\n",
    "agent.yaml": "name: host-a\nnmae: host-b\n",
    "heartbeat.yaml": "vm: web1\nnmae: web2\n",
    "type.yaml": "name:\n  - host-a\n",
    "syntax.yaml": "name: host-a\n  bad: [\n",
  });
  const parts = ["home-agent", "agent", "heartbeat"];
  const unknowns = await Promise.all(parts.map((part) => careof(part, "--config", join(directory, `${part}.yaml`)).ended));
  for (const [at, unknown] of unknowns.entries()) {
    const part = parts[at] ?? "";
    t.equal(unknown.code, 1, part);
    t.match(unknown.stderr, /\.yaml:2:1: unknown key "nmae"/, part);
    t.match(unknown.stderr, /\(config-invalid\)\n$/, part);
  }
  const [type, syntax, none] = await Promise.all(["type", "syntax", "none"].map((name) => careof("agent", "--config", join(directory, `${name}.yaml`)).ended));
  t.match(type, { code: 1, stderr: /type\.yaml:2:3: name: / });
  t.match(syntax, { code: 1, stderr: /syntax\.yaml:\d+:\d+: .*\(config-malformed\)/s });
  t.match(none, { code: 1, stderr: /none\.yaml.*\(config-unreadable\)/ });
});

t.test("a part runs until SIGTERM or Ctrl-C and ends cleanly", async (t) => {
  const listener = createSocket("udp4");
  await new Promise<void>((resolve) => { listener.bind(0, "127.0.0.1", resolve); });
  t.teardown(() => { listener.close(); });
  const directory = t.testdir({
    "web1.key": "ab".repeat(32),
    "heartbeat.yaml": `vm: web1\nkeyId: 1\nkeyFile: web1.key\nto: 127.0.0.1:${String(listener.address().port)}\nintervalMs: 100\n`,
  });
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    const part = careof("heartbeat", "--config", join(directory, "heartbeat.yaml"));
    await new Promise((resolve) => { listener.once("message", resolve); });
    part.child.kill(signal);
    t.match(await part.ended, { code: 0, stderr: "" }, signal);
  }
});

t.test("Ctrl-C during a move cancels it", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.on("POST /v1/migrations", { status: 202, json: moving }).on("GET /v1/migrations/web1%404", { json: moving }).streams()
    .on("DELETE /v1/migrations/web1%404", (response) => {
      response.writeHead(202).end(JSON.stringify(moving));
      setTimeout(() => { agent.emit("migration", { ...moved, result: "cancelled", reason: "cancelled-by-operator" }); }, 50);
    });
  const move = careof("migrate", "web1", "host-b", "--output", "json", "--api", agent.url);
  await move.says("copy");
  move.child.kill("SIGINT");
  const { code, stdout, stderr } = await move.ended;
  t.equal(code, 1);
  t.match(JSON.parse(stdout), { migration: "web1@4", result: "cancelled", reason: "cancelled-by-operator" });
  t.match(stderr, /cancelling web1@4/);
});

t.test("a reader that goes away ends it quietly", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.streams().on("GET /v1/vms", { json: [web1] }).on("GET /v1/hosts", { json: [hostA] }).on("GET /v1/migrations", { json: [] });
  const watching = careof("watch", "--output", "json", "--api", agent.url);
  await new Promise((resolve) => { watching.child.stdout?.once("data", resolve); });
  watching.child.stdout?.destroy();
  const nagging = setInterval(() => { agent.emit("vm", web1); }, 20);
  t.teardown(() => { clearInterval(nagging); });
  t.match(await watching.ended, { code: 0, stderr: "" });
});

t.test("a reader of the progress that goes away changes nothing: the move is followed to its end, and the exit code is that of the move", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  agent.on("POST /v1/migrations", { status: 202, json: moving }).on("GET /v1/migrations/web1%404", { json: moving }).streams();
  const end = async (change: object): Promise<Awaited<Process["ended"]>> => {
    const move = careof("migrate", "web1", "host-b", "--output", "json", "--api", agent.url);
    await move.says("copy");
    move.child.stderr?.destroy();
    // Each is a line that nobody reads.
    for (const phase of ["lead", "stop", "settle"]) {
      agent.emit("migration", { ...moving, phase });
      await sleep(100);
    }
    agent.emit("migration", { ...moved, ...change });
    return move.ended;
  };
  const completed = await end({});
  t.equal(completed.code, 0);
  t.match(JSON.parse(completed.stdout), { result: "completed" });
  const failed = await end({ result: "failed", reason: "relay-failed" });
  t.equal(failed.code, 1);
  t.match(JSON.parse(failed.stdout), { result: "failed" });

  const unseen = careof("migrate", "web1", "host-b", "--output", "json", "--api", agent.url);
  await unseen.says("copy");
  unseen.child.stdout?.destroy();
  while (agent.readers === 0) await sleep(5);
  agent.emit("migration", { ...moved, result: "failed", reason: "relay-failed" });
  t.equal((await unseen.ended).code, 1, "nor does it say that the move is done where nobody reads the result");
});

t.test("a command ends by itself although the connection is kept open", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  let answered = Infinity;
  agent.on("GET /v1/vms", (response) => {
    response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify([web1]));
    answered = performance.now();
  });
  t.equal((await careof("vms", "--api", agent.url).ended).code, 0);
  t.ok(performance.now() - answered < 4000, "within the time that it may linger");
});

t.test("doctor looks at this machine for real", async (t) => {
  const { code, stdout, stderr } = await careof("doctor", "--output", "json").ended;
  const rows = z.array(z.strictObject({ name: z.string(), ok: z.union([z.boolean(), z.literal("warn")]), found: z.string(), mend: z.string() })).parse(JSON.parse(stdout));
  t.equal(stderr, "");
  t.equal(code, rows.some((row) => row.ok === false) ? 1 : 0, "the exit code says whether something failed");
  for (const name of ["node", "user", "bpf", "forwarding", "netfilter", "clock", "qemu", "tcp 4434", "udp 4434", "tcp 8434"]) t.ok(rows.some((row) => row.name === name), name);
  for (const row of rows) t.ok(row.found !== "" && (row.ok === true || row.mend !== ""), `${row.name}: says what it found, and how to mend what is amiss`);
});
