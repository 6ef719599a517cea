import type { Command } from "commander";
import type { VmId } from "../../model/ids.js";
import { client, operatorCommand, show, vmArgument, type Context, type OperatorOptions } from "../context.js";
import { waiting } from "../waiting.js";

export function stopCommand(context: Context): Command {
  return operatorCommand("stop", "shut a VM down", "  careof stop web1\n  careof stop web1 --force")
    .argument("<vm>", "name of the VM", vmArgument)
    .option("--force", "end it at once instead of asking the guest first", false)
    .action(async (vm: VmId, options: OperatorOptions & { readonly force: boolean }) => {
      const stopped = await waiting(context, `${vm} is stopped`, client(context, options).stop(vm, options.force));
      show(context, options, stopped, () => `${vm} is stopped\n`);
    });
}
