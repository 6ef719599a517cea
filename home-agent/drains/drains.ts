import type { Clock, Timer } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { hostId, millis, vmId, type HostId, type VmId } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";
import { isReason, type Reason } from "../../model/reasons.js";
import type { DrainView, DrainWish } from "../api/drain-operations.js";
import type { ApiEvent } from "../api/operations.js";
import type { BindingCache } from "../bindings/binding-cache.js";
import type { EventBus } from "../events.js";
import type { MoveWishes } from "../handover/move-plan.js";
import type { Hosts } from "../hosts.js";
import type { Store } from "../store/store.js";
import { viewHost } from "../views.js";
import { askedOf, hear, newDrain, step, type Drain, type DrainEvent, type News, type Wish } from "./drain.js";
import { summarize, viewDrain } from "./drain-views.js";
import { durableDrain, restoreDrain } from "./durable-drain.js";
import { freeOn, sceneOf, withPromised, type Scene, type SceneVm } from "./placement.js";

/** While a drain runs it looks again at least so often, for what no event tells. */
const TICK_MS = millis(1000);
/** Many events make one look. */
const LOOK_MS = millis(50);
/** A look goes through all VMs: of the time that the last one took, so many times pass before the next. */
const LOOK_SHARE = 20;
/** Host agents connect again at least every 5 s, and are back a little later when they, their network or the home agent were restarted: so long a drain waits for one. */
const RETURN_MS = 60_000;
const KEY = "drain/";

export interface DrainsOptions {
  readonly store: Store;
  readonly fence: number;
  readonly clock: Clock;
  readonly log: Logger;
  readonly hosts: Hosts;
  readonly cache: BindingCache;
  readonly events: EventBus;
  readonly rules: () => { readonly limit: number; readonly reserveBytes: number };
  /** Resolves when the move has begun. @throws CareofError with the reason */
  readonly migrate: (vm: VmId, host: HostId, actor: string, wishes: MoveWishes) => Promise<unknown>;
  /** @throws CareofError with the reason */
  readonly cancel: (migration: string) => Promise<unknown>;
}

interface Entry {
  drain: Drain;
  revision: number;
  /** The sum that was told last. */
  told: string;
}

/** The hosts that are drained: their marks are in the store, their drains are driven here. */
export class Drains {
  readonly #options: DrainsOptions;
  readonly #entries = new Map<HostId, Entry>();
  /** What is asked of one host happens in order: of two wishes the second sees what the first has written. */
  readonly #turns = new Map<HostId, Promise<unknown>>();
  readonly #unsubscribe: () => void;
  readonly #startedAt: number;
  /** What became of moves, by the host that they leave, before its drain has been told. */
  readonly #news = new Map<HostId, News[]>();
  /** Migrations that were under way when this process began. */
  readonly #inherited = new Set<string>();
  #look: Timer | null = null;
  #lookTook = 0;
  #tick: Timer | null = null;
  #closed = false;

  constructor(options: DrainsOptions) {
    this.#options = options;
    this.#startedAt = options.clock.monotonic();
    this.#unsubscribe = options.events.subscribe((event) => { this.#heard(event); });
  }

  /** Marks the hosts that were being drained when the process ended, and goes on with what was running. @throws CareofError `store-corrupt` */
  restore(): void {
    const { store, hosts, log, cache } = this.#options;
    for (const { migration } of cache.states()) if (migration !== null) this.#inherited.add(migration.id);
    for (const { key, value, revision } of store.entries(KEY)) {
      const host = hostId(key.slice(KEY.length));
      const drain = restoreDrain(host, value);
      this.#entries.set(host, { drain, revision, told: "" });
      hosts.setDraining(host, true);
      log.info({ host, state: drain.phase, vms: drain.stays.length }, "the host is drained still");
    }
    this.#advance([...this.#entries.keys()], { type: "look" });
  }

  /** Of a host that is drained, as it is now. @throws CareofError `not-draining` */
  view(host: HostId): DrainView {
    const entry = this.#entry(host);
    this.#advance([host], { type: "look" });
    return viewDrain(entry.drain);
  }

  /** @throws CareofError `store-unavailable` */
  async begin(host: HostId, wanted: DrainWish, actor: string): Promise<DrainView> {
    return this.#inTurn(host, async () => {
      const { hosts, clock, log, rules } = this.#options;
      const known = this.#entries.get(host);
      const before = known?.drain;
      const wish: Wish = {
        to: wanted.to ?? before?.to ?? [], limit: wanted.limit ?? before?.limit ?? rules().limit, order: wanted.order ?? before?.order ?? "config", wishes: { ...before?.wishes, ...wanted.wishes }, actor,
      };
      const now = clock.now();
      // No VM comes from now on, so that none is overlooked; taken back if the store cannot keep it.
      hosts.setDraining(host, true);
      const begun = step(before ?? newDrain(host, wish, now), { type: "begin", wish, now }, this.#scene()).drain;
      try {
        const revision = await this.#write(host, known?.revision ?? 0, begun);
        this.#entries.set(host, { drain: this.#entries.get(host)?.drain ?? newDrain(host, wish, now), revision, told: "" });
      } catch (thrown) {
        hosts.setDraining(host, known !== undefined);
        throw thrown;
      }
      log.info({ host, to: wish.to, limit: wish.limit, order: wish.order, wishes: wish.wishes, vms: begun.stays.length, actor }, "the host is drained");
      this.#publishHost(host);
      this.#advance([host], { type: "begin", wish, now });
      return viewDrain(this.#entry(host).drain);
    });
  }

