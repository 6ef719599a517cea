import type { Command } from "commander";
import { CareofError } from "../../model/errors.js";
import { client, operatorCommand, show, type Context, type OperatorOptions } from "../context.js";

export function reloadCommand(context: Context): Command {
  return operatorCommand("reload", "have the home agent take its changed configuration, without dropping a packet", "  careof reload")
    .action(async (options: OperatorOptions) => {
      let taken: Record<string, unknown>;
      try {
        taken = await client(context, options).reload();
      } catch (thrown) {
        if (!(thrown instanceof CareofError) || (thrown.code !== "unknown-path" && thrown.code !== "method-not-allowed")) throw thrown;
        throw new CareofError("unsupported", "this home agent takes a changed configuration by SIGHUP only: systemctl reload careof-home-agent", { cause: thrown });
      }
      show(context, options, taken, () => "the home agent has taken its configuration\n");
    });
}
