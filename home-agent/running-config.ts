import type { IpAddress, Mac } from "../model/address.js";
import { CareofError } from "../model/errors.js";
import type { VmId } from "../model/ids.js";
import type { VmConfig } from "./config.js";

/** What a guest was started with: its machine, which a target of a move has to build again just so, and what the port and the entries of its host are made of. */
export type Running = Pick<VmConfig, "driver" | "homeAddresses" | "mac" | "qemu">;

const OF_THE_GUEST = ["driver", "homeAddresses", "mac", "qemu"] as const;

/** Keys of a VM's configuration whose change waits for the VM's next start, and what it runs with. */
export interface Held {
  readonly vm: VmId;
  readonly keys: readonly string[];
  readonly running: Running;
}

/**
 * The VMs' configuration as it counts: as wanted, but what belongs to a guest that careof runs stays as it is until `runs` says that it is nowhere.
 * @throws CareofError `config-invalid`: another VM is to have what one that runs still has
 */
export function runningConfig(present: ReadonlyMap<VmId, Running>, wanted: readonly VmConfig[], runs: (vm: VmId) => boolean): { readonly vms: readonly VmConfig[]; readonly held: readonly Held[] } {
  const held: Held[] = [];
  const vms = wanted.map((vm): VmConfig => {
    const before = present.get(vm.name);
    if (before?.driver !== "qemu" || !runs(vm.name)) return vm;
    const keys = OF_THE_GUEST.filter((key) => JSON.stringify(before[key]) !== JSON.stringify(vm[key]));
    if (keys.length === 0) return vm;
    const { driver, homeAddresses, mac, qemu } = before;
    const running = { driver, homeAddresses, mac, qemu };
    held.push({ vm: vm.name, keys, running });
    return { ...vm, ...running, externalPort: "" };
  });
  if (held.length > 0) refuseTwins(vms);
  return { vms, held };
}

function refuseTwins(vms: readonly VmConfig[]): void {
  const owners = new Map<IpAddress | Mac, VmId>();
  for (const { name, homeAddresses, mac } of vms) {
    for (const each of [...homeAddresses, mac]) {
      const other = owners.get(each);
      if (other !== undefined) throw new CareofError("config-invalid", `vms: ${other} and ${name}: one of them runs with ${each} until it is stopped, and the other one is to have it`);
      owners.set(each, name);
    }
  }
}
