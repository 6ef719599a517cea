import type { Command } from "commander";
import { client, operatorCommand, show, type Context, type OperatorOptions } from "../context.js";
import { age, memory } from "../quantities.js";
import type { HostReply } from "../replies.js";
import { table } from "../table.js";

export function hostsCommand(context: Context): Command {
  return operatorCommand("hosts", "every host, whether it is connected, and what runs there\n\nMEMORY is what a drain would still place there, of what the host has in all.", "  careof hosts\n  careof hosts --output json | jq -r '.[] | select(.state == \"gone\") | .name'")
    .action(async (options: OperatorOptions) => {
      const hosts = await client(context, options).hosts();
      show(context, options, hosts, () => (hosts.length === 0 ? "no host is configured\n" : hostTable(hosts, context.clock.now(), context.terminal.columns)));
    });
}

export function hostTable(hosts: readonly HostReply[], now: number, columns: number | null): string {
  return table(
    ["HOST", "CARE-OF", "STATE", "SINCE", "QEMU", "ACCEL", "PLANE", "MEMORY", "VMS", "NAMES"],
    hosts.map((host) => [
      host.name, host.careOf.join(","), stateOf(host), age(host.since, now), host.capabilities?.qemuVersion ?? "–", host.capabilities?.accelerator ?? "–", host.capabilities?.dataPlane ?? "–", memory(host.capabilities?.memoryBytes ?? 0, host.memoryFreeBytes ?? null),
      String(host.vms.length), host.vms.length === 0 ? "–" : host.vms.join(","),
    ]),
    columns,
    ["NAMES", "PLANE", "QEMU", "ACCEL", "CARE-OF", "MEMORY"],
  );
}

/** `connected`, `gone`; `draining` where it takes no VMs. */
export function stateOf({ state, draining }: HostReply): string {
  return !draining ? state : state === "connected" ? "draining" : `${state}, draining`;
}
