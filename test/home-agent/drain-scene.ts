import type { Drain, DrainEvent, Wish } from "../../home-agent/drains/drain.js";
import { sceneOf, type Scene, type SceneHost, type SceneVm } from "../../home-agent/drains/placement.js";
import { hostId, millis, vmId } from "../../model/ids.js";

/** VMs on host A of four, as the tests of a drain begin. */

export const GIB = 1 << 30;
export const HOSTS = ["host-a", "host-b", "host-c", "host-d"].map(hostId);
export const [A, B, C] = [hostId("host-a"), hostId("host-b"), hostId("host-c")];
export const NOW = millis(1);

export const WISH: Wish = { to: [], limit: 2, order: "config", wishes: {}, actor: "operator" };

export function vm(name: string, change: Partial<SceneVm> = {}): SceneVm {
  return { vm: vmId(name), hosts: HOSTS, movable: true, memoryBytes: GIB, phase: "bound", owner: A, starting: null, stopping: false, move: null, ...change };
}

export function scene(vms: readonly SceneVm[], hosts: Readonly<Record<string, Partial<SceneHost>>> = {}, more: Partial<Scene> = {}): Scene {
  const known = HOSTS.map((host) => [host, { connected: true, returning: false, losses: 0, draining: host === A, memoryBytes: 8 * GIB, ...hosts[host] }] as const);
  return { ...sceneOf(new Map(vms.map((each) => [each.vm, each])), new Map(known), 0), ...more };
}

export function begun(drain: Drain, wish: Wish = WISH): [Drain, DrainEvent] {
  return [drain, { type: "begin", wish, now: NOW }];
}
