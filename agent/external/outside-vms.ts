import type { Timer } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis, type HostId, type Millis, type VmId } from "../../model/ids.js";
import type { Locator } from "../../model/locator.js";
import type { Link } from "../../net/netlink/links.js";
import type { BindingUpdate, Body, VmReport, VmSpec } from "../../proto/messages.js";
import type { Outbox } from "../outbox.js";
import type { OutsideRecord } from "../record-shapes.js";
import type { Records } from "../records.js";
import { DataPath, type DataPathOptions } from "./data-path.js";
import type { Eyes, Sight } from "./eyes.js";
import { Losses } from "./losses.js";
import { MarkerWatch } from "./marker-watch.js";
import { awaits, begins, deadlineOf, looks, newcomer, noticed, outside, type OutsideEffect, type OutsideEvent, type OutsideVm, type Port } from "./outside-vm.js";
import { fits } from "./pattern.js";
import { Refusals } from "./refusals.js";

/** What takes milliseconds waits so long, so that a move has its first ones to itself. */
const SETTLE_AFTER = millis(30);

export interface OutsideVmsOptions extends DataPathOptions {
  readonly host: HostId;
  readonly locator: Locator;
  readonly records: Records<OutsideRecord>;
  readonly outbox: Outbox;
  readonly tell: (body: Body) => void;
}

interface One {
  state: OutsideVm;
  readonly path: DataPath;
  readonly losses: Losses;
  sight: { readonly port: number; readonly eye: Sight } | null;
  /** The port that the stack knows. */
  port: Port | null;
  recorded: string;
  timer: Timer | null;
  settle: Timer | null;
}

/** What `careof port` and the log say of one. */
export interface OutsideView {
  readonly vm: VmId;
  readonly phase: string;
  readonly owner: HostId | null;
  readonly epoch: number;
  readonly port: string | null;
  readonly held: number;
  readonly overflowed: number;
  readonly expired: number;
}

/** Another port, or other entries and neighbours of it: what is there of the old ones goes first. */
function isAnother(before: VmSpec, now: VmSpec): boolean {
  return before.externalPort !== now.externalPort || before.mac !== now.mac || before.homeAddresses.join() !== now.homeAddresses.join();
}

/** The VMs of this host that somebody else makes and moves: the rim around `outside`. */
export class OutsideVms {
  readonly #options: OutsideVmsOptions;
  readonly #vms = new Map<VmId, One>();
  readonly #markers: MarkerWatch;
  #links = new Map<number, Link>();
  readonly #refusals: Refusals;
  #open = false;

