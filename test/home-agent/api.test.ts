import { Agent, request } from "node:http";
import { connect } from "node:net";
import t, { type Test } from "tap";
import type { DrainView } from "../../home-agent/api/drain-operations.js";
import type { ApiEvent, HostView, MigrationView, Operations, ReloadView, VmView } from "../../home-agent/api/operations.js";
import { ROUTES } from "../../home-agent/api/routes.js";
import { openApi, type Api, type ApiLimits } from "../../home-agent/api/server.js";
import { SystemClock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import type { VmId } from "../../model/ids.js";
import { createLogger } from "../../model/log.js";

const web1: VmView = {
  vm: "web1", homeAddresses: ["198.51.100.7"], host: "host-a", careOf: "10.1.0.2", state: "bound", epoch: 3,
  since: "2026-01-01T00:00:00.000Z", lastHeartbeat: null, evidence: "heartbeat",
};
const hostA: HostView = { name: "host-a", careOf: ["10.1.0.2"], state: "gone", since: null, draining: false, capabilities: null, software: null, vms: ["web1"] };
const move: MigrationView = {
  migration: "web1@4", vm: "web1", from: "host-a", to: "host-b", phase: "prepare", result: null, reason: null, startedAt: "2026-01-01T00:00:00.000Z",
  totalMs: null, pauseMs: null, gapDownMs: null, gapUpMs: null, bytes: null, overflowed: null, hold: null, undelivered: null, progress: null, detail: null,
};

const draining: DrainView = {
  host: "host-a", state: "running", to: [], limit: 2, order: "config", wishes: {}, actor: "operator", startedAt: "2026-01-01T00:00:00.000Z", total: 1, moved: 0, moving: 1, waiting: 0, left: 0,
  vms: [{ vm: "web1", state: "moving", to: "host-b", migration: "web1@4", reason: null, detail: "" }],
};

class Scripted implements Operations {
  readonly calls: unknown[] = [];
  why: string | null = null;
  refuse: CareofError | null = null;
  readonly listeners = new Set<(event: ApiEvent) => void>();

  vms = (): VmView[] => [web1];
  vm = (vm: VmId): VmView => {
    if (vm !== "web1") throw new CareofError("unknown-vm", `no VM is called ${vm}`);
    return web1;
  };
  history = (vm: VmId): never[] => {
    this.vm(vm);
    return [];
  };
  hosts = (): HostView[] => [hostA];
  migrations = (): MigrationView[] => [move];
  migration = (id: string): MigrationView => {
    if (id !== "web1@4") throw new CareofError("unknown-migration", `no migration ${id}`);
    return move;
  };
  migrate = async (...call: unknown[]): Promise<MigrationView> => await this.#did("migrate", call, move);
  migrationEnd = async (...call: unknown[]): Promise<MigrationView> => await this.#did("end", call, { ...move, result: "completed" });
  cancel = async (...call: unknown[]): Promise<MigrationView> => await this.#did("cancel", call, move);
  start = async (...call: unknown[]): Promise<VmView> => await this.#did("start", call, web1);
  adopt = async (...call: unknown[]): Promise<VmView> => await this.#did("adopt", call, web1);
  giveBack = async (...call: unknown[]): Promise<{ vm: string; host: string; detail: string }> => await this.#did("release", call, { vm: "web1", host: "host-a", detail: "" });
  stop = async (...call: unknown[]): Promise<VmView> => await this.#did("stop", call, web1);
  resolve = async (...call: unknown[]): Promise<VmView> => await this.#did("resolve", call, web1);
  drain = (host: string): DrainView => {
    if (host !== "host-a") throw new CareofError("not-draining", `${host} is not being drained`);
    return draining;
  };
  beginDrain = async (...call: unknown[]): Promise<DrainView> => await this.#did("drain", call, draining);
  interruptDrain = async (...call: unknown[]): Promise<DrainView> => await this.#did("interrupt", call, draining);
  undrain = async (...call: unknown[]): Promise<HostView> => await this.#did("undrain", call, hostA);
  subscribe = (listener: (event: ApiEvent) => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };
  reload = async (): Promise<ReloadView> => await this.#did("reload", [], { hosts: 1, vms: 1, needRestart: [], nextStart: [] });
  notReady = (): string | null => this.why;

  async #did<T>(what: string, call: unknown[], answer: T): Promise<T> {
    await Promise.resolve();
    if (this.refuse !== null) throw this.refuse;
    this.calls.push([what, ...call]);
    return answer;
  }
}

