import { z } from "zod";
import { parsed } from "../../model/config.js";
import { CareofError } from "../../model/errors.js";
import { hostId, vmId } from "../../model/ids.js";
import { drainView } from "./drain-operations.js";
import { MAX_MOVES_AT_ONCE, ORDERS } from "../drains/drain.js";
import { givenBackView, historyView, hostView, migrationView, reloadView, vmView, type Operations } from "./operations.js";
import { wishesOf, wishFields } from "./move-wishes.js";

export type Method = "GET" | "POST" | "DELETE";

/** What one call brings along, checked. */
export interface Call<Body> {
  readonly parameters: Readonly<Record<string, string>>;
  readonly body: Body;
}

export interface Reply {
  readonly status: number;
  readonly body: unknown;
}

/** One row of the API: the server answers by it and /openapi.json is made of it. */
export interface Route {
  readonly method: Method;
  /** Template as in OpenAPI: `/v1/vms/{vm}`. */
  readonly path: string;
  readonly summary: string;
  readonly body: z.ZodType | null;
  readonly reply: z.ZodType;
  readonly status: number;
  run(operations: Operations, call: Call<unknown>): Promise<Reply> | Reply;
}

function route<B extends z.ZodType>(
  method: Method, path: string, summary: string, body: B | null, status: number, reply: z.ZodType,
  run: (operations: Operations, call: Call<z.output<B>>) => unknown,
): Route {
  return {
    method, path, summary, body, reply, status,
    async run(operations, call) {
      const checked = body === null ? undefined : checkBody(body, call.body);
      // Without a schema there is no body, and `run` has no type for one.
      return { status, body: await run(operations, { parameters: call.parameters, body: checked as z.output<B> }) };
    },
  };
}

function checkBody<B extends z.ZodType>(schema: B, body: unknown): z.output<B> {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const where = issue?.path.map(String).join(".") ?? "";
  throw new CareofError("malformed-body", `the body does not fit: ${where === "" ? "" : `${where}: `}${issue?.message ?? "unknown"}`);
}

const vmOf = (call: Call<unknown>): ReturnType<typeof vmId> => vmId(call.parameters["vm"] ?? "");
const hostOf = (call: Call<unknown>): ReturnType<typeof hostId> => hostId(call.parameters["host"] ?? "");
const hostBody = z.strictObject({ host: parsed(hostId) });
const ACTOR = "operator";

export const ROUTES: readonly Route[] = [
  route("GET", "/v1/vms", "Every VM and where it is", null, 200, z.array(vmView), (operations) => operations.vms()),
  route("GET", "/v1/vms/{vm}", "Where a VM is", null, 200, vmView, (operations, call) => operations.vm(vmOf(call))),
  route("GET", "/v1/vms/{vm}/history", "Where a VM has been, newest first", null, 200, z.array(historyView), (operations, call) => operations.history(vmOf(call))),
  route("POST", "/v1/vms/{vm}/start", "Start a VM on a host", hostBody, 200, vmView, (operations, call) => operations.start(vmOf(call), call.body.host, ACTOR)),
  route("POST", "/v1/vms/{vm}/adopt", "Take over a VM that runs on a host already", hostBody, 200, vmView, (operations, call) => operations.adopt(vmOf(call), call.body.host, ACTOR)),
  route("POST", "/v1/vms/{vm}/release", "Let go of a VM, which runs on", z.strictObject({}), 200, givenBackView, (operations, call) => operations.giveBack(vmOf(call))),
  route("POST", "/v1/vms/{vm}/stop", "Stop a VM", z.strictObject({ force: z.boolean().default(false) }), 200, vmView, (operations, call) => operations.stop(vmOf(call), call.body, ACTOR)),
  route("POST", "/v1/vms/{vm}/resolve", "Decide where a lost VM is", z.strictObject({ host: parsed(hostId), force: z.boolean().default(false) }), 200, vmView, (operations, call) => operations.resolve(vmOf(call), call.body.host, { force: call.body.force }, ACTOR)),
  route("GET", "/v1/hosts", "Every host", null, 200, z.array(hostView), (operations) => operations.hosts()),
  route("GET", "/v1/hosts/{host}/drain", "How far a host is drained", null, 200, drainView, (operations, call) => operations.drain(hostOf(call))),
  route(
    "POST", "/v1/hosts/{host}/drain", "Take no VMs on a host from now on, and move away those that are there; again: go on",
    z.strictObject({ to: z.array(parsed(hostId)).max(256).optional(), limit: z.number().int().min(1).max(MAX_MOVES_AT_ONCE).optional(), order: z.enum(ORDERS).optional(), ...wishFields }),
    202, drainView, (operations, call) => {
      const { to, limit, order, ...wishes } = call.body;
      return operations.beginDrain(hostOf(call), { to, limit, order, wishes: wishesOf(wishes) }, ACTOR);
    },
  ),
  route(
    "POST", "/v1/hosts/{host}/drain/interrupt", "Begin no other move of a drain; with cancel those under way are cancelled",
    z.strictObject({ cancel: z.boolean().default(false) }), 202, drainView, (operations, call) => operations.interruptDrain(hostOf(call), call.body),
  ),
  route("POST", "/v1/hosts/{host}/undrain", "Take VMs on a host again", z.strictObject({}), 200, hostView, (operations, call) => operations.undrain(hostOf(call))),
  route("GET", "/v1/migrations", "Migrations under way and the latest that ended, newest first", null, 200, z.array(migrationView), (operations) => operations.migrations()),
  route("GET", "/v1/migrations/{migration}", "One migration", null, 200, migrationView, (operations, call) => operations.migration(call.parameters["migration"] ?? "")),
  route(
    "POST", "/v1/migrations", "Move a VM to a host; with wait the answer is the result", z.strictObject({ vm: parsed(vmId), host: parsed(hostId), wait: z.boolean().default(false), ...wishFields }), 202, migrationView,
    async (operations, call) => {
      const { vm, host, wait, ...wishes } = call.body;
      const begun = await operations.migrate(vm, host, ACTOR, wishesOf(wishes));
      return wait ? await operations.migrationEnd(begun.migration) : begun;
    },
  ),
  route("POST", "/v1/reload", "Take over hosts, VMs and times of the changed configuration", z.strictObject({}), 200, reloadView, (operations) => operations.reload()),
  route("DELETE", "/v1/migrations/{migration}", "Cancel a migration", null, 202, migrationView, (operations, call) => operations.cancel(call.parameters["migration"] ?? "")),
];
