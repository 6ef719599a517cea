import type { HostId, MigrationId, Millis, VmId } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import type { MoveWishes } from "../handover/move-plan.js";
import type { MigrationOutcome } from "../outcome.js";
import { place, withPromised, type Failure, type NoPlace, type Scene, type SceneVm } from "./placement.js";

/** In which order VMs go: as the configuration lists them, by name, or by memory. */
export const ORDERS = ["config", "name", "smallest", "largest"] as const;
export type Order = (typeof ORDERS)[number];

/** That a drain may be asked for, or configured to have. */
export const MAX_MOVES_AT_ONCE = 64;

/**
 * ```
 *  waiting ──▶ asked ──▶ moving ──▶ moved
 *   ▲ │ │        │ refused  │ failed
 *   │ │ └────────┴──────────┴─────────▶ waiting, for another host     stopped: it runs nowhere any more
 *   │ ▼ no host takes it, or a person cancelled its move
 *   └ left (until the drain is begun again, or the host that it wants is back while the drain still runs)
 * ```
 */
export type StayPhase = "waiting" | "asked" | "moving" | "moved" | "stopped" | "left";

/** One VM that is, or was, on the host. */
export interface Stay {
  readonly vm: VmId;
  readonly phase: StayPhase;
  /** Where it moves, has moved, or was tried last. */
  readonly to: HostId | null;
  readonly migration: MigrationId | null;
  /** Why it waits or was left. */
  readonly reason: Reason | null;
  readonly detail: string;
  /** Hosts that have failed it since the drain began. */
  readonly tried: ReadonlyMap<HostId, Failure>;
  /** How often the move to a host has failed for a connection that was lost. */
  readonly breaks: ReadonlyMap<HostId, number>;
  /** Connections that its source and its target had lost when it was asked for. */
  readonly losses: number;
  /** It was refused for something that passes: not again before the next tick. */
  readonly paused: boolean;
  /** It was left for want of a host that is not connected. */
  readonly absent: boolean;
}

export interface Drain {
  readonly host: HostId;
  /** Where VMs may go; empty for any host that they list. */
  readonly to: readonly HostId[];
  /** Moves at once. */
  readonly limit: number;
  readonly order: Order;
  /** How each VM moves otherwise than configured. */
  readonly wishes: MoveWishes;
  readonly actor: string;
  readonly startedAt: Millis;
  readonly phase: RunPhase;
  /** Interrupted so that what moves is cancelled: also what was asked for by then, and begins to move only now. */
  readonly cancelling: boolean;
  /** In the order in which they go. */
  readonly stays: readonly Stay[];
}

/** The host takes no VMs in any of these. */
export type RunPhase = "running" | "interrupted" | "ended";

export interface Wish {
  readonly to: readonly HostId[];
  readonly limit: number;
  readonly order: Order;
  readonly wishes: MoveWishes;
  readonly actor: string;
}

export type DrainEvent =
  /** Something may have changed. */
  | { readonly type: "look" }
  /** Time has passed. */
  | { readonly type: "tick" }
  | { readonly type: "begin"; readonly wish: Wish; readonly now: Millis }
  | { readonly type: "interrupt"; readonly cancel: boolean }
  | News;

/** What became of one move. */
export type News =
  /** To a move that was asked for. It may come after that move's end, when another one has been asked for: `to` tells them apart. */
  | { readonly type: "answered"; readonly vm: VmId; readonly to: HostId; readonly reason: Reason; readonly detail: string }
  /** `inherited`: begun by an earlier process of the home agent, whose end may be all that it failed of. */
  | { readonly type: "moved"; readonly vm: VmId; readonly to: HostId; readonly result: MigrationOutcome; readonly reason: Reason; readonly detail: string; readonly inherited?: boolean };

export interface Step {
  readonly drain: Drain;
  readonly moves: readonly { readonly vm: VmId; readonly to: HostId }[];
  readonly cancels: readonly MigrationId[];
}

/** Refusals that say nothing about the host that was asked for. */
const PASSING: ReadonlySet<Reason> = new Set<Reason>(["already-moving", "start-pending", "stop-pending", "store-unavailable", "too-many", "shutting-down"]);

/** Moves that fail since a host was not to be reached. */
const UNREACHED: ReadonlySet<Reason> = new Set<Reason>(["host-gone", "source-gone", "target-gone"]);
/** A lost connection says little about a host; so many of them, each in the midst of the same VM's move, do. */
const MAX_BREAKS = 3;