async function opened(test: Test, limits: Partial<ApiLimits> = {}): Promise<{ readonly api: Api; readonly operations: Scripted; readonly url: string }> {
  const operations = new Scripted();
  const api = await openApi({
    listen: { address: "127.0.0.1", port: 0 }, operations, clock: new SystemClock(), log: createLogger("test", "silent"), version: "0.0.0",
    metrics: async () => await Promise.resolve({ type: "text/plain", text: "careof_up 1\n" }), limits,
  });
  test.teardown(async () => { await api.close(); });
  return { api, operations, url: `http://127.0.0.1:${String(api.address.port)}` };
}

async function call(url: string, method = "GET", body?: string, type = "application/json"): Promise<{ status: number; body: unknown }> {
  const init = body === undefined ? { method } : { method, body, headers: { "content-type": type } };
  const response = await fetch(url, init);
  return { status: response.status, body: await response.json() };
}

void t.test("a web page cannot use it: neither by its own name nor from its own origin", async (test) => {
  const { api, operations, url } = await opened(test);
  const { port } = api.address;
  const ask = (method: string, path: string, headers: Readonly<Record<string, string>>): Promise<{ status: number | undefined; code: unknown }> => new Promise((resolve, reject) => {
    const body = method === "POST" ? JSON.stringify({ vm: "web1", host: "host-b" }) : "";
    request(`${url}${path}`, { method, headers: { ...(body === "" ? {} : { "content-type": "application/json" }), ...headers } }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (part: string) => { text += part; }).on("end", () => {
        const answer: unknown = response.headers["content-type"] === "application/json" ? JSON.parse(text) : null;
        resolve({ status: response.statusCode, code: typeof answer === "object" && answer !== null && "code" in answer ? answer.code : null });
      });
    }).once("error", reject).end(body);
  });
  for (const [method, path] of [["GET", "/v1/vms"], ["POST", "/v1/migrations"], ["DELETE", "/v1/migrations/web1@4"], ["GET", "/v1/events"], ["GET", "/metrics"], ["OPTIONS", "/v1/vms"]] as const) {
    for (const host of ["evil.example", `evil.example:${String(port)}`, "localhost.evil.example", "127.0.0.1.evil.example", "[::1].evil.example"]) {
      test.same(await ask(method, path, { host }), { status: 421, code: "foreign-host" }, `${method} ${path} as "${host}"`);
    }
    for (const origin of ["http://evil.example", "null", "http://127.0.0.1:1", `https://127.0.0.1:${String(port)}`]) {
      test.same(await ask(method, path, { origin }), { status: 403, code: "foreign-origin" }, `${method} ${path} from ${origin}`);
    }
  }
  test.same(operations.calls, [], "nothing was done");
  for (const headers of [{}, { host: `localhost:${String(port)}` }, { host: "LOCALHOST" }, { host: "[::1]:8434" }, { host: "192.0.2.1:8434" }, { origin: url, host: `127.0.0.1:${String(port)}` }]) {
    test.same(await ask("GET", "/v1/vms", headers), { status: 200, code: null }, JSON.stringify(headers));
  }
  test.equal((await ask("POST", "/v1/migrations", {})).status, 202);
});

void t.test("reads", async (test) => {
  const { url } = await opened(test);
  test.same(await call(`${url}/v1/vms`), { status: 200, body: [web1] });
  test.same(await call(`${url}/v1/vms/web1`), { status: 200, body: web1 });
  test.same(await call(`${url}/v1/vms/web1/history`), { status: 200, body: [] });
  test.same(await call(`${url}/v1/hosts`), { status: 200, body: [hostA] });
  test.same(await call(`${url}/v1/migrations`), { status: 200, body: [move] });
  test.same(await call(`${url}/v1/migrations/web1%404`), { status: 200, body: move });
  test.same(await call(`${url}/healthz`), { status: 200, body: { status: "ok" } });
  test.same(await call(`${url}/readyz`), { status: 200, body: { status: "ready" } });
  test.equal(await (await fetch(`${url}/metrics`)).text(), "careof_up 1\n");
});

