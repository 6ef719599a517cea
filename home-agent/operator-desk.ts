import { CareofError } from "../model/errors.js";
import { parseMigrationId, type HostId, type Millis, type VmId } from "../model/ids.js";
import type { Reason } from "../model/reasons.js";
import { hasLocalDisks, requireAbility } from "./abilities.js";
import type { ApiEvent, GivenBackView, HistoryView, HostView, MigrationView, Operations, ReloadView, VmView } from "./api/operations.js";
import type { DrainView, DrainWish } from "./api/drain-operations.js";
import type { BindingCache, Decided } from "./bindings/binding-cache.js";
import type { VmConfig } from "./config.js";
import type { Drains } from "./drains/drains.js";
import type { EventBus } from "./events.js";
import type { Migration } from "./handover/migration.js";
import type { MovePlan, MoveWishes } from "./handover/move-plan.js";
import type { Hosts } from "./hosts.js";
import type { MigrationBook } from "./migrations.js";
import { viewHistory, viewHost, viewVm } from "./views.js";
import type { Waiters } from "./waiters.js";

/** Reasons that may be gone by themselves. */
const PASSING: ReadonlySet<Reason> = new Set<Reason>(["store-unavailable", "too-many", "host-gone", "start-pending", "stop-pending", "timed-out", "already-moving", "shutting-down"]);

export interface OperatorDeskOptions {
  readonly hosts: Hosts;
  readonly cache: BindingCache;
  readonly waiters: Waiters;
  readonly book: MigrationBook;
  readonly drains: Drains;
  readonly events: EventBus;
  /** How long an operator may wait for the end of each; beyond what the thing itself may take. */
  readonly limits: () => { readonly start: Millis; readonly stop: Millis; readonly resolve: Millis; readonly migration: (plan: MovePlan | null) => Millis };
  readonly notReady: () => string | null;
  readonly reload: () => Promise<ReloadView>;
}

/** What operators can see and want, in terms of the cache. */
export class OperatorDesk implements Operations {
  readonly #options: OperatorDeskOptions;

  constructor(options: OperatorDeskOptions) {
    this.#options = options;
  }

