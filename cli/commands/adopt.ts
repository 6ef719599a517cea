import type { Command } from "commander";
import type { HostId, VmId } from "../../model/ids.js";
import { client, hostArgument, operatorCommand, show, vmArgument, type Context, type OperatorOptions } from "../context.js";
import { plain } from "../terminal.js";
import { waiting } from "../waiting.js";
import { describe } from "./where.js";

export function adoptCommand(context: Context): Command {
  return operatorCommand(
    "adopt",
    "take over a guest that runs on a host already, in a QEMU that somebody else has started\n\nThe configuration says where its monitor and its port are (vms[].qemu.adopt). It runs on; from then on careof routes to it, and can move it. Where it moves to, a QEMU of careof's " +
      "receives it, and the one that was adopted is ended.",
    "  careof adopt web1 host-a\n  careof adopt web1 host-a && careof migrate web1 host-b && careof release web1",
  )
    .summary("take over a guest that runs already")
    .argument("<vm>", "name of the VM", vmArgument)
    .argument("<host>", "where it runs", hostArgument)
    .action(async (vm: VmId, host: HostId, options: OperatorOptions) => {
      const adopted = await waiting(context, `${vm} is adopted on ${host}`, client(context, options).adopt(vm, host));
      show(context, options, adopted, () => describe(adopted, context.clock.now()));
    });
}

export function releaseCommand(context: Context): Command {
  return operatorCommand(
    "release",
    "let go of a guest, which runs on\n\nIts process is not touched, and its port stays; careof no longer routes to it, does not watch it, and will not find it again by itself. The answer says which process it is, and where its " +
      "monitor and its port are.",
    "  careof release web1\n  careof release web1 --output json | jq -r .detail",
  )
    .summary("let go of a guest, which runs on")
    .argument("<vm>", "name of the VM", vmArgument)
    .action(async (vm: VmId, options: OperatorOptions) => {
      const released = await waiting(context, `${vm} is let go of`, client(context, options).release(vm));
      show(context, options, released, () => plain(`${released.vm} runs on ${released.host ?? "?"} without careof: ${released.detail}`) + "\n");
    });
}
