import type { Clock } from "../model/clock.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { parseMigrationId, type HostId, type Millis, type VmId } from "../model/ids.js";
import { LEAST_PATH_MTU, type Locator } from "../model/locator.js";
import type { Logger } from "../model/log.js";
import { isReason, type Reason } from "../model/reasons.js";
import { Channel, decision, type Answer, type Transport } from "../proto/channel.js";
import type { Body, Capabilities, Kind, VmReport } from "../proto/messages.js";
import type { BindingCache } from "./bindings/binding-cache.js";
import type { EventBus } from "./events.js";
import type { HostLife } from "./host-life.js";
import type { Hosts, HostSession } from "./hosts.js";
import type { RelayedHeartbeats } from "./heartbeats.js";
import { removalOf, updateFor } from "./messages.js";
import type { Metrics } from "./metrics.js";
import type { MigrationBook } from "./migrations.js";
import { viewHost, viewVm } from "./views.js";

/** The version of the channel that this home agent speaks. */
export const CHANNEL_VERSION = 1;
/** Bindings in the answer to a registration; a host with more gets the rest by updates. */
const BINDINGS_AT_ONCE = 128;

/** What all sessions share. */
export interface SessionContext {
  readonly clock: Clock;
  readonly log: Logger;
  readonly hosts: Hosts;
  readonly cache: BindingCache;
  readonly heartbeats: RelayedHeartbeats;
  readonly book: MigrationBook;
  readonly events: EventBus;
  readonly metrics: Metrics;
  /** Of the home agent, for the answer to a registration. */
  readonly home: () => Pick<Body<"registered">, "restartCounter" | "tunnelAddresses" | "keepAliveMs" | "lifetimeMs" | "heartbeatPort">;
  /** The session has registered: it replaces an older one of the same host. */
  readonly registered: (session: AgentSession) => void;
  /** It has, and its locator may be another one than before. */
  readonly arrived: (host: HostId) => void;
  readonly maxOutstanding: number;
}

/**
 * One host agent's connection.
 * ```
 *   authenticated ──Register accepted──▶ registered ──connection gone──▶ ended
 *        └──────────── connection gone, refused, silent ───────────────▶ ended
 * ```
 * Nothing but Register is answered before it was accepted.
 */
export class AgentSession implements HostSession {
  readonly host: HostId;
  readonly since: Millis;
  readonly #context: SessionContext;
  readonly #channel: Channel;
  readonly #transport: Transport;
  #state: "authenticated" | "registering" | "registered" | "ended" = "authenticated";
  #locators: readonly Locator[] = [];
  #software = "";
  #life: HostLife = { instance: "", restartCounter: 0 };
  #capabilities: Capabilities = { ownsTap: false, ownsStream: false, canLead: false, canHoldTarget: false, qemuVersion: "", accelerator: "none", dataPlane: "", memoryBytes: 0, localDisks: false, adopts: false, postcopy: false };
  /** Monotonic: when something last came. */
  heardAt: Millis;

