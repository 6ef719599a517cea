import { mac } from "../model/address.js";
import { millis, NEVER_BOUND, type HostId, type VmId } from "../model/ids.js";
import type { Locator } from "../model/locator.js";
import { CareofError } from "../model/errors.js";
import { MAX_CARE_OF } from "../net/entry-checks.js";
import type { BindingUpdate, MigrationParameters, Peer, VmSpec } from "../proto/messages.js";
import type { VmConfig, HandoverConfig } from "./config.js";
import { publicState, type VmState } from "./handover/migration.js";
import type { MovePlan } from "./handover/move-plan.js";
import type { Hosts } from "./hosts.js";

const NO_MAC = mac("02:00:00:00:00:00");

/** What a host is told of a VM's configuration. Its heartbeat key is not among it. */
export function specFor(vm: VmConfig, host: HostId): VmSpec {
  const { name, homeAddresses, mac, driver, qemu, externalPort } = vm;
  return { vm: name, homeAddresses, mac, driver, qemu, externalPort, listsHost: vm.hosts.includes(host) };
}

/** The home agent's view of one VM, for one of its hosts. A host that the VM has left lately passes stragglers on. */
export function updateFor(state: VmState, vm: VmConfig, host: HostId, hosts: Hosts, monotonic: number): BindingUpdate {
  const { binding } = state;
  const grace = binding.graces.find((each) => each.host === host);
  const forwardTo = grace === undefined || binding.owner === null || binding.owner === host ? null : hosts.locator(binding.owner);
  return {
    vm: binding.vm,
    epoch: binding.epoch,
    state: publicState(binding.phase),
    owner: binding.owner,
    forwardTo,
    forwardMs: millis(forwardTo === null || grace === undefined ? 0 : Math.max(0, grace.until - monotonic)),
    spec: specFor(vm, host),
    peers: vm.driver === "external" ? peersOf(vm, host, hosts) : [],
  };
}

/** To a host that is not listed (any more) for a VM that something else moves: it lets go of everything that it keeps for it, and looks at nothing else in this. */
export function removalOf(vm: VmId): BindingUpdate {
  return {
    vm, epoch: NEVER_BOUND, state: "expired", owner: null, forwardTo: null, forwardMs: millis(0), peers: [],
    spec: { vm, homeAddresses: [], mac: NO_MAC, driver: "external", qemu: null, externalPort: "", listsHost: false },
  };
}

/** Between the hosts of a VM that somebody else moves stragglers go to and fro, and the old host may be told where to before the home agent is asked. */
function peersOf(vm: VmConfig, host: HostId, hosts: Hosts): Peer[] {
  return vm.hosts.flatMap((peer) => {
    const locator = peer === host ? null : hosts.locator(peer);
    return locator === null ? [] : [{ host: peer, locator }];
  }).slice(0, MAX_CARE_OF);
}

export function parametersOf(plan: MovePlan, { holdMaxMs }: HandoverConfig, lead: boolean): MigrationParameters {
  const { encrypt, ...copy } = plan;
  return { ...copy, lead, holdMaxMs, clear: !encrypt };
}

/** @throws CareofError `unknown-host` for one that is not listed any more. */
export function requireLocator(hosts: Hosts, host: HostId): Locator {
  const locator = hosts.locator(host);
  if (locator === null) throw new CareofError("unknown-host", `${host} is not listed`);
  return locator;
}
