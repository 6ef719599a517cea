import type { Clock } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis, NEVER_BOUND, type Epoch, type HostId, type VmId } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import { coordinate, vmDeadline } from "../handover/coordinator.js";
import { durable, restore } from "../handover/durable.js";
import type { MoveRules, VmEvent, VmState } from "../handover/migration.js";
import { applyHistory, historySchema, type HistoryChange, type HistoryEntry } from "../history.js";
import type { Effect, Outcome } from "../outcome.js";
import type { Store } from "../store/store.js";
import { unbound, type Now } from "./binding.js";
import { DeadlineRing } from "./deadline-ring.js";

/** What the cache calls when something was decided. All of it is synchronous and must not throw. */
export interface Rim {
  /** `after` holds now: routes, signals and updates follow from it. */
  changed(vm: VmId, before: VmState, after: VmState): void;
  perform(vm: VmId, state: VmState, effect: Effect): void;
  decided(vm: VmId, event: VmEvent, decision: Decided): void;
  failed(vm: VmId, error: CareofError): void;
}

export interface Decided {
  readonly reason: Reason;
  readonly detail: string;
  /** The VM's current epoch. */
  readonly epoch: Epoch;
}

export interface CacheOptions {
  readonly store: Store;
  readonly fence: number;
  readonly clock: Clock;
  readonly rim: Rim;
  /** Of a VM that is configured. */
  readonly rulesOf: (vm: VmId) => MoveRules | null;
  readonly careOfOf: (host: HostId) => string | null;
  /** Events of one VM that may wait while its state is being written. */
  readonly maxWaiting?: number;
}

/** An answer that must not get lost is tried again after so long when the store cannot take it, in milliseconds. */
const STORE_RETRY_MS = millis(250);

interface Entry {
  readonly vm: VmId;
  state: VmState;
  history: readonly HistoryEntry[];
  revision: number;
  writing: boolean;
  waiting: (() => void)[] | null;
}

/**
 * All VMs. Each goes its own way; the events of one are taken in order, and what comes while its state is being written waits until the store has answered.
 * What needs no writing takes effect before `dispatch` returns: a handover's switch waits for nothing.
 */
export class BindingCache {
  readonly #options: CacheOptions;
  readonly #entries = new Map<VmId, Entry>();
  readonly #ring: DeadlineRing<VmId>;
  #fenced = false;
  #closed = false;

  constructor(options: CacheOptions) {
    this.#options = options;
    this.#ring = new DeadlineRing(options.clock, (vm) => { this.#onDeadline(vm); });
  }

