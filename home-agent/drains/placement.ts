import type { HostId, MigrationId, VmId } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import type { BindingPhase } from "../bindings/binding.js";

/** One VM as a drain sees it. */
export interface SceneVm {
  readonly vm: VmId;
  /** Where it may run. */
  readonly hosts: readonly HostId[];
  /** careof moves it; `false` for a VM that something else moves. */
  readonly movable: boolean;
  /** Bytes that it takes on a host; 0 for what is not known. */
  readonly memoryBytes: number;
  readonly phase: BindingPhase;
  readonly owner: HostId | null;
  readonly starting: HostId | null;
  readonly stopping: boolean;
  readonly move: { readonly id: MigrationId; readonly from: HostId; readonly to: HostId } | null;
}

export interface SceneHost {
  readonly connected: boolean;
  /** It is not connected, and for so short a time that it may come back. */
  readonly returning: boolean;
  /** How often its connection was lost, since the home agent began. */
  readonly losses: number;
  /** It takes no VMs. */
  readonly draining: boolean;
  /** Bytes that it has; 0 for what is not known. */
  readonly memoryBytes: number;
}

/** What is true at one moment, of all VMs and all hosts; `sceneOf` makes one, which all drains look at. */
export interface Scene {
  readonly vms: ReadonlyMap<VmId, SceneVm>;
  readonly hosts: ReadonlyMap<HostId, SceneHost>;
  /** Bytes of every host that are not for guests. */
  readonly reserveBytes: number;
  /** VMs that are on each host, come to it or leave it, in the order of the configuration. */
  readonly at: ReadonlyMap<HostId, readonly SceneVm[]>;
  /** Bytes of guests that are on each host, or on their way there. */
  readonly load: ReadonlyMap<HostId, number>;
  /** Moves that other drains have asked for: what they take shows in no binding yet. */
  readonly promised: ReadonlyMap<VmId, HostId>;
}

/** Goes through the VMs once, for however many drains there are. */
export function sceneOf(vms: ReadonlyMap<VmId, SceneVm>, hosts: ReadonlyMap<HostId, SceneHost>, reserveBytes: number): Scene {
  const at = new Map<HostId, SceneVm[]>();
  const load = new Map<HostId, number>();
  for (const vm of vms.values()) {
    const { owner, starting, move, memoryBytes } = vm;
    for (const host of new Set([owner, starting, move?.to ?? null])) if (host !== null) load.set(host, (load.get(host) ?? 0) + memoryBytes);
    for (const host of new Set([owner, starting, move?.from ?? null, move?.to ?? null])) {
      if (host === null) continue;
      const list = at.get(host);
      if (list === undefined) at.set(host, [vm]);
      else list.push(vm);
    }
  }
  return { vms, hosts, reserveBytes, at, load, promised: new Map() };
}

/** The load, with moves that were asked for and do not show yet. */
export function withPromised(load: ReadonlyMap<HostId, number>, promised: Iterable<readonly [VmId, HostId]>, scene: Scene): Map<HostId, number> {
  const full = new Map(load);
  for (const [name, to] of promised) {
    const vm = scene.vms.get(name);
    if (vm?.move === null) full.set(to, (full.get(to) ?? 0) + vm.memoryBytes);
  }
  return full;
}

export type Placement =
  | { readonly host: HostId }
  | NoPlace;

export interface NoPlace {
  readonly host: null;
  readonly reason: Reason;
  readonly detail: string;
  /** A host that might take it is not connected. */
  readonly absent: boolean;
  /** And may be soon. */
  readonly returning: boolean;
}

/** Why a VM is not on a host to which it was to move; `detail`: in words, or empty. */
export interface Failure {
  readonly reason: Reason;
  readonly detail: string;
}

/**
 * Where a VM of `from` goes: of the hosts that it lists, and that are wanted (`to`, empty for any), the one on which the most memory is left; of equals, the first by name.
 * `tried`: hosts that have failed it, and why. Without a place the reason is the one that all candidates share, else `no-host-fits`; the detail has each host's own.
 */
export function place(vm: SceneVm, from: HostId, to: readonly HostId[], tried: ReadonlyMap<HostId, Failure>, scene: Scene, load: ReadonlyMap<HostId, number>): Placement {
  const elsewhere = vm.hosts.filter((host) => host !== from);
  const candidates = to.length === 0 ? elsewhere : elsewhere.filter((host) => to.includes(host));
  if (elsewhere.length === 0) return { host: null, reason: "no-host-fits", detail: `${vm.vm} lists no host but ${from}`, absent: false, returning: false };
  if (candidates.length === 0) return { host: null, reason: "not-listed", detail: `${vm.vm} may run on ${elsewhere.join(", ")} only`, absent: false, returning: false };
  let best: { readonly host: HostId; readonly free: number } | null = null;
  const against: { readonly host: HostId; readonly reason: Reason; readonly words: string }[] = [];
  for (const name of candidates) {
    const free = freeOn(name, scene, load);
    const failure = tried.get(name);
    const reason = objection(scene.hosts.get(name), free, vm.memoryBytes, failure?.reason);
    if (reason !== null) against.push({ host: name, reason, words: reason === failure?.reason && failure.detail !== "" && failure.detail !== reason ? ` (${failure.detail})` : "" });
    else if (best === null || free > best.free || (free === best.free && name < best.host)) best = { host: name, free };
  }
  if (best !== null) return { host: best.host };
  against.sort((a, b) => (a.host < b.host ? -1 : 1));
  const reasons = new Set(against.map((each) => each.reason));
  const [only] = reasons;
  const absent = against.filter(({ host, reason }) => reason === "host-gone" && !tried.has(host));
  return {
    host: null, reason: reasons.size === 1 && only !== undefined ? only : "no-host-fits", detail: against.map(({ host, reason, words }) => `${host}: ${reason}${words}`).join(", "),
    absent: absent.length > 0, returning: absent.some(({ host }) => scene.hosts.get(host)?.returning === true),
  };
}

/** Bytes; infinite where the host has not said how much it has. */
export function freeOn(name: HostId, scene: Scene, load: ReadonlyMap<HostId, number>): number {
  const has = scene.hosts.get(name)?.memoryBytes ?? 0;
  return has === 0 ? Number.POSITIVE_INFINITY : has - scene.reserveBytes - (load.get(name) ?? 0);
}

function objection(host: SceneHost | undefined, free: number, wanted: number, failed: Reason | undefined): Reason | null {
  if (host === undefined) return "unknown-host";
  if (host.draining) return "host-draining";
  if (failed !== undefined) return failed;
  if (!host.connected) return "host-gone";
  return wanted > free ? "not-enough-memory" : null;
}
