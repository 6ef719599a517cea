import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface Asked {
  readonly method: string;
  readonly path: string;
  readonly body: unknown;
}

/** A reply as JSON, or somebody who writes the response himself. */
export type Script = { readonly status?: number; readonly json: unknown } | { readonly status?: number; readonly text: string } | ((response: ServerResponse) => void);

/** A real HTTP server on loopback that answers as told: `on("GET /v1/vms", …)`. What it was asked stands in `asked`. */
export class ScriptedHomeAgent {
  readonly asked: Asked[] = [];
  readonly url: string;
  readonly #scripts: Map<string, Script>;
  readonly #server: ReturnType<typeof createServer>;
  readonly #readers = new Set<ServerResponse>();
  #onReader: () => void = () => undefined;

  private constructor(server: ReturnType<typeof createServer>, scripts: Map<string, Script>) {
    this.#server = server;
    this.#scripts = scripts;
    this.url = `http://127.0.0.1:${String((server.address() as AddressInfo).port)}`;
  }

  static async open(): Promise<ScriptedHomeAgent> {
    const scripts = new Map<string, Script>();
    const server = createServer();
    await new Promise<void>((resolve) => { server.listen(0, "127.0.0.1", resolve); });
    const agent = new ScriptedHomeAgent(server, scripts);
    server.on("request", (request, response) => { agent.#answer(request, response); });
    return agent;
  }

  on(what: string, script: Script): this {
    this.#scripts.set(what, script);
    return this;
  }

  /** Makes `GET /v1/events` a stream; calls back for every new reader. */
  streams(onReader: () => void = () => undefined): this {
    this.#onReader = onReader;
    return this.on("GET /v1/events", (response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(": hello\n\n");
      this.#readers.add(response);
      response.on("close", () => { this.#readers.delete(response); });
      this.#onReader();
    });
  }

  emit(event: string, data: unknown): void {
    for (const reader of this.#readers) reader.write(`id: 1\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
  }

  /** Breaks every stream off. */
  cut(): void {
    for (const reader of this.#readers) reader.destroy();
  }

  get readers(): number {
    return this.#readers.size;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => { this.#server.close(() => { resolve(); }); });
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    let text = "";
    request.setEncoding("utf8").on("data", (piece: string) => { text += piece; }).on("end", () => {
      const path = request.url ?? "";
      const method = request.method ?? "";
      this.asked.push({ method, path, body: text === "" ? null : JSON.parse(text) });
      const script = this.#scripts.get(`${method} ${path}`) ?? { status: 404, json: { code: "unknown-path", message: `nothing at ${path}`, retryable: false } };
      if (typeof script === "function") {
        script(response);
        return;
      }
      response.writeHead(script.status ?? 200, { "content-type": "application/json" });
      response.end("json" in script ? JSON.stringify(script.json) : script.text);
    });
  }
}

export const at = "2026-03-01T10:00:00.000Z";

export const web1 = {
  vm: "web1", homeAddresses: ["198.51.100.7"], host: "host-a", careOf: "10.1.0.2", state: "bound", epoch: 3, since: at, lastHeartbeat: at, evidence: "running",
};

export const hostA = {
  name: "host-a", careOf: ["10.1.0.2"], state: "connected", since: at, draining: false, software: "0.1.0", vms: ["web1"],
  capabilities: { ownsTap: true, ownsStream: true, canLead: true, canHoldTarget: true, qemuVersion: "10.0.2", accelerator: "kvm", dataPlane: "bpf", memoryBytes: 8e9, localDisks: true, adopts: true, postcopy: true },
};

export const moving = {
  migration: "web1@4", vm: "web1", from: "host-a", to: "host-b", phase: "copy", result: null, reason: null, startedAt: at,
  totalMs: null, pauseMs: null, gapDownMs: null, gapUpMs: null, bytes: null,
  progress: { transferred: 1e8, remaining: 3e7, total: 1.3e8, passes: 2, bytesPerSecond: 1e8, dirtyBytesPerSecond: 1e6 },
};

export const moved = { ...moving, phase: "settle", result: "completed", reason: "accepted", totalMs: 3210, pauseMs: 45.25, gapDownMs: 0, gapUpMs: null, bytes: 130_000_000, progress: null };