  /** @throws CareofError `store-corrupt` */
  restore(vms: Iterable<VmId>): void {
    const wanted = new Set(vms);
    for (const vm of this.#entries.keys()) if (!wanted.has(vm)) this.#forget(vm);
    const missing = new Set([...wanted].filter((vm) => !this.#entries.has(vm)));
    if (missing.size === 0) return;
    const now = this.#now();
    const stored = new Map([...this.#options.store.entries("vm/")].map((row) => [row.key.slice(3), row]));
    const histories = new Map([...this.#options.store.entries("history/")].map((row) => [row.key.slice(8), row.value]));
    for (const vm of missing) {
      const row = stored.get(vm);
      const state: VmState = row === undefined ? { binding: unbound(vm, NEVER_BOUND), migration: null, givenBack: [] } : restore(vm, row.value, now);
      const history = historySchema.safeParse(histories.get(vm) ?? []);
      if (!history.success) throw new CareofError("store-corrupt", `the history of ${vm} cannot be read`);
      this.#entries.set(vm, { vm, state, history: history.data, revision: row?.revision ?? 0, writing: false, waiting: null });
      this.#wantDeadline(vm, state);
    }
  }

  has(vm: VmId): boolean {
    return this.#entries.has(vm);
  }

  state(vm: VmId): VmState | null {
    return this.#entries.get(vm)?.state ?? null;
  }

  /** Oldest first. */
  history(vm: VmId): readonly HistoryEntry[] {
    return this.#entries.get(vm)?.history ?? [];
  }

  *states(): Iterable<VmState> {
    for (const entry of this.#entries.values()) yield entry.state;
  }

  /** Looks through all. */
  ownedBy(host: HostId): VmId[] {
    return [...this.#entries.values()].filter(({ state }) => state.binding.owner === host).map(({ vm }) => vm);
  }

  get size(): number {
    return this.#entries.size;
  }

  /** Rejects never; the reason tells. `store-unavailable`: nothing was acknowledged, nothing happened that would have to be taken back. */
  dispatch(vm: VmId, event: VmEvent): Promise<Decided> {
    const entry = this.#entries.get(vm);
    if (entry === undefined) return Promise.resolve({ reason: "unknown-vm", detail: `there is no VM "${vm}"`, epoch: NEVER_BOUND });
    if (!entry.writing) return this.#take(entry, event);
    const waiting = (entry.waiting ??= []);
    if (waiting.length >= (this.#options.maxWaiting ?? 1024)) return Promise.resolve({ reason: "too-many", detail: "too much waits for this VM", epoch: entry.state.binding.epoch });
    return new Promise((resolve) => {
      waiting.push(() => { resolve(this.#take(entry, event)); });
    });
  }

  /** For what nobody will say again (an answer of a host, the loss of a connection): repeated until the store has taken it. */
  insist(vm: VmId, event: VmEvent): void {
    this.dispatch(vm, event).then((decided) => {
      if (this.#closed || this.#fenced || (decided.reason !== "store-unavailable" && decided.reason !== "too-many")) return;
      this.#options.clock.after("store retry", STORE_RETRY_MS, () => { this.insist(vm, event); });
    }, (thrown: unknown) => { this.#options.rim.failed(vm, toCareofError(thrown)); });
  }

  close(): void {
    this.#closed = true;
    this.#ring.close();
  }

  #forget(vm: VmId): void {
    const entry = this.#entries.get(vm);
    if (entry === undefined) return;
    this.#entries.delete(vm);
    this.#ring.forget(vm);
  }

  #now(): Now {
    return { mono: this.#options.clock.monotonic(), wall: this.#options.clock.now() };
  }

  #onDeadline(vm: VmId): void {
    const entry = this.#entries.get(vm);
    const rules = this.#options.rulesOf(vm);
    if (entry === undefined || rules === null || this.#closed) return;
    const due = vmDeadline(entry.state, rules);
    if (due === null) return;
    if (due > this.#options.clock.monotonic()) this.#ring.want(vm, due);
    else this.insist(vm, { type: "deadline" });
  }

  #take(entry: Entry, event: VmEvent): Promise<Decided> {
    const rules = this.#options.rulesOf(entry.vm);
    if (rules === null || this.#closed) return Promise.resolve({ reason: this.#closed ? "shutting-down" : "unknown-vm", detail: "", epoch: entry.state.binding.epoch });
    let outcome: Outcome<VmState>;
    try {
      outcome = coordinate(entry.state, event, this.#now(), rules);
    } catch (thrown) {
      const error = toCareofError(thrown);
      this.#options.rim.failed(entry.vm, error);
      return Promise.resolve({ reason: "unspecified", detail: error.message, epoch: entry.state.binding.epoch });
    }
    if (outcome.commit === null) return Promise.resolve(this.#settle(entry, event, outcome));
    if (outcome.interim !== null) this.#adopt(entry, outcome.interim);
    return this.#write(entry, event, outcome, outcome.commit.history);
  }

  async #write(entry: Entry, event: VmEvent, outcome: Outcome<VmState>, changes: readonly HistoryChange[]): Promise<Decided> {
    entry.writing = true;
    const history = applyHistory(entry.history, changes, this.#options.careOfOf);
    const also = history === entry.history ? [] : [{ key: `history/${entry.vm}`, value: history }];
    const answer = this.#fenced
      ? ({ result: "unavailable", why: "another home agent has taken the store over" } as const)
      : await this.#options.store.commit(entry.revision, this.#options.fence, { key: `vm/${entry.vm}`, value: durable(outcome.state), also });
    entry.writing = false;
    let decided: Decided;
    if (answer.result === "ok") {
      entry.revision = answer.revision;
      entry.history = history;
      decided = this.#settle(entry, event, outcome);
    } else {
      if (answer.result === "conflict") {
        this.#fenced = true;
        this.#options.rim.failed(entry.vm, new CareofError("store-conflict", `another home agent writes to the store (revision ${String(answer.revision)})`));
      }
      decided = { reason: "store-unavailable", detail: answer.result === "unavailable" ? answer.why : "conflict", epoch: entry.state.binding.epoch };
      this.#options.rim.decided(entry.vm, event, decided);
    }
    this.#drain(entry);
    return decided;
  }

  #drain(entry: Entry): void {
    while (!entry.writing && entry.waiting !== null) {
      const next = entry.waiting.shift();
      if (entry.waiting.length === 0) entry.waiting = null;
      next?.();
    }
  }

  #settle(entry: Entry, event: VmEvent, outcome: Outcome<VmState>): Decided {
    this.#adopt(entry, outcome.state);
    const decided: Decided = { reason: outcome.reason, detail: outcome.detail, epoch: outcome.state.binding.epoch };
    this.#options.rim.decided(entry.vm, event, decided);
    for (const effect of outcome.effects) this.#options.rim.perform(entry.vm, entry.state, effect);
    return decided;
  }

  #adopt(entry: Entry, state: VmState): void {
    const before = entry.state;
    if (before === state) return;
    entry.state = state;
    this.#options.rim.changed(entry.vm, before, state);
    this.#wantDeadline(entry.vm, state);
  }

  #wantDeadline(vm: VmId, state: VmState): void {
    const rules = this.#options.rulesOf(vm);
    if (rules !== null) this.#ring.want(vm, vmDeadline(state, rules));
  }
}
