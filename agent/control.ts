import { rmSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { z } from "zod";
import { fields } from "../model/config.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { vmId } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import type { OutsideVms } from "./external/outside-vms.js";

const MAX_BODY = 4096;
const STATUS: Readonly<Record<string, number>> = { "unknown-vm": 404, "unknown-path": 404, "unknown-host": 409, "not-running": 409, "no-link": 409, "method-not-allowed": 405 };

const leaving = z.strictObject({ to: fields.host.nullable().default(null) });
const nothing = z.strictObject({});

export interface Control {
  close(): Promise<void>;
}

/**
 * What runs on this host (hooks of libvirt or Proxmox, `careof port`) talks to the agent: HTTP by a unix socket that only its owner opens.
 * `GET /v1/ports`, `POST /v1/ports/VM/arrive`, `POST /v1/ports/VM/leave {"to": HOST}`; a refusal is `{code, message, retryable}`.
 * @throws CareofError `cannot-listen`
 */
export async function openControl(path: string, outside: OutsideVms, log: Logger): Promise<Control> {
  const server = createServer({ headersTimeout: 5000, requestTimeout: 5000, maxHeaderSize: 8192 }, (request, response) => {
    answer(request, outside).then((body) => { reply(response, 200, body); }, (thrown: unknown) => {
      const error = toCareofError(thrown);
      log.warn({ request: `${request.method ?? ""} ${request.url ?? ""}`.slice(0, 200), reason: error.code, detail: error.message }, "refused");
      reply(response, STATUS[error.code] ?? 400, { code: error.code, message: error.message, retryable: error.retryable });
    });
  });
  server.maxConnections = 64;
  // A socket that an earlier life left; whoever else would listen there has the same runDir, which is one agent's.
  rmSync(path, { force: true });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (cause) => { reject(new CareofError("cannot-listen", `cannot listen on ${path}: ${cause.message}`, { cause })); });
    // Whoever may connect may say that a VM is here. Made so, since what is changed later was open before; the path is bound before `listen` returns.
    const before = process.umask(0o177);
    try {
      server.listen(path, resolve);
    } finally {
      process.umask(before);
    }
  });
  return {
    close: () => new Promise((resolve) => {
      server.close(() => { resolve(); });
      server.closeAllConnections();
    }),
  };
}

async function answer(request: IncomingMessage, outside: OutsideVms): Promise<unknown> {
  const parts = new URL(request.url ?? "/", "http://agent").pathname.split("/");
  const [, version, what, vm, deed] = parts;
  if (version !== "v1" || what !== "ports" || (parts.length !== 3 && parts.length !== 5)) throw new CareofError("unknown-path", "there are /v1/ports, /v1/ports/VM/arrive and /v1/ports/VM/leave");
  if (vm === undefined) {
    if (request.method !== "GET") throw new CareofError("method-not-allowed", "/v1/ports is only read");
    return outside.views();
  }
  if (deed !== "arrive" && deed !== "leave") throw new CareofError("unknown-path", "a port is told arrive or leave");
  if (request.method !== "POST") throw new CareofError("method-not-allowed", `${deed} is told by POST`);
  const body = await bodyOf(request);
  if (deed === "leave") return outside.leave(vmId(vm), accept(leaving, body).to);
  accept(nothing, body);
  return outside.arrive(vmId(vm));
}

function accept<T>(schema: z.ZodType<T>, body: unknown): T {
  const result = schema.safeParse(body);
  if (!result.success) throw new CareofError("malformed-body", result.error.issues[0]?.message ?? "not what is expected");
  return result.data;
}

async function bodyOf(request: IncomingMessage): Promise<unknown> {
  let text = "";
  for await (const part of request.setEncoding("utf8") as AsyncIterable<string>) {
    text += part;
    if (text.length > MAX_BODY) throw new CareofError("body-too-large", `the body has more than ${String(MAX_BODY)} characters`);
  }
  if (text === "") return {};
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new CareofError("malformed-body", "the body is not JSON", { cause });
  }
}

function reply(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" }).end(`${JSON.stringify(body)}\n`);
}
