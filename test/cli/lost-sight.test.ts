import t from "tap";
import { careof, CapturedTerminal, shortLimits } from "./captured-terminal.js";
import { moved, moving, ScriptedHomeAgent, web1 } from "./scripted-home-agent.js";

const contract = ["migration", "vm", "from", "to", "result", "reason", "totalMs", "pauseMs", "gapDownMs", "gapUpMs", "bytes", "detail", "overflowed", "hold", "undelivered"];
const ID = "web1%404";
const json = ["migrate", "web1", "host-b", "--output", "json"];

/** A home agent that knows one migration under way. */
async function withMove(t: { teardown: (end: () => Promise<void>) => unknown }): Promise<ScriptedHomeAgent> {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  return agent.streams().on("POST /v1/migrations", { status: 202, json: moving }).on(`GET /v1/migrations/${ID}`, { json: moving });
}

function said(stdout: string): Record<string, unknown> {
  return JSON.parse(stdout) as Record<string, unknown>;
}

t.test("whether it moves is not known: a program is told so, and not that it failed", async (t) => {
  const gone = await careof([...json, "--api", "http://127.0.0.1:1"]);
  t.equal(gone.code, 1);
  t.match(said(gone.stdout), { migration: null, vm: "web1", from: null, to: "host-b", result: null, reason: "home-agent-unreachable" });
  t.same(Object.keys(said(gone.stdout)), contract);
  t.match(gone.stderr, /\(home-agent-unreachable\)/);
  t.equal((await careof(["migrate", "web1", "host-b", "--api", "http://127.0.0.1:1"])).stdout, "", "people read it on standard error");

  const agent = await withMove(t);
  agent.on("POST /v1/migrations", () => undefined).on("GET /v1/migrations", { json: [{ ...moving, to: "host-c" }, moved] });
  const silent = await careof([...json, "--api", agent.url], { limits: shortLimits });
  t.equal(silent.code, 1);
  t.match(said(silent.stdout), { migration: null, result: null, reason: "timed-out" }, "no answer, and none of its moves is this one");
});

t.test("a move whose answer never came is found and followed", async (t) => {
  const agent = await withMove(t);
  agent.on("POST /v1/migrations", (response) => { response.destroy(); }).on("GET /v1/migrations", { json: [moving] });
  const begun = await careof([...json, "--no-wait", "--api", agent.url]);
  t.match([begun.code, said(begun.stdout)], [0, { migration: "web1@4", result: null }]);
  agent.on(`GET /v1/migrations/${ID}`, { json: moved });
  const ended = await careof([...json, "--api", agent.url]);
  t.match([ended.code, said(ended.stdout)], [0, { migration: "web1@4", result: "completed" }]);
});

t.test("who stops watching is told what is known", async (t) => {
  const agent = await withMove(t);
  agent.on(`DELETE /v1/migrations/${ID}`, { status: 202, json: moving });
  const terminal = new CapturedTerminal();
  const running = careof([...json, "--api", agent.url], { terminal });
  await terminal.until((each) => each.listens && each.stderr.includes("copy"));
  terminal.interrupt();
  terminal.interrupt();
  const { code, stdout, stderr } = await running;
  t.equal(code, 1);
  t.match(said(stdout), { migration: "web1@4", from: "host-a", result: null, reason: "left", detail: "web1@4 goes on without being watched" });
  t.same(Object.keys(said(stdout)), contract);
  t.match(stderr, /web1@4 goes on without being watched \(left\)/);
});

t.test("contact that is lost for good leaves what was last heard", async (t) => {
  const agent = await withMove(t);
  agent.streams(() => { agent.on(`GET /v1/migrations/${ID}`, { text: "<html>" }); });
  const { code, stdout } = await careof([...json, "--api", agent.url]);
  t.match([code, said(stdout)], [1, { migration: "web1@4", from: "host-a", result: null, reason: "bad-reply" }]);
});

t.test("a home agent that was restarted knows no move that ended meanwhile, but where the VM is", async (t) => {
  const agent = await withMove(t);
  agent.on(`GET /v1/migrations/${ID}`, { status: 404, json: { code: "unknown-migration", message: "no such migration", retryable: false } });
  agent.on("GET /v1/vms/web1", { json: { ...web1, host: "host-b", epoch: 4 } });
  const there = await careof([...json, "--api", agent.url]);
  t.match([there.code, said(there.stdout)], [0, { migration: "web1@4", result: "completed", reason: "accepted", detail: "no such migration" }]);
  t.match(await careof(["migrate", "web1", "host-b", "--api", agent.url]), { code: 0, stdout: /^web1 moved from host-a to host-b: paused –/ });

  agent.on("GET /v1/vms/web1", { json: { ...web1, epoch: 5 } });
  const here = await careof([...json, "--api", agent.url]);
  t.match([here.code, said(here.stdout)], [1, { migration: "web1@4", result: null, reason: "unknown-migration", detail: "no such migration; web1 is bound in care of host-a" }]);
  t.match(await careof(["migrate", "web1", "host-b", "--api", agent.url]), { code: 1, stdout: "", stderr: /web1 is bound in care of host-a \(unknown-migration\)/ });
  agent.on("GET /v1/vms/web1", { json: { ...web1, host: "host-b", state: "lost" } });
  t.match((await careof([...json, "--api", agent.url])).code, 1, "a VM that is lost there has not moved there");
});