void t.test("does what it is told, and answers a move at once or with its result", async (test) => {
  const { url, operations } = await opened(test);
  test.same(await call(`${url}/v1/migrations`, "POST", '{"vm":"web1","host":"host-b"}'), { status: 202, body: move });
  test.match(await call(`${url}/v1/migrations`, "POST", '{"vm":"web1","host":"host-b","wait":true}'), { status: 202, body: { result: "completed" } });
  test.equal((await call(`${url}/v1/migrations/web1@4`, "DELETE")).status, 202);
  test.equal((await call(`${url}/v1/vms/web1/start`, "POST", '{"host":"host-a"}')).status, 200);
  test.equal((await call(`${url}/v1/vms/web1/stop`, "POST")).status, 200);
  test.equal((await call(`${url}/v1/vms/web1/stop`, "POST", '{"force":true}')).status, 200);
  test.equal((await call(`${url}/v1/vms/web1/resolve`, "POST", '{"host":"host-a"}')).status, 200);
  test.equal((await call(`${url}/v1/vms/web1/resolve`, "POST", '{"host":"host-b","force":true}')).status, 200);
  test.equal((await call(`${url}/v1/hosts/host-a/drain`, "POST", '{"limit":3,"bandwidth":5,"timeoutMs":7000,"onTimeout":"force"}')).status, 202);
  test.same(operations.calls, [
    ["migrate", "web1", "host-b", "operator", {}], ["migrate", "web1", "host-b", "operator", {}], ["end", "web1@4"], ["cancel", "web1@4"], ["start", "web1", "host-a", "operator"],
    ["stop", "web1", { force: false }, "operator"], ["stop", "web1", { force: true }, "operator"], ["resolve", "web1", "host-a", { force: false }, "operator"], ["resolve", "web1", "host-b", { force: true }, "operator"],
    ["drain", "host-a", { to: undefined, limit: 3, order: undefined, wishes: { maxBandwidth: 5, timeoutMs: 7000, onTimeout: "force" } }, "operator"],
  ]);
});

void t.test("each kind of bad input has its status and code, and reaches nothing", async (test) => {
  const { url, operations } = await opened(test, { maxBodyBytes: 100 });
  const table: readonly [string, string, string | undefined, string, number, string][] = [
    ["/v1/vms/nobody", "GET", undefined, "", 404, "unknown-vm"],
    ["/v1/vms/nobody/history", "GET", undefined, "", 404, "unknown-vm"],
    ["/v1/vms/No%20Name", "GET", undefined, "", 400, "malformed-vm"],
    ["/v1/vms/%zz", "GET", undefined, "", 400, "malformed-path"],
    ["/v1/migrations/x", "GET", undefined, "", 404, "unknown-migration"],
    ["/v1/nothing", "GET", undefined, "", 404, "unknown-path"],
    ["/v1/vms", "POST", "{}", "application/json", 405, "method-not-allowed"],
    ["/metrics", "POST", "{}", "application/json", 405, "method-not-allowed"],
    ["/v1/migrations", "POST", "{", "application/json", 400, "malformed-body"],
    ["/v1/migrations", "POST", undefined, "", 400, "malformed-body"],
    ["/v1/migrations", "POST", '{"vm":"web1"}', "application/json", 400, "malformed-body"],
    ["/v1/migrations", "POST", '{"vm":"web1","host":"b","also":1}', "application/json", 400, "malformed-body"],
    ["/v1/migrations", "POST", '{"vm":"WEB!","host":"b"}', "application/json", 400, "malformed-body"],
    ["/v1/migrations", "POST", '["web1"]', "application/json", 400, "malformed-body"],
    ["/v1/migrations", "POST", '{"vm":"web1","host":"b"}', "text/plain", 415, "not-json"],
    ["/v1/migrations", "POST", `{"vm":"${"w".repeat(200)}","host":"b"}`, "application/json", 413, "body-too-large"],
    ["/v1/vms/web1/stop", "POST", '{"force":"yes"}', "application/json", 400, "malformed-body"],
  ];
  for (const [path, method, body, type, status, code] of table) test.match(await call(url + path, method, body, type), { status, body: { code, message: String, retryable: false } }, `${method} ${path} ${body ?? ""}`);
  test.same(operations.calls, []);
});

void t.test("a body that is too large is answered, and the same connection serves the next request", async (test) => {
  const { url, operations, api } = await opened(test, { maxDiscardedBytes: 1 << 20 });
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  test.teardown(() => { agent.destroy(); });
  const ask = async (method: string, path: string, body = ""): Promise<{ readonly status: number | undefined; readonly reused: boolean; readonly connection: string | undefined }> =>
    await new Promise((resolve, reject) => {
      const asked = request({ agent, host: "127.0.0.1", port: api.address.port, method, path, headers: { "content-type": "application/json", "content-length": body.length } }, (answer) => {
        answer.resume().on("end", () => { resolve({ status: answer.statusCode, reused: asked.reusedSocket, connection: answer.headers.connection }); });
      });
      asked.on("error", reject).end(body);
    });
  for (let i = 0; i < 20; i++) {
    test.match(await ask("POST", "/v1/migrations", "x".repeat(900_000)), { status: 413, reused: i > 0, connection: "keep-alive" });
    test.match(await ask("DELETE", "/v1/vms"), { status: 405, reused: true });
  }
  const flood = await fetch(`${url}/v1/migrations`, { method: "POST", body: "x".repeat(8 << 20), headers: { "content-type": "application/json" } })
    .then((answer) => [answer.status, answer.headers.get("connection")], () => "cut off");
  test.ok(flood === "cut off" || flood.toString() === "413,close", `far too large: ${flood.toString()}`);
  test.match(await call(`${url}/v1/vms`, "DELETE"), { status: 405 });
  test.same(operations.calls, []);
});

