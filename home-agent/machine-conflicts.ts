import type { VmConfig } from "./config.js";

export interface MachineConflict {
  /** Which of the VMs, the later one of two, and where in it. */
  readonly index: number;
  readonly path: readonly (string | number)[];
  readonly why: string;
}

/**
 * Two VMs of which a host could have both, and that would be one thing there: a disk that is a VM's own (`shared: false`), or the monitor or the port of a guest that is adopted. `null`: none.
 */
export function machineConflict(vms: readonly VmConfig[]): MachineConflict | null {
  // Many VMs may share a path that is nobody's own: an installation medium, say.
  const owned = new Set(vms.flatMap(({ qemu }) => qemu?.diskOptions.filter(({ shared }) => !shared).map(({ path }) => path) ?? []));
  const disks = new Map<string, VmConfig[]>();
  const adopted = new Map<string, VmConfig>();
  for (const [index, vm] of vms.entries()) {
    for (const [j, path] of (vm.qemu?.disks ?? []).entries()) {
      if (!owned.has(path)) continue;
      const others = disks.get(path) ?? [];
      const other = others.find((each) => (owns(each, path) || owns(vm, path)) && each.hosts.some((host) => vm.hosts.includes(host)));
      if (other !== undefined) return { index, path: ["qemu", "disks", j], why: `${path} is a disk of ${other.name} as well, which shared: false excludes: ${String(vm.hosts.find((host) => other.hosts.includes(host)))} could have both` };
      disks.set(path, [...others, vm]);
    }
    for (const [host, { control, port }] of vm.adopt) {
      for (const [what, name] of [["qmp", control], ["port", port]] as const) {
        const key = `${host} ${what} ${name}`;
        const other = adopted.get(key);
        if (other !== undefined) return { index, path: ["qemu", "adopt", host, what], why: `${name} on ${host} is ${other.name}'s already` };
        adopted.set(key, vm);
      }
    }
  }
  return null;
}

function owns({ qemu }: VmConfig, path: string): boolean {
  return qemu?.diskOptions.some((disk) => disk.path === path && !disk.shared) ?? false;
}
