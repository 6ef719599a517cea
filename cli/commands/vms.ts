import type { Command } from "commander";
import { client, operatorCommand, show, type Context, type OperatorOptions } from "../context.js";
import { age } from "../quantities.js";
import type { VmReply } from "../replies.js";
import { table } from "../table.js";

export function vmsCommand(context: Context): Command {
  return operatorCommand("vms", "every VM and where it is", "  careof vms\n  careof vms --output json | jq -r '.[] | select(.state != \"bound\") | .vm'")
    .action(async (options: OperatorOptions) => {
      const vms = await client(context, options).vms();
      show(context, options, vms, () => (vms.length === 0 ? "no VM is configured\n" : vmTable(vms, context.clock.now(), context.terminal.columns)));
    });
}

/** `moving`: where those go that move. */
export function vmTable(vms: readonly VmReply[], now: number, columns: number | null, moving: ReadonlyMap<string, string> = new Map()): string {
  return table(
    ["VM", "ADDRESS", "HOST", "CARE-OF", "STATE", "EPOCH", "SINCE", "HEARD"],
    vms.map((vm) => [
      vm.vm, `${vm.homeAddresses[0] ?? "–"}${vm.homeAddresses.length > 1 ? ` +${String(vm.homeAddresses.length - 1)}` : ""}`, `${vm.host ?? "–"}${moving.has(vm.vm) ? ` → ${moving.get(vm.vm) ?? ""}` : ""}`, vm.careOf ?? "–", vm.reachable === false ? `${vm.state}, not reachable` : vm.state, String(vm.epoch),
      age(vm.since, now), age(vm.lastHeartbeat, now),
    ]),
    columns,
    ["CARE-OF", "EPOCH", "SINCE"],
  );
}