  constructor(host: HostId, transport: Transport, context: SessionContext) {
    this.host = host;
    this.#context = context;
    this.#transport = transport;
    this.since = context.clock.now();
    this.heardAt = context.clock.monotonic();
    this.#channel = new Channel({
      transport,
      clock: context.clock,
      limits: { maxOutstanding: context.maxOutstanding },
      onRequest: (body, answer) => { this.#onRequest(body, answer); },
      onError: (error) => { context.log.error({ host, code: error.code, err: error }, "a message could not be handled"); },
    });
  }

  get locators(): readonly Locator[] {
    return this.#locators;
  }

  get capabilities(): Capabilities {
    return this.#capabilities;
  }

  get software(): string {
    return this.#software;
  }

  get life(): HostLife {
    return this.#life;
  }

  get registered(): boolean {
    return this.#state === "registered";
  }

  ask<K extends Kind>(body: Body, expect: K, timeout: Millis): Promise<Body<K>> {
    return this.#channel.ask(body, expect, timeout);
  }

  tell(body: Body): void {
    this.#channel.tell(body);
  }

  receive(message: Uint8Array): void {
    this.heardAt = this.#context.clock.monotonic();
    this.#channel.receive(message);
  }

  close(code: number, reason: string): void {
    this.#transport.close(code, reason);
  }

  /** The connection is gone. */
  end(cause: CareofError): void {
    if (this.#state === "ended") return;
    const was = this.#state;
    this.#state = "ended";
    this.#channel.end(cause);
    const { hosts, clock, cache, log, events } = this.#context;
    if (was !== "registered" || !hosts.left(this, { mono: clock.monotonic(), wall: clock.now() })) return;
    log.warn({ host: this.host, code: cause.code }, "host gone");
    events.publish({ event: "host", data: viewHost(this.host, hosts, cache.ownedBy(this.host)) });
    for (const vm of hosts.vmsOf(this.host)) {
      if (this.#moves(vm.name)) cache.insist(vm.name, { type: "host-gone", host: this.host });
    }
  }

  #onRequest(body: Body, answer: Answer): void {
    if (this.#state !== "registered") {
      if (body.kind === "register" && this.#state === "authenticated") this.#register(body, answer).catch((thrown: unknown) => { this.#failed(thrown, answer); });
      else if (body.kind === "keepAlive") answer(body);
      else answer(decision("not-permitted", "register first"));
      return;
    }
    switch (body.kind) {
      case "keepAlive":
        answer(body);
        break;
      case "vmReport":
        this.#decide(this.#report(body), answer);
        break;
      case "announcement": {
        const { vm, what, basedOn, locator } = body;
        const careOfListed = this.#context.hosts.host(this.host)?.careOf.includes(locator.address) === true;
        this.#decide(this.#context.cache.dispatch(vm, { type: "announcement", host: this.host, what, basedOn, careOfListed, ownerPassesOn: this.#ownerPassesOn(vm) }), answer);
        break;
      }
      case "leaving":
        this.#decide(this.#context.cache.dispatch(body.vm, { type: "leaving", host: this.host, basedOn: body.basedOn }), answer);
        break;
      case "drained":
        this.#lost(body);
        // Only the loss was to be told.
        if (body.token === 0) answer(decision("accepted"));
        else this.#decide(this.#context.cache.dispatch(body.vm, { type: "drained", host: this.host, token: body.token }), answer);
        break;
      case "relayedHeartbeat": {
        const reply = this.#context.heartbeats.relayed(this.host, body);
        if (reply !== null) this.tell(reply);
        break;
      }
      case "progress": {
        const { vm } = parseMigrationId(body.migration);
        const moving = this.#context.cache.state(vm)?.migration ?? null;
        // What is copied pushes the limits of a move: only its source has a say in that.
        if (moving?.id !== body.migration || moving.from !== this.host) {
          answer(decision(moving?.id === body.migration ? "not-permitted" : "not-moving", `${this.host} copies nothing by ${body.migration}`));
          break;
        }
        const view = this.#context.book.progress(body);
        if (body.phase === "disks") this.#decide(this.#context.cache.dispatch(vm, { type: "disks-copied", migration: body.migration }), answer);
        if (view !== null) this.#context.events.publish({ event: "migration", data: view });
        break;
      }
      case "leadReady":
      case "switchOver":
      case "released":
      case "running":
      case "sourceEnded":
      case "targetEnded":
        this.#decide(this.#context.cache.dispatch(parseMigrationId(body.migration).vm, { type: "said", host: this.host, body }), answer);
        break;
      default: answer(decision("unsupported", `a home agent is not asked for ${body.kind}`));
    }
  }

  #lost({ vm, overflowed, expired }: Body<"drained">): void {
    const { hosts, metrics, log } = this.#context;
    if (overflowed + expired === 0 || hosts.vm(vm)?.hosts.includes(this.host) !== true) return;
    log.warn({ vm, host: this.host, overflowed, expired }, "packets that waited for a VM were lost: they found no room (ports.queueLength of the host agent), or had waited too long");
    metrics.heldLost.inc({ why: "overflowed" }, overflowed);
    metrics.heldLost.inc({ why: "expired" }, expired);
  }

  #report(report: VmReport): ReturnType<BindingCache["dispatch"]> {
    const { hosts, cache } = this.#context;
    const careOfListed = report.locator === null || hosts.host(this.host)?.careOf.includes(report.locator.address) === true;
    this.#hearsWhetherReachable(report);
    return cache.dispatch(report.vm, { type: "report", host: this.host, report, careOfListed, ownerConnected: this.#ownerConnected(report.vm), ownerPassesOn: this.#ownerPassesOn(report.vm) });
  }

  #ownerPassesOn(vm: VmId): boolean {
    const { hosts, cache, clock } = this.#context;
    return hosts.mayPassOn(cache.state(vm)?.binding.owner ?? null, clock.monotonic());
  }

  #ownerConnected(vm: VmId): boolean {
    const { hosts, cache } = this.#context;
    return hosts.connected(cache.state(vm)?.binding.owner ?? null);
  }

  #hearsWhetherReachable({ vm, unreachable }: VmReport): void {
    const { hosts, cache, log, events } = this.#context;
    const config = hosts.vm(vm);
    const state = cache.state(vm);
    if (config === null || state === null || !config.hosts.includes(this.host) || !hosts.setUnreachable(vm, this.host, unreachable)) return;
    if (unreachable) log.warn({ vm, host: this.host, reason: "guest-unreachable" }, "the host cannot ask its guest: it cannot be moved");
    else log.info({ vm, host: this.host }, "the host can ask its guest again");
    events.publish({ event: "vm", data: viewVm(state, config, hosts) });
  }

  #decide(decided: ReturnType<BindingCache["dispatch"]>, answer: Answer): void {
    decided.then(({ reason, detail, epoch }) => { answer(decision(reason, detail, epoch)); }, (thrown: unknown) => { this.#failed(thrown, answer); });
  }

  #failed(thrown: unknown, answer: Answer): void {
    const error = toCareofError(thrown);
    this.#context.log.error({ host: this.host, code: error.code, err: error }, "a message could not be handled");
    answer(decision("unspecified", error.message));
  }

  async #register(body: Body<"register">, answer: Answer): Promise<void> {
    this.#state = "registering";
    const { hosts, cache, metrics, log, registered } = this.#context;
    try {
      this.#check(body);
      this.#locators = body.locators;
      this.#capabilities = body.capabilities;
      this.#software = body.software;
      this.#life = { instance: body.instance, restartCounter: body.restartCounter };
      await Promise.all(body.vms.map((report) => this.#report(report)));
      if (this.#channel.ended) return;
      const updates = this.#updates(body.known);
      answer({ kind: "registered", decision: { reason: "accepted", epoch: decision("accepted").epoch, detail: "" }, ...this.#context.home(), bindings: updates.slice(0, BINDINGS_AT_ONCE) });
      this.#state = "registered";
      registered(this);
      hosts.arrived(this);
      this.#context.arrived(this.host);
      metrics.connections.inc({ reason: "accepted" });
      log.info({ host: this.host, software: body.software, careOf: body.locators.map((locator) => locator.address), restartCounter: body.restartCounter, vms: body.vms.length }, "host registered");
      this.#context.events.publish({ event: "host", data: viewHost(this.host, hosts, cache.ownedBy(this.host)) });
      for (const update of updates.slice(BINDINGS_AT_ONCE)) this.tell({ kind: "bindingUpdate", ...update });
      this.#resume(body);
    } catch (thrown) {
      const error = toCareofError(thrown);
      const reason: Reason = isReason(error.code) ? error.code : "unspecified";
      log.warn({ host: this.host, reason, code: error.code }, `registration refused: ${error.message}`);
      metrics.connections.inc({ reason });
      answer(decision(reason, error.message));
      this.close(4003, reason);
    }
  }

  /** @throws CareofError with a reason as its code */
  #check(body: Body<"register">): void {
    const listed = this.#context.hosts.host(this.host);
    if (listed === null) throw new CareofError("unknown-host", `${this.host} is not listed`);
    if (body.version !== CHANNEL_VERSION) throw new CareofError("unsupported-version", `version ${String(body.version)}, this home agent speaks ${String(CHANNEL_VERSION)}`);
    if (body.host !== this.host) throw new CareofError("not-permitted", `the connection is ${this.host}'s, not ${body.host}'s`);
    if (body.locators.length === 0) throw new CareofError("malformed", "a host registers at least one care-of address");
    for (const { address, pathMtu } of body.locators) {
      if (pathMtu !== 0 && pathMtu < LEAST_PATH_MTU) throw new CareofError("malformed", `a path MTU of ${String(pathMtu)} bytes: 0 or at least ${String(LEAST_PATH_MTU)}`);
      if (!listed.careOf.includes(address)) throw new CareofError("foreign-care-of", `${address} is not listed for ${this.host}`);
    }
  }

  #moves(vm: VmId): boolean {
    return (this.#context.cache.state(vm)?.migration ?? null) !== null;
  }

  /** `known`: VMs of which the host keeps something. What it is to let go of comes first: an address or a port may be another VM's now. */
  #updates(known: readonly VmId[]): readonly ReturnType<typeof updateFor>[] {
    const { hosts, cache, clock } = this.#context;
    const removed = known.filter((vm) => hosts.vm(vm)?.hosts.includes(this.host) !== true).map((vm) => removalOf(vm));
    return [...removed, ...[...hosts.vmsOf(this.host)].flatMap((vm) => {
      const state = cache.state(vm.name);
      return state === null ? [] : [updateFor(state, vm, this.host, hosts, clock.monotonic())];
    })];
  }

  /** What the host remembers of migrations, settled here or not. */
  #resume(body: Body<"register">): void {
    const { hosts, cache } = this.#context;
    for (const vm of hosts.vmsOf(this.host)) {
      const records = body.migrations.filter((record) => parseMigrationId(record.migration).vm === vm.name);
      if (records.length === 0 && !this.#moves(vm.name)) continue;
      const reported = body.vms.find((report) => report.vm === vm.name)?.state ?? null;
      cache.insist(vm.name, { type: "host-back", host: this.host, life: this.#life, records, reported });
    }
  }
}
