import type { Command } from "commander";
import { InvalidArgumentError } from "commander";
import { CareofError, toCareofError } from "../../model/errors.js";
import { parseMigrationId, vmId } from "../../model/ids.js";
import type { ApiClient } from "../api-client.js";
import { client, operatorCommand, show, type Context, type OperatorOptions } from "../context.js";
import { plain } from "../terminal.js";

export function cancelCommand(context: Context): Command {
  return operatorCommand("cancel", "cancel a migration; the VM stays where it is", "  careof cancel web1\n  careof cancel web1@7")
    .argument("<migration>", "name of the migration, or of the VM that moves", migrationArgument)
    .action(async (name: string, options: OperatorOptions) => {
      const api = client(context, options);
      const cancelled = await api.cancel(name.includes("@") ? name : await moveOf(api, name));
      show(context, options, cancelled, () => plain(`${cancelled.migration} is being cancelled; ${cancelled.vm} stays on ${cancelled.from}`) + "\n");
    });
}

async function moveOf(api: ApiClient, vm: string): Promise<string> {
  await api.vm(vmId(vm));
  const moving = (await api.migrations()).find((each) => each.vm === vm && each.result === null);
  if (moving === undefined) throw new CareofError("not-moving", `${vm} is not moving`);
  return moving.migration;
}

function migrationArgument(text: string): string {
  try {
    return text.includes("@") ? parseMigrationId(text).id : vmId(text);
  } catch (thrown) {
    throw new InvalidArgumentError(toCareofError(thrown).message);
  }
}