const NEW: Omit<Stay, "vm"> = { phase: "waiting", to: null, migration: null, reason: null, detail: "", tried: new Map(), breaks: new Map(), losses: 0, paused: false, absent: false };

/** A VM of which nothing is known but that it is on the host. */
export function newStay(vm: VmId): Stay {
  return { vm, ...NEW };
}

/** A drain that begins now; `step` with an event `begin` makes it run. */
export function newDrain(host: HostId, wish: Wish, now: Millis): Drain {
  return { host, ...wish, startedAt: now, phase: "interrupted", cancelling: false, stays: [] };
}

/**
 * One host that is being emptied. What is true of the VMs comes with every event, so that none can be missed for ever.
 *
 * ```
 *               begin                        nothing waits or moves
 *  interrupted ◀─────▶ running ───────────────────────────────────────▶ ended
 *        │   interrupt    ▲                                               │
 *        │                └──────────────────── begin ────────────────────┘
 *        └ what moves goes on to its end
 * ```
 */
export function step(before: Drain, event: DrainEvent, scene: Scene): Step {
  const drain = observe(onEvent(before, event, scene), scene);
  const cancels = drain.cancelling ? cancelled(before, drain, event.type === "interrupt" && event.cancel) : [];
  if (drain.phase !== "running") return { drain, moves: [], cancels };
  return { ...plan(drain, scene), cancels };
}

/** Moves to be cancelled: `all` that are under way, or those that this drain had asked for and that began since. What a person moves by hand meanwhile is his. */
function cancelled(before: Drain, { stays }: Drain, all: boolean): readonly MigrationId[] {
  const asked = new Set(before.stays.flatMap(({ vm, phase, migration }) => (phase === "asked" || (phase === "moving" && migration === null) ? [vm] : [])));
  return stays.flatMap(({ vm, phase, migration }) => (phase === "moving" && migration !== null && (all || asked.has(vm)) ? [migration] : []));
}

/** News of which each was true before the scene was: they are heard all before the next `step` looks at the scene, or it would contradict what has still to be told. */
export function hear(drain: Drain, news: readonly News[], scene: Scene): Drain {
  if (news.length === 0) return drain;
  const stays = new Map(drain.stays.map((stay) => [stay.vm, stay]));
  for (const each of news) {
    const stay = stays.get(each.vm);
    const losses = lossesOf(drain.host, each.to, scene);
    if (stay !== undefined) stays.set(each.vm, each.type === "answered" ? answered(stay, each, losses) : ended(stay, each, losses));
  }
  return { ...drain, stays: [...stays.values()] };
}

/** Moves that it has asked for and of which nothing is known yet. */
export function askedOf(drain: Drain): (readonly [VmId, HostId])[] {
  return drain.stays.flatMap(({ phase, vm, to }) => (phase === "asked" && to !== null ? [[vm, to] as const] : []));
}

/** The only place where a drain changes its phase. */
function changeState(drain: Drain, phase: RunPhase): Drain {
  return { ...drain, phase };
}

function onEvent(drain: Drain, event: DrainEvent, scene: Scene): Drain {
  switch (event.type) {
    case "look": return drain;
    case "tick": return { ...drain, stays: drain.stays.map((stay) => (stay.paused ? { ...stay, paused: false } : stay)) };
    case "begin": return begin(drain, event.wish, event.now, scene);
    case "interrupt": {
      const interrupted = drain.phase === "running" ? changeState(drain, "interrupted") : drain;
      return { ...interrupted, cancelling: interrupted.cancelling || event.cancel };
    }
    case "answered":
    case "moved": return hear(drain, [event], scene);
  }
}

/** Again and again: the wish is the newest one's, and what was left is tried once more. */
function begin(drain: Drain, wish: Wish, now: Millis, scene: Scene): Drain {
  const underWay = drain.stays.filter((stay) => stay.phase === "asked" || stay.phase === "moving");
  const known = new Map(underWay.map((stay) => [stay.vm, stay]));
  const there = scene.at.get(drain.host) ?? [];
  const here = new Set(there.map(({ vm }) => vm));
  const elsewhere = underWay.flatMap(({ vm }) => (here.has(vm) ? [] : (scene.vms.get(vm) ?? [])));
  const stays = inOrder([...there, ...elsewhere], wish.order).map(({ vm }) => known.get(vm) ?? newStay(vm));
  const kept = new Set(stays.map(({ vm }) => vm));
  const gone = drain.phase === "running" ? drain.stays.filter(({ vm }) => !kept.has(vm)) : [];
  return changeState({ ...drain, ...wish, cancelling: false, startedAt: drain.phase === "running" ? drain.startedAt : now, stays: [...gone, ...stays] }, "running");
}

