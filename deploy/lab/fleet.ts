import { HOSTS } from "./plan.js";

export interface FleetGuest {
  readonly name: string;
  readonly address: string;
  readonly mac: string;
  readonly hosts: readonly string[];
  /** As in a configuration: `64M`. */
  readonly memory: string;
  /** As in a configuration. */
  readonly disks?: readonly object[];
}

/** Many small guests beside the lab's own, `vm01` at 198.51.100.101 and so on. At most 99. */
export function fleet(count: number, memory: string): readonly FleetGuest[] {
  return Array.from({ length: Math.min(count, 99) }, (_, i) => {
    const number = String(i + 1).padStart(2, "0");
    return { name: `vm${number}`, address: `198.51.100.${String(101 + i)}`, mac: `52:54:00:ca:f0:${number}`, hosts: [...HOSTS], memory };
  });
}
