import type { Command } from "commander";
import type { VmId } from "../../model/ids.js";
import { client, operatorCommand, show, vmArgument, type Context, type OperatorOptions } from "../context.js";
import { duration, localTime, measured } from "../quantities.js";
import type { StayReply } from "../replies.js";
import { table } from "../table.js";

export function historyCommand(context: Context): Command {
  return operatorCommand("history", "where a VM has been and what each move cost, newest first", "  careof history web1\n  careof history web1 --output json | jq '.[0].pauseMs'")
    .argument("<vm>", "name of the VM", vmArgument)
    .action(async (vm: VmId, options: OperatorOptions) => {
      const stays = await client(context, options).history(vm);
      show(context, options, stays, () => (stays.length === 0 ? `${vm} has been nowhere yet\n` : historyTable(stays, context.clock.now(), context.terminal.columns)));
    });
}

export function historyTable(stays: readonly StayReply[], now: number, columns: number | null): string {
  return table(
    ["EPOCH", "HOST", "FROM", "LASTED", "CAUSE", "PAUSE", "GAP DOWN", "GAP UP"],
    stays.map((stay) => [
      String(stay.epoch), stay.host, localTime(stay.from), duration((stay.until === null ? now : Date.parse(stay.until)) - Date.parse(stay.from)), stay.cause,
      measured(stay.pauseMs), measured(stay.gapDownMs), measured(stay.gapUpMs),
    ]),
    columns,
  );
}
