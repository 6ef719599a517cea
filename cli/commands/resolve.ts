import type { Command } from "commander";
import type { HostId, VmId } from "../../model/ids.js";
import { client, hostArgument, operatorCommand, show, vmArgument, type Context, type OperatorOptions } from "../context.js";
import { waiting } from "../waiting.js";
import { describe } from "./where.js";

export function resolveCommand(context: Context): Command {
  return operatorCommand(
    "resolve",
    "decide where a LOST VM runs\n\nA VM is LOST when its source has given up the right to run it and nobody can say whether the target took it. Look at both hosts first: " +
      "if the VM still runs on the other one, resolving makes two of it, which ruins its disk.\n\nOnce the source was told to run it, the target is only taken with --force until the source has said what became of that: " +
      "stop the VM on the source first, or see to it that the source does not come back with it.",
    "  careof resolve web1 host-a\n  careof resolve web1 host-b --force",
  )
    .summary("decide where a LOST VM runs")
    .argument("<vm>", "name of the VM", vmArgument)
    .argument("<host>", "where it shall run: the source or the target of the move", hostArgument)
    .option("--force", "the source was told to run it, and certainly does not", false)
    .action(async (vm: VmId, host: HostId, options: OperatorOptions & { readonly force: boolean }) => {
      const resolved = await waiting(context, `${vm} is resolved to ${host}`, client(context, options).resolve(vm, host, options.force));
      show(context, options, resolved, () => describe(resolved, context.clock.now()));
    });
}