  constructor(options: OutsideVmsOptions) {
    this.#options = options;
    this.#markers = new MarkerWatch(options.clock, (vm) => { this.#lookForMarker(vm); });
    this.#refusals = new Refusals({
      clock: options.clock, log: options.log, eyes: options.eyes, takeHeld: () => { this.#takeHeld(); },
      changed: (port, now) => {
        this.#links.delete(port.index);
        if (now !== null) this.#links.set(now.index, now);
        this.#ports([port.name]);
      },
    });
  }

  /** What an earlier life of the agent knew, with the ports that are here now; before the network is applied. */
  recover(): void {
    for (const { spec, epoch, owner, peers } of this.#options.records.all().values()) {
      const update: BindingUpdate = { vm: spec.vm, epoch, owner, state: "bound", forwardTo: null, forwardMs: millis(0), spec, peers };
      this.#add(update);
      this.#step(spec.vm, { type: "binding", update, registration: true });
    }
  }

  has(vm: VmId): boolean {
    return this.#vms.has(vm);
  }

  views(): readonly OutsideView[] {
    return [...this.#vms].map(([vm, { state, path: { held } }]) => ({
      vm, phase: state.phase, owner: state.owner, epoch: state.epoch, port: state.port?.name ?? null, held: held.size, overflowed: held.overflowed, expired: held.expired,
    }));
  }

  /** What is here, for the registration and the refreshes. */
  reports(): VmReport[] {
    return [...this.#vms.values()].filter(({ state }) => state.phase === "here").map(({ state }) => ({
      vm: state.spec.vm, state: "runs", basedOn: state.epoch, locator: this.#options.locator, evidence: "resync", unreachable: false,
    }));
  }

  /** Of which something is kept here, whether they are here or not. */
  known(): readonly VmId[] {
    return [...this.#vms.keys()];
  }

  /** True when the VM is one of these, or was until now. `registration`: it is the home agent's answer to one. */
  binding(update: BindingUpdate, registration: boolean): boolean {
    if (update.spec.driver !== "external" || !update.spec.listsHost) {
      if (this.has(update.vm)) this.#options.log.info({ vm: update.vm, driver: update.spec.driver, listed: update.spec.listsHost }, "a VM that others move is none of this host's any more");
      this.forget(update.vm);
      return update.spec.driver === "external";
    }
    const known = this.#vms.get(update.vm);
    if (known === undefined || isAnother(known.state.spec, update.spec)) {
      this.forget(update.vm);
      this.#add(update);
    }
    this.#step(update.vm, { type: "binding", update, registration });
    return true;
  }

  /** It is not listed for this host any more. */
  forget(vm: VmId): void {
    const one = this.#vms.get(vm);
    if (one === undefined) return;
    this.#vms.delete(vm);
    this.#letGo(one);
    const { network, records, log } = this.#options;
    const failed = (thrown: unknown): void => {
      const error = toCareofError(thrown);
      log.error({ vm, reason: error.code, err: error }, "not everything that was kept for a VM could be removed");
    };
    network.dropOutside(vm).catch(failed);
    try {
      // One that stays is taken up by the agent's next life, which hears again that it is not listed.
      records.remove(vm);
    } catch (thrown) {
      failed(thrown);
    }
  }

  drained(vm: VmId, token: number): void {
    this.#step(vm, { type: "drained", token });
  }

  /** Whoever moves the VM says that it is here. @throws CareofError `unknown-vm`, `no-link` */
  arrive(vm: VmId): OutsideView {
    const one = this.#require(vm);
    if (one.state.port?.carrier !== true) this.#look();
    if (one.state.port?.carrier !== true) throw new CareofError("no-link", `no interface that fits "${one.state.spec.externalPort}" is up here`, { retryable: true });
    this.#step(vm, { type: "seen", what: "arrive" });
    return this.#view(vm);
  }

  /** Whoever moves the VM says that it leaves, perhaps to which host. When this returns, what comes for it is passed on, or waits. @throws CareofError `unknown-vm`, `unknown-host`, `not-running` */
  leave(vm: VmId, to: HostId | null): OutsideView {
    const { state } = this.#require(vm);
    if (to !== null && !state.peers.some(({ host }) => host === to)) throw new CareofError("unknown-host", `${to} is not among the other hosts of ${vm}: ${state.peers.map(({ host }) => host).join(", ")}`);
    if (state.phase === "away" || state.phase === "passing") throw new CareofError("not-running", `${vm} is not here, it is with ${String(state.owner)}`);
    this.#step(vm, { type: "leave", to });
    return this.#view(vm);
  }

  close(): void {
    for (const one of this.#vms.values()) this.#letGo(one);
    this.#options.eyes.close();
  }

  #add(update: BindingUpdate): void {
    if (!this.#open) {
      this.#open = true;
      const { eyes, log } = this.#options;
      eyes.open({
        link: (event) => { this.#onLink(event); },
        held: () => {
          this.#takeHeld();
          this.#refusals.look();
        },
        failed: (error) => { log.error({ reason: error.code, err: error }, "VMs that others move cannot be seen any more"); },
      });
      this.#links = new Map(eyes.links().map((link) => [link.index, link]));
    }
    const state = { ...newcomer(update), port: this.#portOf(update.spec.externalPort) };
    const path = new DataPath(this.#options, state);
    this.#vms.set(update.vm, { state, path, losses: new Losses(update.vm, path.held, this.#options), sight: null, port: null, recorded: "", timer: null, settle: null });
  }

  #require(vm: VmId): One {
    const one = this.#vms.get(vm);
    if (one === undefined) throw new CareofError("unknown-vm", `${vm} is not a VM of this host that somebody else moves`);
    return one;
  }

  #view(vm: VmId): OutsideView {
    const view = this.views().find((each) => each.vm === vm);
    if (view === undefined) throw new CareofError("unknown-vm", `${vm} is gone`);
    return view;
  }

  #letGo(one: One): void {
    one.timer?.cancel();
    this.#markers.set(one.state.spec.vm, null);
    this.#refusals.forget(one.state.spec.vm);
    one.settle?.cancel();
    one.losses.close();
    one.path.close();
    one.sight?.eye.close();
    one.sight = null;
  }

  // ---- what is heard

  #onLink(event: Parameters<Parameters<Eyes["open"]>[0]["link"]>[0]): void {
    if (event.kind === "missed") {
      this.#look();
      return;
    }
    const { index } = event.link;
    const before = this.#links.get(index);
    if (event.kind === "gone") this.#links.delete(index);
    else this.#links.set(index, event.link);
    if (event.kind === "there" && before?.carrier === event.link.carrier && before.name === event.link.name) return;
    this.#ports([event.link.name, before?.name]);
  }

  #look(): void {
    this.#links = new Map(this.#options.eyes.links().map((link) => [link.index, link]));
    this.#ports(null);
  }

  /** `names`: interfaces that have changed; null: any may have. */
  #ports(names: readonly (string | undefined)[] | null): void {
    for (const [vm, { state }] of this.#vms) {
      const pattern = state.spec.externalPort;
      if (names === null || names.some((name) => name !== undefined && fits(pattern, name))) this.#step(vm, { type: "port", port: this.#portOf(pattern) });
    }
  }

  /** The one that fits and is up, else one that fits. */
  #portOf(pattern: string): Port | null {
    const fitting = [...this.#links.values()].filter(({ name }) => fits(pattern, name));
    const link = fitting.find(({ carrier }) => carrier) ?? fitting[0];
    return link === undefined ? null : { name: link.name, index: link.index, carrier: link.carrier };
  }

  // ---- one step: what is to be said first, then the data plane, then the rest

  #step(vm: VmId, event: OutsideEvent): void {
    const one = this.#vms.get(vm);
    if (one === undefined) return;
    const { clock, host, log, network } = this.#options;
    const before = one.state;
    const { state, effects } = outside(before, event, clock.monotonic(), host);
    one.state = state;
    const takeHeld = (): void => { this.#takeHeld(); };
    const leaves = state.phase === "leaving" && before.phase !== "leaving";
    if (leaves) {
      // Every packet until then is lost; what is said can wait for that.
      network.clearStamps(vm);
      one.path.set(state, takeHeld);
    }
    if (begins(before, state)) network.clearStamps(vm);
    for (const effect of effects) this.#say(one, effect);
    one.path.set(state, takeHeld);
    this.#watch(one);
    this.#refusals.look();
    if (state.phase !== before.phase) {
      const { overflowed, expired, size } = one.path.held;
      log.info({ vm, epoch: state.epoch, owner: state.owner, phase: state.phase, before: before.phase, event: event.type === "seen" ? event.what : event.type, port: state.port?.name ?? null, held: size, overflowed, expired }, "a VM that others move");
    }
    one.settle ??= clock.after("settle", SETTLE_AFTER, () => {
      one.settle = null;
      this.#settle(vm, one);
    });
  }

  #say({ state }: One, effect: OutsideEffect): void {
    const { outbox, tell, locator, clock } = this.#options;
    const { vm } = state.spec;
    switch (effect.do) {
      case "announce": {
        const { what, basedOn } = effect;
        // Each on its own: none waits for the answer to another.
        outbox.put({
          key: `${vm}/${what}`, topic: `vm/${vm}/${what}`, body: { kind: "announcement", vm, basedOn, locator, what, at: clock.monotonic() },
          answered: ({ reason, epoch }) => { this.#step(vm, { type: "decided", what, basedOn, reason, epoch }); },
        });
        break;
      }
      case "leaving":
        outbox.put({ key: `${vm}/leaving`, topic: `vm/${vm}/gone`, body: { kind: "leaving", vm, basedOn: effect.basedOn, to: effect.to }, answered: () => undefined });
        break;
      case "unseen":
        outbox.put({ key: `${vm}/unseen`, topic: `vm/${vm}/gone`, body: { kind: "vmReport", vm, state: "absent", basedOn: effect.basedOn, locator: null, evidence: "port-gone", unreachable: false }, answered: () => undefined });
        break;
      case "drained": tell({ kind: "drained", vm, token: effect.token, overflowed: 0, expired: 0 });
    }
  }

  /** What has waited in the kernel. */
  #takeHeld(): void {
    for (const frame of this.#options.eyes.takeHeld()) {
      const one = [...this.#vms.values()].find(({ state }) => state.spec.homeAddresses.includes(frame.home));
      if (one === undefined) continue;
      one.path.take(frame);
      this.#refusals.add(one);
      one.losses.watch();
    }
  }

  #watch(one: One): void {
    const { clock } = this.#options;
    const { state } = one;
    const { vm } = state.spec;
    const now = clock.monotonic();
    this.#sight(one, now);
    one.timer?.cancel();
    const due = deadlineOf(state, now);
    one.timer = due === null ? null : clock.after("outside", millis(Math.max(1, due - now)), () => { this.#step(vm, { type: "deadline" }); });
    const awaited = awaits(state);
    this.#markers.set(vm, awaited === null ? null : `${awaited}, ${state.phase} at ${String(state.epoch)}`);
  }

  #sight(one: One, now: Millis): void {
    const { eyes, log } = this.#options;
    const { port, spec } = one.state;
    if (one.sight !== null && one.sight.port !== port?.index) {
      one.sight.eye.close();
      one.sight = null;
    }
    try {
      if (port !== null) one.sight ??= { port: port.index, eye: eyes.look(port.index, spec, (what) => { this.#step(spec.vm, { type: "seen", what }); }) };
    } catch (thrown) {
      log.debug({ vm: spec.vm, reason: toCareofError(thrown).message }, "a port went at once");
    }
    if (one.sight !== null) one.sight.eye.armed = looks(one.state, now);
  }

  #lookForMarker(vm: VmId): void {
    const { network, host } = this.#options;
    const [one, stamps] = [this.#vms.get(vm), network.stamps(vm)];
    const event = one === undefined || stamps === null ? null : noticed(one.state, stamps, host);
    if (event !== null) this.#step(vm, event);
  }

  /** What nobody waits for: the stack's slow path by the port, and the record. */
  #settle(vm: VmId, one: One): void {
    if (this.#vms.get(vm) !== one) return;
    const { network, records, log } = this.#options;
    const { spec, epoch, owner, peers, port } = one.state;
    one.losses.tell();
    const up = port?.carrier === true ? port : null;
    if (up?.index !== one.port?.index || up?.name !== one.port?.name) {
      const old = one.port;
      one.port = up;
      network.setOutsidePort(spec, up?.name ?? null, old?.name ?? null).catch((thrown: unknown) => {
        one.port = null;
        log.warn({ vm, port: up?.name ?? null, reason: toCareofError(thrown).code, detail: toCareofError(thrown).message }, "the port cannot be set up");
      });
    }
    const record: OutsideRecord = { spec, epoch, owner, peers };
    const text = JSON.stringify(record);
    if (text === one.recorded) return;
    one.recorded = text;
    try {
      records.write(vm, record);
    } catch (thrown) {
      one.recorded = "";
      log.error({ vm, reason: toCareofError(thrown).code, err: thrown }, "what is known of a VM cannot be written");
    }
  }
}
