import { z } from "zod";
import type { Route } from "./routes.js";

const errorBody = z.object({ code: z.string(), message: z.string(), retryable: z.boolean() });

/** OpenAPI 3.1 description of the routes, made from the table that the server answers by. */
export function openapi(routes: readonly Route[], version: string): unknown {
  const paths: Record<string, Record<string, unknown>> = {};
  for (const route of routes) {
    const path = (paths[route.path] ??= {});
    path[route.method.toLowerCase()] = {
      summary: route.summary,
      parameters: [...route.path.matchAll(/\{(\w+)\}/g)].map((match) => ({ name: match[1], in: "path", required: true, schema: { type: "string" } })),
      ...(route.body === null ? {} : { requestBody: { required: true, content: json(route.body, "input") } }),
      responses: {
        [String(route.status)]: { description: "done", content: json(route.reply, "output") },
        default: { description: "refused; `code` is stable", content: json(errorBody, "output") },
      },
    };
  }
  for (const [path, summary, type] of PLAIN) paths[path] = { get: { summary, responses: { "200": { description: "ok", content: { [type]: {} } } } } };
  return { openapi: "3.1.0", info: { title: "careof home agent", version }, paths };
}

const PLAIN = [
  ["/v1/events", "Server-sent events: vm, host, migration, drain, alarm", "text/event-stream"],
  ["/metrics", "Prometheus metrics", "text/plain"],
  ["/healthz", "The process answers", "application/json"],
  ["/readyz", "Requests are taken; 503 and why otherwise", "application/json"],
] as const;

function json(schema: z.ZodType, io: "input" | "output"): unknown {
  return { "application/json": { schema: z.toJSONSchema(schema, { io, unrepresentable: "any" }) } };
}