function inOrder(vms: SceneVm[], order: Order): SceneVm[] {
  const byName = (a: SceneVm, b: SceneVm): number => (a.vm < b.vm ? -1 : 1);
  switch (order) {
    case "config": return vms;
    case "name": return vms.sort(byName);
    case "smallest": return vms.sort((a, b) => a.memoryBytes - b.memoryBytes || byName(a, b));
    case "largest": return vms.sort((a, b) => b.memoryBytes - a.memoryBytes || byName(a, b));
  }
}

/** Of the two hosts between which a VM moves. */
function lossesOf(from: HostId, to: HostId | null, scene: Scene): number {
  return (scene.hosts.get(from)?.losses ?? 0) + (to === null ? 0 : (scene.hosts.get(to)?.losses ?? 0));
}

function answered(stay: Stay, { to, reason, detail }: { readonly to: HostId; readonly reason: Reason; readonly detail: string }, losses: number): Stay {
  if (stay.phase !== "asked" || stay.to !== to) return stay;
  if (reason === "accepted") return { ...stay, phase: "moving" };
  if (PASSING.has(reason)) return { ...stay, phase: "waiting", reason, detail, paused: true };
  return failed(stay, reason, detail, losses);
}

function ended(stay: Stay, event: News & { readonly type: "moved" }, losses: number): Stay {
  if (stay.phase !== "asked" && stay.phase !== "moving") return stay;
  // Where it is now, the scene says.
  if (event.result === "completed") return { ...stay, phase: "waiting", to: event.to, reason: null, detail: "" };
  if (event.result === "cancelled") return { ...stay, phase: "left", to: event.to, reason: event.reason, detail: event.detail };
  if (event.result === "failed" && event.inherited === true) return { ...stay, phase: "waiting", migration: null, reason: null, detail: "" };
  return failed({ ...stay, to: event.to }, event.reason, event.detail, losses);
}

/**
 * The host that it was to go to has failed it: another one may take it. But a connection that was lost meanwhile, the source's or the target's, is what it failed of: when both are
 * there again the same host is asked again, a few times. `losses`: how many there are by now.
 */
function failed(stay: Stay, reason: Reason, detail: string, losses: number): Stay {
  const next: Stay = { ...stay, phase: "waiting", migration: null, reason, detail };
  if (stay.to === null) return next;
  const breaks = (stay.breaks.get(stay.to) ?? 0) + 1;
  if ((UNREACHED.has(reason) || losses > stay.losses) && breaks < MAX_BREAKS) return { ...next, breaks: new Map([...stay.breaks, [stay.to, breaks]]), paused: true };
  return { ...next, tried: new Map([...stay.tried, [stay.to, { reason, detail }]]) };
}

/** What is true of each VM takes the place of what was thought of it; VMs that have come to the host are taken in. */
function observe(drain: Drain, scene: Scene): Drain {
  const known = new Set(drain.stays.map((stay) => stay.vm));
  const come = (scene.at.get(drain.host) ?? []).filter(({ vm }) => !known.has(vm)).map(({ vm }) => newStay(vm));
  return { ...drain, stays: [...drain.stays, ...come].map((stay) => seen(stay, scene.vms.get(stay.vm), drain.host, scene)) };
}

/** It is on the host, comes to it or leaves it. */
function isAt(vm: SceneVm, host: HostId): boolean {
  return vm.owner === host || vm.starting === host || vm.move?.from === host || vm.move?.to === host;
}

