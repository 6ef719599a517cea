import { request } from "node:http";
import { join } from "node:path";
import { Command, Option } from "commander";
import { z } from "zod";
import { readConfig } from "../../model/config.js";
import { CareofError } from "../../model/errors.js";
import type { HostId, VmId } from "../../model/ids.js";
import { hostArgument, outputOption, show, vmArgument, type Context, type Output } from "../context.js";

/** Where deploy/install.sh has it. */
const DEFAULT_CONFIG = "/etc/careof/agent.yaml";
/** In the agent's runDir. */
const SOCKET_NAME = "control.sock";
const ANSWER_LIMIT_MS = 5000;
const MAX_ANSWER = 1024 * 1024;

interface PortOptions {
  readonly output: Output;
  readonly socket?: string;
  readonly config?: string;
}

const viewSchema = z.looseObject({ vm: z.string(), phase: z.string(), owner: z.string().nullable(), epoch: z.number(), port: z.string().nullable() });
const errorSchema = z.object({ code: z.string(), message: z.string(), retryable: z.boolean() });

/** `port arrive` and `port leave`: for the hooks of whatever moves a VM, on the host where they run. */
export function portCommand(context: Context): Command {
  return new Command("port")
    .description("tell the agent of this host that a VM comes or goes (hooks of libvirt, Proxmox)")
    .addCommand(deed(context, "arrive", "a VM that something else moves is behind its port now").action(async (vm: VmId, options: PortOptions) => {
      await tell(context, vm, "arrive", {}, options);
    }))
    .addCommand(deed(context, "leave", "a VM that something else moves leaves its port: what comes for it is passed on").option("--to <host>", "the host to which it goes, where the VM has more than two", hostArgument).action(async (vm: VmId, options: PortOptions & { readonly to?: HostId }) => {
      await tell(context, vm, "leave", { to: options.to ?? null }, options);
    }));
}

function deed(context: Context, name: string, description: string): Command {
  return new Command(name)
    .description(description)
    .argument("<vm>", "name of the VM", vmArgument)
    .addOption(outputOption())
    .addOption(new Option("--socket <path>", "the agent's control socket"))
    .addOption(new Option("-c, --config <file>", `the agent's configuration, which says where that is (default: ${DEFAULT_CONFIG})`).conflicts("socket"))
    .addHelpText("after", `\nThe same without starting a program:\n  curl --unix-socket RUNDIR/control.sock -X POST http://agent/v1/ports/VM/${name}\n\nExamples:\n  careof port ${name} web1\n  careof port ${name} web1 --config /etc/careof/agent.yaml`)
    .configureHelp({ helpWidth: context.terminal.columns ?? 80 });
}

async function tell(context: Context, vm: VmId, what: "arrive" | "leave", body: object, options: PortOptions): Promise<void> {
  const socket = options.socket ?? join(readConfig(options.config ?? DEFAULT_CONFIG, z.looseObject({ runDir: z.string().min(1) })).runDir, SOCKET_NAME);
  const view = viewSchema.parse(await post(socket, `/v1/ports/${encodeURIComponent(vm)}/${what}`, body));
  show(context, options, view, () => (what === "arrive" ? `${vm} is at ${view.port ?? "no port"}; the home agent has been asked (${view.phase})\n` : `${vm} leaves; what comes for it is passed on or waits (${view.phase})\n`));
}

/** @throws CareofError what the agent refuses with, `agent-unreachable`, `malformed-answer` */
function post(socketPath: string, path: string, body: object): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const call = request({ socketPath, path, method: "POST", headers: { "content-type": "application/json" }, timeout: ANSWER_LIMIT_MS }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (part: string) => {
        text += part;
        if (text.length > MAX_ANSWER) call.destroy(new Error("the answer is too long"));
      }).on("end", () => {
        try {
          const answer: unknown = JSON.parse(text);
          if (response.statusCode === 200) {
            resolve(answer);
            return;
          }
          const { code, message, retryable } = errorSchema.parse(answer);
          reject(new CareofError(code, message, { retryable }));
        } catch (cause) {
          reject(new CareofError("malformed-answer", `${socketPath} did not answer as a host agent does`, { cause }));
        }
      });
    });
    call.on("timeout", () => { call.destroy(new Error("no answer")); });
    call.on("error", (cause) => { reject(new CareofError("agent-unreachable", `no host agent answers at ${socketPath}: ${cause.message}; say --socket or --config`, { retryable: true, cause })); });
    call.end(JSON.stringify(body));
  });
}
