import type { Command } from "commander";
import { client, operatorCommand, show, type Context, type OperatorOptions } from "../context.js";

export function reloadCommand(context: Context): Command {
  return operatorCommand("reload", "have the home agent take its changed configuration, without dropping a packet", "  careof reload")
    .action(async (options: OperatorOptions) => {
      const taken = await client(context, options).reload();
      const restart = taken.needRestart.length === 0 ? "" : `changes of ${taken.needRestart.join(", ")} need a restart of the home agent\n`;
      const later = taken.nextStart.map(({ vm, keys }) => `${vm}: changes of ${keys.join(", ")} count from its next start\n`).join("");
      show(context, options, taken, () => `the home agent has taken its configuration: ${String(taken.hosts)} hosts, ${String(taken.vms)} VMs\n${restart}${later}`);
    });
}
