import { createServer, STATUS_CODES, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import type { Duplex } from "node:stream";
import { WebSocketServer, type WebSocket } from "ws";
import type { Clock, Timer } from "../model/clock.js";
import type { Endpoint } from "../model/config.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { millis, type HostId, type Millis } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import { MAX_FRAME_BYTES } from "../proto/codec.js";
import { AgentSession, type SessionContext } from "./agent-session.js";
import type { HostConfig } from "./config.js";
import { identify } from "./identity.js";
import { listen } from "./listening.js";

export const AGENT_PATH = "/v1/agent";
export const SUBPROTOCOL = "careof.v1";
/** RFC 6455 §7.4.2: private use. */
const CLOSE = { replaced: 4000, silent: 4001, unregistered: 4003, slow: 4004, going: 1001 } as const;
/** As many periods without a word end a connection. */
const MISSED_KEEP_ALIVES = 3;
/** A process that stood still itself has heard nobody: what has come meanwhile is read before anybody is called silent. */
const READ_FIRST_MS = millis(20);
/** A connection that has not registered after so long is closed. */
const REGISTER_MS = 10_000;
/** Bytes that may wait for a host that does not read. */
const MAX_BUFFERED = 16 * 1024 * 1024;

export interface RegistrarOptions {
  readonly endpoint: Endpoint;
  readonly clock: Clock;
  readonly log: Logger;
  readonly keepAliveMs: () => Millis;
  readonly host: (name: HostId) => HostConfig | null;
  readonly session: Omit<SessionContext, "registered">;
  /** Connections at once, registered or not. */
  readonly maxConnections: number;
}

/** Where host agents connect: authenticates, admits, replaces, and drops who is silent. */
export class Registrar {
  readonly #options: RegistrarOptions;
  readonly #http: Server;
  readonly #sockets: WebSocketServer;
  readonly #sessions = new Map<AgentSession, WebSocket>();
  #sweep: Timer | null = null;
  #closed = false;

  constructor(options: RegistrarOptions) {
    this.#options = options;
    this.#http = createServer({ headersTimeout: 5000, requestTimeout: 5000, maxHeaderSize: 8192 }, (_request, response) => {
      response.writeHead(426, { "content-type": "application/json", upgrade: "websocket" }).end(JSON.stringify({ code: "upgrade-required", message: `a WebSocket at ${AGENT_PATH}`, retryable: false }));
    });
    this.#http.maxConnections = options.maxConnections;
    this.#sockets = new WebSocketServer({
      noServer: true, maxPayload: MAX_FRAME_BYTES, perMessageDeflate: false, clientTracking: false,
      handleProtocols: (offered) => (offered.has(SUBPROTOCOL) ? SUBPROTOCOL : false),
    });
    this.#http.on("upgrade", (request, socket, head) => { this.#upgrade(request, socket, head); });
  }

  /** @throws CareofError `cannot-listen` */
  async open(): Promise<AddressInfo> {
    const address = await listen(this.#http, this.#options.endpoint, "host agents");
    this.#armSweep();
    return address;
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#sweep?.cancel();
    for (const session of this.#sessions.keys()) session.close(CLOSE.going, "shutting-down");
    const closed = new Promise<void>((resolve) => { this.#http.close(() => { resolve(); }); });
    for (const socket of this.#sessions.values()) socket.terminate();
    this.#http.closeAllConnections();
    await closed;
  }

  /** Hosts that are not listed any more are sent away. */
  dismissUnlisted(): void {
    for (const session of this.#sessions.keys()) if (this.#options.host(session.host) === null) session.close(CLOSE.unregistered, "unknown-host");
  }

  #upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    const { log, session } = this.#options;
    socket.on("error", (error) => { log.debug({ err: error }, "a connection broke"); });
    try {
      const path = (request.url ?? "").split("?")[0];
      if (path !== AGENT_PATH) throw new HttpRefusal(404, "not-found", `host agents connect to ${AGENT_PATH}`);
      if (this.#closed || this.#sessions.size >= this.#options.maxConnections) throw new HttpRefusal(503, "too-many", `${String(this.#sessions.size)} connections are open`);
      const offered = (request.headers["sec-websocket-protocol"] ?? "").split(",").map((name) => name.trim());
      if (!offered.includes(SUBPROTOCOL)) throw new HttpRefusal(400, "unsupported-version", `the subprotocol is ${SUBPROTOCOL}`);
      const host = identify(request, this.#options.host);
      this.#sockets.handleUpgrade(request, socket, head, (accepted) => { this.#accept(host, accepted); });
    } catch (thrown) {
      const error = toCareofError(thrown);
      log.warn({ code: error.code, from: request.socket.remoteAddress }, `connection refused: ${error.message}`);
      session.metrics.connections.inc({ reason: error.code });
      refuse(socket, error instanceof HttpRefusal ? error.status : 401, error);
    }
  }

  #accept(host: HostId, socket: WebSocket): void {
    const { session: context, log, clock } = this.#options;
    const transport = {
      send: (frame: Uint8Array): void => {
        if (socket.readyState !== socket.OPEN) throw new CareofError("channel-lost", "the connection is closing", { retryable: true });
        if (socket.bufferedAmount > MAX_BUFFERED) {
          socket.close(CLOSE.slow, "does not read");
          throw new CareofError("channel-lost", `${host} does not read`, { retryable: true });
        }
        socket.send(frame, { binary: true });
      },
      close: (code: number, reason: string): void => { socket.close(code, reason); },
    };
    const session = new AgentSession(host, transport, { ...context, registered: (registered) => { this.#replace(registered); } });
    this.#sessions.set(session, socket);
    socket.on("message", (data, isBinary) => {
      if (!isBinary) socket.close(1003, "binary messages only");
      else session.receive(bytesOf(data));
    });
    socket.on("error", (error) => { log.warn({ host, err: error }, "connection broke"); });
    socket.on("close", (code) => {
      this.#sessions.delete(session);
      session.end(new CareofError("host-gone", `the connection of ${host} was closed (${String(code)})`, { retryable: true }));
    });
    clock.after("registration", millis(REGISTER_MS), () => {
      if (!session.registered) session.close(CLOSE.unregistered, "did not register");
    });
  }

  #replace(newer: AgentSession): void {
    for (const [older, socket] of this.#sessions) {
      if (older === newer || older.host !== newer.host) continue;
      this.#options.log.warn({ host: older.host }, "connection replaced by a newer one");
      older.close(CLOSE.replaced, "replaced");
      this.#sessions.delete(older);
      older.end(new CareofError("replaced", `a newer connection of ${older.host}`, { retryable: true }));
      this.#options.clock.after("terminate", millis(1000), () => { socket.terminate(); });
    }
  }

  #armSweep(): void {
    const { clock, keepAliveMs } = this.#options;
    this.#sweep = clock.after("silent hosts", keepAliveMs(), () => {
      const suspects = this.#silent();
      if (suspects.length === 0) this.#armSweep();
      else {
        this.#sweep = clock.after("silent hosts, once more", READ_FIRST_MS, () => {
          // It may have stood still again meanwhile: whose word has come since is silent no more.
          for (const { session, socket, heardAt } of suspects) if (session.registered && session.heardAt === heardAt) this.#cutOff(session, socket);
          if (!this.#closed) this.#armSweep();
        });
      }
    });
  }

  #silent(): readonly { readonly session: AgentSession; readonly socket: WebSocket; readonly heardAt: Millis }[] {
    const limit = MISSED_KEEP_ALIVES * this.#options.keepAliveMs();
    const now = this.#options.clock.monotonic();
    return [...this.#sessions].map(([session, socket]) => ({ session, socket, heardAt: session.heardAt })).filter(({ session, heardAt }) => session.registered && now - heardAt > limit);
  }

  #cutOff(session: AgentSession, socket: WebSocket): void {
    this.#options.log.warn({ host: session.host }, "host is silent");
    session.close(CLOSE.silent, "silent");
    session.end(new CareofError("host-gone", `${session.host} is silent`, { retryable: true }));
    this.#sessions.delete(session);
    socket.terminate();
  }
}

class HttpRefusal extends CareofError {
  readonly status: number;

  constructor(status: number, code: string, message: string) {
    super(code, message, { retryable: status === 503 });
    this.status = status;
  }
}

function refuse(socket: Duplex, status: number, error: CareofError): void {
  const body = JSON.stringify({ code: error.code, message: error.message, retryable: error.retryable });
  socket.end(`HTTP/1.1 ${String(status)} ${STATUS_CODES[status] ?? "Refused"}\r\ncontent-type: application/json\r\ncontent-length: ${String(Buffer.byteLength(body))}\r\nconnection: close\r\n\r\n${body}`);
}

function bytesOf(data: Buffer | ArrayBuffer | Buffer[]): Uint8Array {
  if (Array.isArray(data)) return Buffer.concat(data);
  return data instanceof ArrayBuffer ? new Uint8Array(data) : data;
}