void t.test("a refusal keeps its reason", async (test) => {
  const { url, operations } = await opened(test);
  const table: readonly [string, boolean, number][] = [["already-moving", false, 409], ["host-gone", true, 409], ["store-unavailable", true, 503], ["timed-out", true, 504], ["surprise", false, 500], ["config-invalid", false, 422]];
  for (const [code, retryable, status] of table) {
    operations.refuse = new CareofError(code, `because ${code}`, { retryable });
    test.same(await call(`${url}/v1/migrations`, "POST", '{"vm":"web1","host":"host-b"}'), { status, body: { code, message: `because ${code}`, retryable } });
  }
  operations.why = "the journal is being read";
  test.match(await call(`${url}/readyz`), { status: 503, body: { code: "not-ready", message: "the journal is being read" } });
});

void t.test("events reach every reader in order; a slow one and one too many are cut off", async (test) => {
  const { url, operations, api } = await opened(test, { maxEventClients: 2, maxEventBuffer: 1000 });
  const reader = new AbortController();
  const response = await fetch(`${url}/v1/events`, { signal: reader.signal });
  test.equal(response.headers.get("content-type"), "text/event-stream");
  const slow = connect(api.address.port, "127.0.0.1");
  slow.write("GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n");
  slow.pause();
  const slowGone = new Promise<void>((resolve) => { slow.on("close", resolve).on("error", () => undefined); });
  while (operations.listeners.size === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  await new Promise((resolve) => setTimeout(resolve, 50));
  test.match(await call(`${url}/v1/events`), { status: 429, body: { code: "too-many", retryable: true } });
  const publish = (event: ApiEvent): void => { for (const listener of operations.listeners) listener(event); };
  publish({ event: "vm", data: web1 });
  publish({ event: "migration", data: move });
  let text = "";
  const stream = response.body;
  if (stream === null) throw new Error("no body");
  const decoder = new TextDecoder();
  for await (const chunk of stream) {
    text += decoder.decode(chunk as Uint8Array, { stream: true });
    if (text.includes("web1@4")) break;
  }
  test.match(text, /^: careof\n\nid: 1\nevent: vm\ndata: \{"vm":"web1".*\}\n\nid: 2\nevent: migration\ndata: \{"migration":"web1@4".*\}\n\n$/);
  for (let i = 0; i < 10_000; i++) publish({ event: "vm", data: web1 });
  slow.resume();
  await slowGone;
  test.pass("the slow reader was cut off");
  reader.abort();
});

void t.test("openapi.json describes every route", async (test) => {
  const { url } = await opened(test);
  const { body } = await call(`${url}/openapi.json`);
  test.match(body, { openapi: "3.1.0" });
  for (const route of ROUTES) test.match(body, { paths: { [route.path]: { [route.method.toLowerCase()]: { summary: route.summary } } } });
  test.match(body, { paths: { "/v1/migrations": { post: { requestBody: { content: { "application/json": { schema: { properties: { vm: { type: "string" } } } } } } } } } });
});

void t.test("a port that is taken is said so", async (test) => {
  const { api } = await opened(test);
  await test.rejects(openApi({
    listen: api.address, operations: new Scripted(), clock: new SystemClock(), log: createLogger("test", "silent"), version: "0.0.0",
    metrics: async () => await Promise.resolve({ type: "text/plain", text: "" }),
  }), { code: "port-in-use" });
});

void t.test("what is not HTTP does no harm", async (test) => {
  const { api, url } = await opened(test);
  const socket = connect(api.address.port, "127.0.0.1");
  socket.on("error", () => undefined).write("\x00\x01garbage\r\n\r\n");
  await new Promise<void>((resolve) => { socket.resume().on("close", resolve); });
  const half = request({ port: api.address.port, host: "127.0.0.1", path: "/v1/migrations", method: "POST", headers: { "content-type": "application/json", "content-length": 50 } });
  half.on("error", () => undefined);
  half.write("{");
  half.destroy();
  test.equal((await call(`${url}/healthz`)).status, 200);
});
