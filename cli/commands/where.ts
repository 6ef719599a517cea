import type { Command } from "commander";
import type { VmId } from "../../model/ids.js";
import { client, operatorCommand, show, vmArgument, type Context, type OperatorOptions } from "../context.js";
import { age, localTime } from "../quantities.js";
import type { VmReply } from "../replies.js";
import { facts } from "../table.js";
import { plain } from "../terminal.js";

export function whereCommand(context: Context): Command {
  return operatorCommand("where", "where a VM is, and how the home agent knows", "  careof where web1\n  careof where web1 --output json | jq -r .careOf")
    .argument("<vm>", "name of the VM", vmArgument)
    .action(async (vm: VmId, options: OperatorOptions) => {
      const found = await client(context, options).vm(vm);
      show(context, options, found, () => describe(found, context.clock.now()));
    });
}

/** Some lines for a person. `now` is wall time. */
export function describe(vm: VmReply, now: number): string {
  return `${plain(headline(vm))}\n${facts([
    ["state", `${vm.state}, epoch ${String(vm.epoch)}${vm.since === null ? "" : `, since ${localTime(vm.since)} (${age(vm.since, now)})`}`],
    ["home address", vm.homeAddresses.join(", ")],
    ["last heartbeat", vm.lastHeartbeat === null ? "none" : `${age(vm.lastHeartbeat, now)} ago`],
    ["known by", vm.evidence],
    ["monitor", vm.reachable === false ? "does not answer: the VM cannot be moved until it does" : null],
  ])}`;
}

function headline(vm: VmReply): string {
  const place = vm.host === null ? null : `${vm.host}${vm.careOf === null ? "" : ` (${vm.careOf})`}`;
  switch (vm.state) {
    case "bound":
      return `${vm.vm} is in care of ${place ?? "nobody"}`;
    case "moving":
      return `${vm.vm} is moving away from ${place ?? "nobody"}`;
    case "stale":
      return `${vm.vm} has been silent; it was last in care of ${place ?? "nobody"}`;
    case "expired":
      return place === null ? `${vm.vm} runs nowhere: start it with \`careof start ${vm.vm} HOST\`` : `${vm.vm} is gone; it was last in care of ${place}`;
    case "lost":
      return `${vm.vm} is LOST in a move from ${place ?? "nobody"}: look where it is, then \`careof resolve ${vm.vm} HOST\``;
  }
}
