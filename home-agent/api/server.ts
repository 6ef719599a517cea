import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { Clock } from "../../model/clock.js";
import type { Endpoint } from "../../model/config.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";
import { EventStream } from "./event-stream.js";
import { statusOf } from "./http-errors.js";
import { openapi } from "./openapi.js";
import type { Operations } from "./operations.js";
import { ROUTES, type Route } from "./routes.js";
import { requireSameSite } from "./same-site.js";

/** Answers under way may take so long when the API is closed. */
const CLOSE_PATIENCE = millis(2000);
/** Longer than clients keep an idle connection (60 s is common), so that they end it and never write into one that is being closed here. */
const IDLE_CONNECTION_MS = 65_000;

export interface ApiLimits {
  readonly maxBodyBytes: number;
  /** Bytes of a body that is too large which are read and thrown away; with more the connection is closed. */
  readonly maxDiscardedBytes: number;
  readonly maxConnections: number;
  readonly maxEventClients: number;
  /** Bytes that wait for a slow reader of events. */
  readonly maxEventBuffer: number;
}

export const API_LIMITS: ApiLimits = { maxBodyBytes: 64 * 1024, maxDiscardedBytes: 4 << 20, maxConnections: 256, maxEventClients: 64, maxEventBuffer: 1 << 20 };

export interface ApiOptions {
  readonly listen: Endpoint;
  readonly operations: Operations;
  readonly clock: Clock;
  readonly log: Logger;
  readonly version: string;
  /** Text in Prometheus' format, and its type. */
  readonly metrics: () => Promise<{ readonly type: string; readonly text: string }>;
  readonly limits?: Partial<ApiLimits>;
}

export interface Api {
  readonly address: Endpoint;
  /** Ends the event streams and lets answers under way finish, at most so long as the clients take. */
  close(): Promise<void>;
}

/**
 * The operators' HTTP API. Every error is `{code, message, retryable}`; foreign web pages are kept out, and a body has to be declared as JSON.
 * @throws CareofError `port-in-use` or `internal` when it cannot listen
 */
export async function openApi(options: ApiOptions): Promise<Api> {
  const limits = { ...API_LIMITS, ...options.limits };
  const events = new EventStream(options.operations, options.clock, { maxClients: limits.maxEventClients, maxBuffered: limits.maxEventBuffer });
  const site = new Site(options, limits, events);
  const server = createServer({ maxHeaderSize: 16 * 1024, requestTimeout: 30_000, headersTimeout: 10_000, keepAliveTimeout: IDLE_CONNECTION_MS }, (request, response) => { site.serve(request, response); });
  server.maxConnections = limits.maxConnections;
  try {
    await listening(server, options.listen);
  } catch (thrown) {
    events.close();
    throw thrown;
  }
  const bound = server.address();
  return {
    address: { address: options.listen.address, port: bound !== null && typeof bound === "object" ? bound.port : options.listen.port },
    async close() {
      events.close();
      await new Promise<void>((resolve) => {
        server.close(() => { resolve(); });
        server.closeIdleConnections();
        options.clock.after("api-close", CLOSE_PATIENCE, () => { server.closeAllConnections(); });
      });
    },
  };
}

async function listening(server: Server, at: Endpoint): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once("error", (cause: NodeJS.ErrnoException) => {
      const code = cause.code === "EADDRINUSE" ? "port-in-use" : "internal";
      reject(new CareofError(code, `cannot listen on ${at.address}:${String(at.port)} for the API: ${cause.message}`, { cause }));
    });
    server.listen(at.port, at.address, resolve);
  });
}

class Site {
  readonly #options: ApiOptions;
  readonly #limits: ApiLimits;
  readonly #events: EventStream;
  readonly #openapi: unknown;

  constructor(options: ApiOptions, limits: ApiLimits, events: EventStream) {
    this.#options = options;
    this.#limits = limits;
    this.#events = events;
    this.#openapi = openapi(ROUTES, options.version);
  }