  /** @throws CareofError `not-draining`, `store-unavailable` */
  async interrupt(host: HostId, cancel: boolean): Promise<DrainView> {
    return this.#inTurn(host, async () => {
      const entry = this.#entry(host);
      if (entry.drain.phase === "running") entry.revision = await this.#write(host, entry.revision, { ...entry.drain, phase: "interrupted" });
      this.#options.log.info({ host, cancel }, "the drain is interrupted");
      this.#advance([host], { type: "interrupt", cancel });
      return viewDrain(entry.drain);
    });
  }

  /** False when the host was not drained. @throws CareofError `store-unavailable` */
  async end(host: HostId): Promise<boolean> {
    return this.#inTurn(host, async () => {
      const { hosts, events, log } = this.#options;
      const entry = this.#entries.get(host);
      if (entry === undefined) return false;
      await this.#write(host, entry.revision, null);
      this.#entries.delete(host);
      this.#news.delete(host);
      hosts.setDraining(host, false);
      log.info({ host }, "the host takes VMs again");
      events.publish({ event: "drain", data: { ...summarize(entry.drain), state: "undrained" } });
      this.#publishHost(host);
      return true;
    });
  }

  /** Bytes that are left for VMs on each host, as a drain counts them: less than 0 where more is there than fits; `null` where the host has not said what it has. Goes through all VMs. */
  memoryFree(): ReadonlyMap<HostId, number | null> {
    const scene = this.#scene();
    const load = withPromised(scene.load, [...this.#entries.values()].flatMap(({ drain }) => askedOf(drain)), scene);
    return new Map([...scene.hosts.keys()].map((host) => {
      const free = freeOn(host, scene, load);
      return [host, Number.isFinite(free) ? free : null] as const;
    }));
  }

  close(): void {
    this.#closed = true;
    this.#unsubscribe();
    this.#look?.cancel();
    this.#tick?.cancel();
  }

  #entry(host: HostId): Entry {
    const entry = this.#entries.get(host);
    if (entry === undefined) throw new CareofError("not-draining", `${host} is not being drained`);
    return entry;
  }

  async #inTurn<T>(host: HostId, run: () => Promise<T>): Promise<T> {
    // How the one before ended is its own caller's affair.
    const turn = (this.#turns.get(host) ?? Promise.resolve()).then(run, run);
    this.#turns.set(host, turn);
    try {
      return await turn;
    } finally {
      if (this.#turns.get(host) === turn) this.#turns.delete(host);
    }
  }

  /** Returns the new revision. A record that was removed keeps its revision in the store, which says which. */
  async #write(host: HostId, revision: number, drain: Drain | null): Promise<number> {
    const { store, fence } = this.#options;
    const change = { key: `${KEY}${host}`, value: drain === null ? null : durableDrain(drain) };
    let answer = await store.commit(revision, fence, change);
    if (answer.result === "conflict" && !answer.fenced) answer = await store.commit(answer.revision, fence, change);
    if (answer.result === "ok") return answer.revision;
    throw new CareofError("store-unavailable", answer.result === "unavailable" ? answer.why : "another home agent has taken the store over", { retryable: true });
  }

  #heard(event: ApiEvent): void {
    if (this.#entries.size === 0) return;
    if (event.event === "migration" && event.data.result !== null) {
      const { vm, from, to, result, reason, detail } = event.data;
      this.#tell(hostId(from), { type: "moved", vm: vmId(vm), to: hostId(to), result, reason: reasonOf(reason ?? ""), detail: detail ?? "", inherited: this.#inherited.delete(event.data.migration) });
    } else if (event.event === "migration" && event.data.progress !== null) return;
    if (event.event !== "drain") this.#lookSoon();
  }

  /** Heard at the next look: whoever else hears of it shall have heard it before he hears what the drain makes of it. */
  #tell(host: HostId, news: News): void {
    if (!this.#entries.has(host)) return;
    const list = this.#news.get(host);
    if (list === undefined) this.#news.set(host, [news]);
    else list.push(news);
    this.#lookSoon();
  }

  #lookSoon(): void {
    if (this.#closed || this.#live().length === 0) return;
    this.#look ??= this.#options.clock.after("look at drains", millis(Math.max(LOOK_MS, LOOK_SHARE * this.#lookTook)), () => {
      this.#look = null;
      const { clock } = this.#options;
      const before = clock.monotonic();
      this.#advance(this.#live(), { type: "look" });
      this.#lookTook = clock.monotonic() - before;
    });
  }

  /** Hosts whose drains something can still happen to. */
  #live(): HostId[] {
    return [...this.#entries].flatMap(([host, { drain }]) => (drain.phase === "running" || this.#news.has(host) || drain.stays.some(({ phase }) => phase === "asked" || phase === "moving") ? [host] : []));
  }

  /** All of them look at the same scene; each knows what those before it have asked for. */
  #advance(hosts: readonly HostId[], event: DrainEvent): void {
    if (this.#closed || hosts.length === 0) return;
    const scene = this.#scene();
    for (const [host, news] of this.#news) {
      const entry = this.#entries.get(host);
      if (entry !== undefined) entry.drain = hear(entry.drain, news, scene);
    }
    this.#news.clear();
    for (const host of hosts) this.#step(host, event, scene);
    this.#armTick();
  }

  #step(host: HostId, event: DrainEvent, scene: Scene): void {
    const entry = this.#entries.get(host);
    if (entry === undefined) return;
    const before = entry.drain;
    const promised = new Map([...this.#entries].flatMap(([other, { drain }]) => (other === host ? [] : askedOf(drain))));
    const { drain, moves, cancels } = step(before, event, { ...scene, promised });
    entry.drain = drain;
    for (const { vm, to } of moves) this.#move(drain, vm, to);
    for (const migration of cancels) this.#cancel(migration);
    const summary = summarize(drain);
    const told = JSON.stringify(summary);
    if (event.type === "begin" || told !== entry.told) this.#options.events.publish({ event: "drain", data: summary });
    entry.told = told;
    if (before.phase === "running" && drain.phase === "ended") this.#ended(host, entry);
  }

  #ended(host: HostId, entry: Entry): void {
    const { log } = this.#options;
    for (const { vm, reason, detail } of entry.drain.stays.filter((stay) => stay.phase === "left")) log.warn({ host, vm, reason, detail }, "a VM was left on a drained host");
    log.info(summarize(entry.drain), "the drain has ended");
    // If it cannot be written, the next process finds a drain that has nothing left to do.
    this.#inTurn(host, async () => {
      if (this.#entries.get(host) === entry) entry.revision = await this.#write(host, entry.revision, entry.drain);
    }).catch((thrown: unknown) => { log.warn({ host, code: toCareofError(thrown).code }, "the end of the drain was not written"); });
  }

  #move({ host, actor, wishes }: Drain, vm: VmId, to: HostId): void {
    this.#options.migrate(vm, to, actor, wishes).then(
      () => { this.#tell(host, { type: "answered", vm, to, reason: "accepted", detail: "" }); },
      (thrown: unknown) => {
        const { code, message } = toCareofError(thrown);
        this.#tell(host, { type: "answered", vm, to, reason: reasonOf(code), detail: message });
      },
    );
  }

  #cancel(migration: string): void {
    // Too late for it: it goes on to its end.
    this.#options.cancel(migration).catch((thrown: unknown) => { this.#options.log.info({ migration, code: toCareofError(thrown).code }, "a move could not be cancelled"); });
  }

  #armTick(): void {
    const runs = [...this.#entries.values()].some(({ drain }) => drain.phase === "running");
    if (!runs) {
      this.#tick?.cancel();
      this.#tick = null;
    }
    if (!runs || this.#closed) return;
    this.#tick ??= this.#options.clock.after("drain", TICK_MS, () => {
      this.#tick = null;
      this.#advance(this.#live(), { type: "tick" });
    });
  }

  #publishHost(host: HostId): void {
    const { events, hosts, cache } = this.#options;
    events.publish({ event: "host", data: viewHost(host, hosts, cache.ownedBy(host)) });
  }

  #scene(): Scene {
    const { hosts, cache, clock, rules } = this.#options;
    const vms = new Map<VmId, SceneVm>();
    for (const vm of hosts.vms) {
      const state = cache.state(vm.name);
      if (state === null) continue;
      const { phase, owner, starting, stopping } = state.binding;
      const { migration } = state;
      const move = migration === null ? null : { id: migration.id, from: migration.from, to: migration.to };
      vms.set(vm.name, { vm: vm.name, hosts: vm.hosts, movable: vm.driver === "qemu", memoryBytes: vm.qemu?.memoryBytes ?? 0, phase, owner, starting: starting?.host ?? null, stopping, move });
    }
    const now = clock.monotonic();
    const known = [...hosts.hosts].map(({ name }) => {
      const { lostAt, losses } = hosts.losses(name);
      const connected = hosts.connected(name);
      return [name, { connected, returning: !connected && now - (lostAt ?? this.#startedAt) < RETURN_MS, losses, draining: hosts.draining(name), memoryBytes: hosts.session(name)?.capabilities.memoryBytes ?? 0 }] as const;
    });
    return sceneOf(vms, new Map(known), rules().reserveBytes);
  }
}

function reasonOf(code: string): Reason {
  return isReason(code) ? code : "unspecified";
}
