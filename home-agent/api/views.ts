import type { HostId, Millis } from "../../model/ids.js";
import type { VmConfig } from "../config.js";
import { publicState, type VmState } from "../handover/migration.js";
import type { HistoryEntry } from "../history.js";
import type { Hosts } from "../hosts.js";

/** The JSON of `careof where`. Times are ISO 8601 in UTC. */
export interface VmView {
  readonly vm: string;
  readonly homeAddresses: readonly string[];
  readonly host: string | null;
  readonly careOf: string | null;
  readonly state: string;
  readonly epoch: number;
  readonly since: string | null;
  readonly lastHeartbeat: string | null;
  readonly evidence: string;
}

export function vmView(state: VmState, vm: VmConfig, hosts: Hosts): VmView {
  const { binding } = state;
  return {
    vm: vm.name,
    homeAddresses: vm.homeAddresses,
    host: binding.owner,
    careOf: hosts.careOf(binding.owner),
    state: publicState(binding.phase),
    epoch: binding.epoch,
    since: binding.since === 0 ? null : iso(binding.since),
    lastHeartbeat: binding.lastHeartbeat === null ? null : iso(binding.lastHeartbeat),
    evidence: binding.evidence,
  };
}

export interface HistoryView {
  readonly epoch: number;
  readonly host: string;
  readonly careOf: string | null;
  readonly from: string;
  readonly until: string | null;
  readonly cause: string;
  readonly actor: string;
  readonly pauseMs: number | null;
  readonly gapDownMs: number | null;
  readonly gapUpMs: number | null;
}

/** Newest first. */
export function historyView(entries: readonly HistoryEntry[]): readonly HistoryView[] {
  return entries.map((entry) => ({ ...entry, from: iso(entry.from), until: entry.until === null ? null : iso(entry.until) })).reverse();
}

export interface HostView {
  readonly name: string;
  readonly careOf: readonly string[];
  readonly state: "connected" | "gone";
  readonly since: string | null;
  readonly capabilities: unknown;
  /** VMs that are in its care. */
  readonly vms: readonly string[];
}

export function hostView(name: HostId, hosts: Hosts, vms: readonly string[]): HostView {
  const session = hosts.session(name);
  const since = session?.since ?? hosts.goneSince(name);
  return {
    name,
    careOf: session?.locators.map((locator) => locator.address) ?? hosts.host(name)?.careOf ?? [],
    state: session === null ? "gone" : "connected",
    since: since === null ? null : iso(since),
    capabilities: session?.capabilities ?? null,
    vms,
  };
}

function iso(time: Millis): string {
  return new Date(time).toISOString();
}
