import type { HostId, Millis } from "../model/ids.js";
import type { HistoryView, HostView, VmView } from "./api/operations.js";
import type { VmConfig } from "./config.js";
import { publicState, type VmState } from "./handover/migration.js";
import type { HistoryEntry } from "./history.js";
import type { Hosts } from "./hosts.js";

/** The JSON of `careof where`. */
export function viewVm(state: VmState, vm: VmConfig, hosts: Hosts): VmView {
  const { binding } = state;
  return {
    vm: vm.name,
    homeAddresses: [...vm.homeAddresses],
    host: binding.owner,
    careOf: hosts.careOf(binding.owner),
    state: publicState(binding.phase),
    epoch: binding.epoch,
    since: binding.since === 0 ? null : iso(binding.since),
    lastHeartbeat: binding.lastHeartbeat === null ? null : iso(binding.lastHeartbeat),
    evidence: binding.evidence,
    ...(hosts.unreachable(vm.name, binding.owner) ? { reachable: false } : {}),
  };
}

/** Newest first. */
export function viewHistory(entries: readonly HistoryEntry[]): readonly HistoryView[] {
  return entries.map((entry) => ({ ...entry, from: iso(entry.from), until: entry.until === null ? null : iso(entry.until) })).reverse();
}

/** `vms`: those in its care. `memoryFree`: of `Drains.memoryFree`, for whoever asks for all hosts. */
export function viewHost(name: HostId, hosts: Hosts, vms: readonly string[], memoryFree?: number | null): HostView {
  const session = hosts.session(name);
  const since = session?.since ?? hosts.goneSince(name);
  return {
    name,
    careOf: session?.locators.map((locator) => locator.address) ?? [...(hosts.host(name)?.careOf ?? [])],
    state: session === null ? "gone" : "connected",
    since: since === null ? null : iso(since),
    draining: hosts.draining(name),
    capabilities: session === null ? null : { ...session.capabilities },
    software: session?.software ?? null,
    vms: [...vms],
    ...(memoryFree === undefined ? {} : { memoryFreeBytes: memoryFree }),
  };
}

export function iso(time: Millis): string {
  return new Date(time).toISOString();
}