function seen(stay: Stay, vm: SceneVm | undefined, host: HostId, scene: Scene): Stay {
  if (vm === undefined) return { ...stay, phase: "stopped", migration: null, reason: "unknown-vm", detail: "it is not configured any more" };
  if (vm.phase === "lost" && isAt(vm, host)) return left(stay, "released-unknown", `${vm.vm} is LOST: careof resolve ${vm.vm} HOST`);
  if (vm.move !== null && vm.move.from === host) {
    const losses = stay.phase === "moving" || stay.phase === "asked" ? stay.losses : lossesOf(host, vm.move.to, scene);
    return { ...stay, phase: "moving", to: vm.move.to, migration: vm.move.id, reason: null, detail: "", losses, absent: false };
  }
  if (vm.move !== null && vm.move.to === host) return waits(stay, "already-moving", `it comes from ${vm.move.from}`);
  if (vm.owner !== host) {
    if (vm.starting === host) return waits(stay, "start-pending", "it is being started");
    if (vm.owner === null || vm.phase === "none") return { ...stay, phase: "stopped", migration: null, reason: null, detail: "" };
    return { ...stay, phase: "moved", to: vm.owner, reason: null, detail: "" };
  }
  if (!vm.movable) return left(stay, "unsupported", "something else moves it (driver external)");
  if (vm.stopping) return waits(stay, "stop-pending", "it is being stopped");
  // Silent: its host says more when it is heard again, or it expires.
  if (vm.phase === "stale" || (vm.phase === "expired" && scene.hosts.get(host)?.returning === true)) return waits(stay, "not-bound", `it is ${vm.phase}`);
  if (vm.phase === "expired" || vm.phase === "none") return { ...left(stay, "not-bound", `it is ${vm.phase}`), absent: true };
  switch (stay.phase) {
    case "moving": return failed(stay, "migrate-failed", "", lossesOf(host, stay.to, scene));
    case "moved":
    case "stopped": return { ...stay, ...NEW };
    case "waiting": return PASSING.has(stay.reason ?? "accepted") && !stay.paused ? { ...stay, reason: null, detail: "" } : stay;
    case "asked":
    case "left": return stay;
  }
}

function left(stay: Stay, reason: Reason, detail: string): Stay {
  return { ...stay, phase: "left", migration: null, reason, detail, absent: false };
}

/** For something that will be over. */
function waits(stay: Stay, reason: Reason, detail: string): Stay {
  return { ...stay, phase: "waiting", migration: null, reason, detail, paused: false, absent: false };
}

/** Whether a place is to be looked for. */
function wantsPlace(stay: Stay, vm: SceneVm): boolean {
  return (stay.phase === "waiting" || (stay.phase === "left" && stay.absent)) && vm.phase === "bound" && !stay.paused && !PASSING.has(stay.reason ?? "accepted");
}

/** As many moves as the limit allows, in order; who finds no place is left, or waits for a host that may come back. Over when nothing waits or moves any more. */
function plan(drain: Drain, scene: Scene): Omit<Step, "cancels"> {
  const load = withPromised(scene.load, [...scene.promised, ...askedOf(drain)], scene);
  const add = (host: HostId, stay: Stay): void => { load.set(host, (load.get(host) ?? 0) + (scene.vms.get(stay.vm)?.memoryBytes ?? 0)); };
  const moves: { readonly vm: VmId; readonly to: HostId }[] = [];
  const source = scene.hosts.get(drain.host);
  const sourceAway: NoPlace | null = source?.connected === true ? null : { host: null, reason: "host-gone", detail: `${drain.host} is not connected`, absent: true, returning: source?.returning === true };
  let active = drain.stays.filter(({ phase }) => phase === "asked" || phase === "moving").length;
  const stays = drain.stays.map((stay): Stay => {
    const vm = scene.vms.get(stay.vm);
    if (vm === undefined || !wantsPlace(stay, vm) || active >= drain.limit) return stay;
    const placed = sourceAway ?? place(vm, drain.host, drain.to, stay.tried, scene, load);
    if (placed.host === null) return placed.returning ? waits(stay, placed.reason, placed.detail) : { ...left(stay, placed.reason, placed.detail), absent: placed.absent };
    active += 1;
    add(placed.host, stay);
    moves.push({ vm: stay.vm, to: placed.host });
    return { ...stay, phase: "asked", to: placed.host, reason: null, detail: "", losses: lossesOf(drain.host, placed.host, scene), absent: false };
  });
  const over = stays.every((stay) => stay.phase === "moved" || stay.phase === "stopped" || stay.phase === "left");
  const next = { ...drain, stays };
  return { drain: over ? changeState(next, "ended") : next, moves };
}