  serve(request: IncomingMessage, response: ServerResponse): void {
    this.#answer(request, response).catch((thrown: unknown) => {
      const error = toCareofError(thrown);
      const status = statusOf(error);
      if (status >= 500) this.#options.log.error({ err: error, code: error.code, path: request.url }, "api request failed");
      if (response.headersSent) {
        response.destroy();
        return;
      }
      // What is left of a body would be taken for the next request.
      if (!request.complete && error.code === "body-too-large") response.setHeader("connection", "close");
      sendJson(response, status, { code: error.code, message: error.message, retryable: error.retryable });
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const method = request.method ?? "GET";
    requireSameSite(request, this.#options.listen.address);
    const path = new URL(request.url ?? "/", "http://home-agent").pathname;
    if (await this.#plain(method, path, response)) return;
    const { route, parameters } = find(method, path);
    const body = route.body === null ? undefined : await this.#body(request);
    const reply = await route.run(this.#options.operations, { parameters, body });
    sendJson(response, reply.status, reply.body);
  }

  async #plain(method: string, path: string, response: ServerResponse): Promise<boolean> {
    const answer = PLAIN.get(path);
    if (answer === undefined) return false;
    if (method !== "GET" && method !== "HEAD") throw new CareofError("method-not-allowed", `${path} is only read`);
    switch (answer) {
      case "events":
        this.#events.add(response);
        return true;
      case "metrics": {
        const { type, text } = await this.#options.metrics();
        response.writeHead(200, { "content-type": type }).end(text);
        return true;
      }
      case "health":
        sendJson(response, 200, { status: "ok" });
        return true;
      case "ready": {
        const why = this.#options.operations.notReady();
        if (why !== null) throw new CareofError("not-ready", why, { retryable: true });
        sendJson(response, 200, { status: "ready" });
        return true;
      }
      case "openapi":
        sendJson(response, 200, this.#openapi);
        return true;
    }
  }

  /**
   * An absent body is an empty object: what has only optional fields needs none. Of a body that is too large the rest is read and thrown away, so that
   * the client, which reads only after it has sent everything, sees the answer and may use the connection again; beyond `maxDiscardedBytes` it has to go.
   */
  async #body(request: IncomingMessage): Promise<unknown> {
    const parts: Buffer[] = [];
    let length = 0;
    // Leaving the default iterator early would destroy the connection before the answer is sent.
    for await (const part of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      length += part.length;
      if (length <= this.#limits.maxBodyBytes) parts.push(part);
      if (length > this.#limits.maxDiscardedBytes) break;
    }
    if (length > this.#limits.maxBodyBytes) throw new CareofError("body-too-large", `the body has more than ${String(this.#limits.maxBodyBytes)} bytes`);
    if (length === 0) return {};
    if (!/^application\/json\s*(;|$)/i.test(request.headers["content-type"] ?? "")) throw new CareofError("not-json", "the body must be declared as application/json");
    try {
      return JSON.parse(Buffer.concat(parts).toString("utf8"));
    } catch (cause) {
      throw new CareofError("malformed-body", "the body is not JSON", { cause });
    }
  }
}

const PLAIN = new Map<string, "events" | "metrics" | "health" | "ready" | "openapi">([
  ["/v1/events", "events"], ["/metrics", "metrics"], ["/healthz", "health"], ["/readyz", "ready"], ["/openapi.json", "openapi"],
]);

function find(method: string, path: string): { readonly route: Route; readonly parameters: Readonly<Record<string, string>> } {
  let known = false;
  for (const route of ROUTES) {
    const parameters = match(route.path, path);
    if (parameters === null) continue;
    known = true;
    if (route.method === method || (route.method === "GET" && method === "HEAD")) return { route, parameters };
  }
  if (known) throw new CareofError("method-not-allowed", `${path} does not know ${method}`);
  throw new CareofError("unknown-path", `there is nothing at ${path.slice(0, 200)}; /openapi.json lists what there is`);
}

function match(template: string, path: string): Readonly<Record<string, string>> | null {
  const wanted = template.split("/");
  const found = path.split("/");
  if (wanted.length !== found.length) return null;
  const parameters: Record<string, string> = {};
  for (const [index, want] of wanted.entries()) {
    const part = decoded(found[index] ?? "");
    if (want.startsWith("{")) parameters[want.slice(1, -1)] = part;
    else if (want !== part) return null;
  }
  return parameters;
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch (cause) {
    throw new CareofError("malformed-path", "the path has a broken percent sign", { cause });
  }
}

function sendJson(response: ServerResponse, status: number, body: unknown): void {
  const text = `${JSON.stringify(body)}\n`;
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(text), "cache-control": "no-store" }).end(text);
}
