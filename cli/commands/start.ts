import type { Command } from "commander";
import type { HostId, VmId } from "../../model/ids.js";
import { client, hostArgument, operatorCommand, show, vmArgument, type Context, type OperatorOptions } from "../context.js";
import { waiting } from "../waiting.js";
import { describe } from "./where.js";

export function startCommand(context: Context): Command {
  return operatorCommand("start", "start a VM on a host", "  careof start web1 host-a")
    .argument("<vm>", "name of the VM", vmArgument)
    .argument("<host>", "one of the hosts that the VM lists", hostArgument)
    .action(async (vm: VmId, host: HostId, options: OperatorOptions) => {
      const started = await waiting(context, `${vm} is started on ${host}`, client(context, options).start(vm, host));
      show(context, options, started, () => describe(started, context.clock.now()));
    });
}