  vms(): readonly VmView[] {
    return [...this.#options.hosts.vms].flatMap((vm) => this.#view(vm) ?? []);
  }

  vm(name: VmId): VmView {
    const view = this.#view(this.#config(name));
    if (view === null) throw unknownVm(name);
    return view;
  }

  history(name: VmId): readonly HistoryView[] {
    return viewHistory(this.#options.cache.history(this.#config(name).name));
  }

  hosts(): readonly HostView[] {
    const { cache, hosts, drains } = this.#options;
    const free = drains.memoryFree();
    const owned = new Map<HostId, string[]>();
    for (const { binding } of cache.states()) {
      if (binding.owner === null) continue;
      const list = owned.get(binding.owner);
      if (list === undefined) owned.set(binding.owner, [binding.vm]);
      else list.push(binding.vm);
    }
    return [...hosts.hosts].map((host) => viewHost(host.name, hosts, owned.get(host.name) ?? [], free.get(host.name) ?? null));
  }

  migrations(): readonly MigrationView[] {
    return this.#options.book.all();
  }

  async reload(): Promise<ReloadView> {
    return this.#options.reload();
  }

  migration(id: string): MigrationView {
    const view = this.#options.book.get(parseMigrationId(id).id);
    if (view === null) throw unknownMigration(id);
    return view;
  }

  async migrate(vm: VmId, host: HostId, actor: string, wishes: MoveWishes = {}): Promise<MigrationView> {
    this.#known(vm, host);
    this.#takesVms(host);
    const { cache, hosts } = this.#options;
    const owner = cache.state(vm)?.binding.owner ?? null;
    const source = owner === null ? null : hosts.session(owner);
    if (hosts.unreachable(vm, owner)) throw new CareofError("guest-unreachable", `${vm} runs on ${owner ?? "no host"} in a QEMU whose monitor does not answer: it cannot move until it does`, { retryable: true });
    const sessions = [source, hosts.session(host)].filter((session) => session !== null);
    for (const session of sessions) {
      if (hasLocalDisks(this.#config(vm))) requireAbility(session, "localDisks");
      if (wishes.postcopy === true) requireAbility(session, "postcopy");
    }
    const sourceCanLead = source?.capabilities.canLead ?? false;
    // Nothing of a guest's own disks goes by postcopy, and nothing goes to or from a host that is not updated yet: only who asks for it is refused.
    const cannot = hasLocalDisks(this.#config(vm)) || sessions.some(({ capabilities }) => !capabilities.postcopy);
    const possible = cannot && wishes.postcopy === undefined ? { ...wishes, postcopy: false } : wishes;
    const decided = await cache.dispatch(vm, { type: "migrate", host, actor, wishes: possible, sourceConnected: source !== null, targetConnected: hosts.connected(host), targetLife: hosts.session(host)?.life ?? null, sourceCanLead });
    accept(decided);
    const id = cache.state(vm)?.migration?.id;
    if (id === undefined) throw new CareofError("internal", `the migration of ${vm} was over before it was told`);
    return this.migration(id);
  }

  async migrationEnd(id: string): Promise<MigrationView> {
    const view = this.migration(id);
    if (view.result !== null) return view;
    const { id: migration, vm } = parseMigrationId(id);
    const { cache, waiters, limits } = this.#options;
    const moving = (): Migration | null => cache.state(vm)?.migration ?? null;
    let seen = moving()?.phaseAt ?? null;
    // The copy of disks has no limit but that it goes on: each word of it sets the phase's time anew.
    const goesOn = (): boolean => {
      const now = moving();
      if (now?.id !== migration || now.phaseAt === seen) return false;
      seen = now.phaseAt;
      return true;
    };
    await waiters.finished(migration, limits().migration(moving()?.plan ?? null), goesOn);
    return this.migration(id);
  }

  async cancel(id: string): Promise<MigrationView> {
    this.migration(id);
    const { id: migration, vm } = parseMigrationId(id);
    accept(await this.#options.cache.dispatch(vm, { type: "cancel", migration }));
    return this.migration(id);
  }

  async start(vm: VmId, host: HostId, actor: string): Promise<VmView> {
    this.#known(vm, host);
    if (this.#config(vm).adopt.has(host)) throw new CareofError("not-permitted", `${vm} is adopted on ${host}, where somebody else starts it: careof adopt ${vm} ${host}`);
    return this.#begin(vm, host, actor);
  }

  async adopt(vm: VmId, host: HostId, actor: string): Promise<VmView> {
    this.#known(vm, host);
    if (!this.#config(vm).adopt.has(host)) throw new CareofError("not-permitted", `the configuration does not say where ${vm} is on ${host}: vms[].qemu.adopt`);
    return this.#begin(vm, host, actor);
  }

  async #begin(vm: VmId, host: HostId, actor: string): Promise<VmView> {
    this.#takesVms(host);
    const { cache, waiters, hosts, limits } = this.#options;
    accept(await waiters.ended("start", vm, limits().start, () => cache.dispatch(vm, { type: "start", host, actor, connected: hosts.connected(host) })));
    return this.vm(vm);
  }

  async stop(vm: VmId, { force }: { readonly force: boolean }): Promise<VmView> {
    this.#config(vm);
    const { cache, waiters, hosts, limits } = this.#options;
    const state = cache.state(vm);
    // In a move it can only be given up, and its target is who would have it.
    const owner = state?.migration?.to ?? state?.binding.owner ?? null;
    accept(await waiters.ended("stop", vm, limits().stop, () => cache.dispatch(vm, { type: "stop", force, ownerConnected: hosts.connected(owner) })));
    return this.vm(vm);
  }

  async giveBack(vm: VmId): Promise<GivenBackView> {
    this.#config(vm);
    const { cache, waiters, hosts, limits } = this.#options;
    const owner = cache.state(vm)?.binding.owner ?? null;
    const ended = await waiters.ended("stop", vm, limits().stop, () => cache.dispatch(vm, { type: "stop", force: false, giveBack: true, ownerConnected: hosts.connected(owner) }));
    accept(ended);
    return { vm, host: owner, detail: ended.detail };
  }

  async resolve(vm: VmId, host: HostId, { force }: { readonly force: boolean }, actor: string): Promise<VmView> {
    this.#known(vm, host);
    const { cache, hosts, waiters, limits } = this.#options;
    const decide = (): Promise<Decided> => cache.dispatch(vm, { type: "resolve", host, actor, force, connected: hosts.connected(host) });
    if (cache.state(vm)?.migration?.from !== host) {
      accept(await decide());
      return this.vm(vm);
    }
    // The target has it by the decision; the source is only asked, and says whether it does.
    accept(await waiters.ended("resolve", vm, limits().resolve, decide));
    const view = this.vm(vm);
    if (view.host !== host) throw new CareofError("already-running", `${vm} is in care of ${view.host ?? "nobody"}: that was said before ${host} had taken it back`);
    return view;
  }

  drain(host: HostId): DrainView {
    this.#host(host);
    return this.#options.drains.view(host);
  }

  async beginDrain(host: HostId, wish: DrainWish, actor: string): Promise<DrainView> {
    for (const each of [host, ...(wish.to ?? [])]) this.#host(each);
    if (wish.to?.includes(host) === true) throw new CareofError("not-permitted", `the VMs of ${host} cannot move to ${host}`);
    return this.#options.drains.begin(host, wish, actor);
  }

  async interruptDrain(host: HostId, { cancel }: { readonly cancel: boolean }): Promise<DrainView> {
    this.#host(host);
    return this.#options.drains.interrupt(host, cancel);
  }

  async undrain(host: HostId): Promise<HostView> {
    this.#host(host);
    await this.#options.drains.end(host);
    return viewHost(host, this.#options.hosts, this.#options.cache.ownedBy(host));
  }

  subscribe(listener: (event: ApiEvent) => void): () => void {
    return this.#options.events.subscribe(listener);
  }

  notReady(): string | null {
    return this.#options.notReady();
  }

  #config(name: VmId): VmConfig {
    const vm = this.#options.hosts.vm(name);
    if (vm === null) throw unknownVm(name);
    return vm;
  }

  #view(vm: VmConfig): VmView | null {
    const state = this.#options.cache.state(vm.name);
    return state === null ? null : viewVm(state, vm, this.#options.hosts);
  }

  #known(vm: VmId, host: HostId): void {
    this.#config(vm);
    this.#host(host);
  }

  #takesVms(host: HostId): void {
    if (this.#options.hosts.draining(host)) throw new CareofError("host-draining", `${host} is being drained, and takes no VMs until careof undrain ${host}`);
  }

  #host(host: HostId): void {
    if (this.#options.hosts.host(host) === null) throw new CareofError("unknown-host", `there is no host "${host}"`);
  }
}

function unknownVm(name: VmId): CareofError {
  return new CareofError("unknown-vm", `there is no VM "${name}"`);
}

function unknownMigration(id: string): CareofError {
  return new CareofError("unknown-migration", `there is no migration "${id.slice(0, 100)}" since the home agent began`);
}

function accept({ reason, detail }: Pick<Decided, "reason" | "detail">): void {
  if (reason !== "accepted") throw new CareofError(reason, detail === "" ? reason : detail, { retryable: PASSING.has(reason) });
}
