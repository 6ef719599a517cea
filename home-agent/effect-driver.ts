import type { Clock } from "../model/clock.js";
import { toCareofError, type CareofError } from "../model/errors.js";
import { isV4, type IpAddress } from "../model/address.js";
import { millis, type HostId, type MigrationId, type VmId } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import type { PathMtus } from "../net/path-mtu.js";
import type { HomeEntry, HomeTunnel } from "../net/tunnel.js";
import type { Alarms } from "./alarms.js";
import type { BindingCache, Decided, Rim } from "./bindings/binding-cache.js";
import type { HomeMode, VmConfig } from "./config.js";
import type { EventBus } from "./events.js";
import { markersOf, watchesUplink, type VmEvent, type VmState } from "./handover/migration.js";
import type { Hosts } from "./hosts.js";
import { removalOf, updateFor } from "./messages.js";
import type { Metrics } from "./metrics.js";
import type { MigrationBook } from "./migrations.js";
import type { Effect, MigrationResult, Question } from "./outcome.js";
import type { ProxyArp, Standing } from "./proxy-arp.js";
import type { Questioner } from "./questions.js";
import { entriesFor, RouteBook } from "./routes.js";
import { SignalSender, type Signals } from "./signals.js";
import { viewVm } from "./views.js";
import type { Ended, Waiters } from "./waiters.js";

/** A revocation that was not acknowledged is repeated after so long, so many times; after that the host hears of it when it registers again. */
const REVOKE_AGAIN_MS = millis(2000);
const REVOKE_LIMIT = 5;
/** An entry that the kernel refused is tried again after so long. */
const ROUTE_AGAIN_MS = millis(500);

export interface EffectDriverOptions {
  readonly clock: Clock;
  readonly log: Logger;
  readonly tunnel: HomeTunnel;
  readonly hosts: Hosts;
  readonly questioner: Questioner;
  readonly waiters: Waiters;
  readonly book: MigrationBook;
  readonly events: EventBus;
  readonly metrics: Metrics;
  readonly alarms: Alarms;
  readonly pathMtu: number;
  readonly paths: Pick<PathMtus, "probe">;
  readonly mode: HomeMode;
  /** With mode `proxy-arp`. */
  readonly proxyArp: ProxyArp | null;
  /** Hears of each change of a state, when what follows from it is done. */
  readonly changed: (vm: VmId) => void;
}

/**
 * The rim around the machines. What follows from the state (tunnel entries, markers, updates to hosts, events for people) is set whenever the state
 * changes; what is a deed of its own is done when the machine says so. The tunnel comes first: nothing stands between a decision and its switch.
 */
export class EffectDriver implements Rim {
  readonly #options: EffectDriverOptions;
  readonly #routes = new RouteBook();
  readonly #signals: SignalSender;
  #cache: BindingCache | null = null;
  #closed = false;

  constructor(options: EffectDriverOptions) {
    this.#options = options;
    const { clock, tunnel, log } = options;
    this.#signals = new SignalSender({
      clock, tunnel,
      uplinkSeen: (vm, token) => { this.#uplinkSeen(vm, token); },
      failed: (vm, thrown) => { log.warn({ vm, err: thrown }, "a marker could not be sent or read"); },
    });
  }

  /** Before anything is dispatched. */
  attach(cache: BindingCache): void {
    this.#cache = cache;
  }

  /** Every entry that the states want, at once: at the start, and after the configuration has changed. */
  async setRoutes(): Promise<void> {
    const { hosts, tunnel, proxyArp } = this.#options;
    const away: Standing[] = [];
    for (const state of this.#cache?.states() ?? []) {
      const vm = hosts.vm(state.binding.vm);
      if (vm === null) continue;
      const entries = this.#entriesOf(state, vm);
      this.#routes.replace(vm.name, entries);
      away.push(...entries.map(({ home }) => ({ vm: vm.name, home, mac: vm.mac })));
    }
    proxyArp?.retire(away);
    await tunnel.set(this.#routes.all());
    proxyArp?.set(away);
  }

  /** The entries of a VM that is not configured any more go with the next `setRoutes`. */
  forget(vm: VmId): void {
    this.#routes.replace(vm, []);
    this.#signals.set(vm, null);
  }

  /** A host's care-of address or path MTU has changed. */
  reroute(vm: VmId): void {
    const state = this.#cache?.state(vm) ?? null;
    const config = this.#options.hosts.vm(vm);
    if (state !== null && config !== null) this.#route(state, config);
  }

  /** The same for all VMs that may be there. */
  rerouteHost(host: HostId): void {
    for (const vm of this.#options.hosts.vmsOf(host)) this.reroute(vm.name);
  }

  changed(vm: VmId, before: VmState, after: VmState): void {
    const { hosts, events, book } = this.#options;
    const config = hosts.vm(vm);
    if (config === null) return;
    this.#route(after, config);
    this.#signals.set(vm, this.#signalsOf(after, config));
    const { binding } = after;
    const old = before.binding;
    const { claimed, drain } = binding.outside;
    // It holds back what comes by the direct path until it hears that nothing is left on the old one; this must not wait for the disk.
    if (claimed !== null && claimed !== old.outside.claimed && drain === null) hosts.session(claimed)?.tell({ kind: "drained", vm, token: 0, overflowed: 0, expired: 0 });
    if (old.owner !== binding.owner || old.epoch !== binding.epoch || old.phase !== binding.phase) {
      this.announce(after, config);
      events.publish({ event: "vm", data: viewVm(after, config, hosts) });
    }
    if (after.migration !== null && before.migration === null) this.#probe([hosts.careOf(after.migration.from), hosts.careOf(after.migration.to)]);
    if (after.migration !== null) {
      const news = book.phase(vm, after.migration);
      if (news !== null) events.publish({ event: "migration", data: news });
    }
    this.#options.changed(vm);
  }

  perform(vm: VmId, state: VmState, effect: Effect): void {
    const { waiters, alarms, metrics, events, book, log, clock, questioner, hosts } = this.#options;
    switch (effect.do) {
      case "ask":
        this.#ask(vm, state, effect.host, effect.what, 0);
        break;
      case "started":
        waiters.end("start", vm, effect);
        break;
      case "stopped":
        waiters.end("stop", vm, effect);
        break;
      case "finished": {
        const { result } = effect;
        log.info({ vm, ...result }, `migration ${result.result}`);
        if ((result.overflowed ?? 0) > 0) log.warn({ vm, migration: result.migration, overflowed: result.overflowed }, "packets were lost: the queue of the VM's port was full (ports.queueLength of the host agent: rate × pause)");
        this.#warnOfUndelivered(vm, result.migration, result.undelivered);
        questioner.forget(result.migration);
        metrics.migration(result);
        events.publish({ event: "migration", data: book.finished(vm, result, clock.now()) });
        waiters.finish(result);
        waiters.end("resolve", vm, resolvedBy(state, result));
        break;
      }
      case "drained":
        hosts.session(effect.host)?.tell({ kind: "drained", vm, token: effect.token, overflowed: 0, expired: 0 });
        break;
      case "counted": {
        const view = book.counted(effect.migration, effect.undelivered);
        if (view === null) break;
        this.#warnOfUndelivered(vm, effect.migration, effect.undelivered);
        metrics.undelivered.inc(effect.undelivered);
        events.publish({ event: "migration", data: view });
        break;
      }
      case "alarm": alarms.raise(effect.alarm, vm, effect.hosts, effect.detail, clock.now());
    }
  }

  decided(vm: VmId, event: VmEvent, { reason, detail, epoch }: Decided): void {
    const { metrics, log } = this.#options;
    const host = "host" in event ? event.host : null;
    if (event.type === "report" || event.type === "announcement") metrics.registrations.inc({ reason });
    const what = event.type === "said" ? event.body.kind : event.type;
    const fields = { vm, host, epoch, reason, event: what, ...(detail === "" ? {} : { detail }) };
    const ordinary = event.type === "heartbeat" || event.type === "deadline" || (event.type === "report" && event.report.evidence === "refresh");
    if (ordinary && reason === "accepted") log.trace(fields, "decided");
    else log.info(fields, "decided");
  }

  failed(vm: VmId, error: CareofError): void {
    const { alarms, log, clock } = this.#options;
    log.error({ vm, code: error.code, err: error }, "a decision failed");
    if (error.code === "store-conflict") alarms.raise("store", vm, [], error.message, clock.now());
  }

  /** To every connected host that is listed for the VM. */
  announce(state: VmState, vm: VmConfig): void {
    const { hosts, clock } = this.#options;
    for (const host of vm.hosts) {
      const session = hosts.session(host);
      if (session !== null) session.tell({ kind: "bindingUpdate", ...updateFor(state, vm, host, hosts, clock.monotonic()) });
    }
  }

  /** To the connected hosts of `before` that are not listed for the VM any more. One that is not connected hears of it when it registers. */
  announceRemoval({ name, driver, hosts: listed }: VmConfig): void {
    const { hosts } = this.#options;
    if (driver !== "external") return;
    const still = hosts.vm(name)?.hosts ?? [];
    for (const host of listed) if (!still.includes(host)) hosts.session(host)?.tell({ kind: "bindingUpdate", ...removalOf(name) });
  }

  close(): void {
    this.#closed = true;
    this.#signals.close();
    this.#options.proxyArp?.close();
  }

  #warnOfUndelivered(vm: VmId, migration: MigrationId, undelivered: number | null): void {
    if ((undelivered ?? 0) > 0) this.#options.log.warn({ vm, migration, undelivered }, "packets were lost: they waited at the target when the move was given up");
  }

  #route(state: VmState, vm: VmConfig): void {
    const { tunnel, proxyArp, alarms, clock } = this.#options;
    const { put, drop } = this.#routes.replace(vm.name, this.#entriesOf(state, vm));
    try {
      for (const entry of put) tunnel.put(entry);
      // Answered for only what has a way into the tunnel.
      for (const { home } of put) proxyArp?.cover({ vm: vm.name, home, mac: vm.mac });
      for (const home of drop) {
        proxyArp?.uncover(home);
        tunnel.drop(home);
      }
    } catch (thrown) {
      this.#routes.distrust(vm.name);
      alarms.raise("tunnel", vm.name, [], `the tunnel of ${vm.name} cannot be set: ${toCareofError(thrown).message}`, clock.now());
      clock.after("route again", ROUTE_AGAIN_MS, () => { if (!this.#closed) this.reroute(vm.name); });
    }
  }

  /** What both paths of a move carry is to be known before the first packet takes the new one: guests and correspondents hear of it by "frag needed", not by loss. */
  #probe(careOfs: readonly (IpAddress | null)[]): void {
    for (const careOf of careOfs) if (careOf !== null && isV4(careOf)) this.#options.paths.probe(careOf);
  }

  #entriesOf(state: VmState, vm: VmConfig): readonly HomeEntry[] {
    const { hosts, pathMtu, mode } = this.#options;
    return entriesFor(state, vm, hosts, pathMtu, mode);
  }

  #signalsOf(state: VmState, vm: VmConfig): Signals | null {
    const { hosts } = this.#options;
    const { migration } = state;
    const home = vm.homeAddresses[0];
    if (home === undefined) return null;
    const { drain } = state.binding.outside;
    const from = drain === null ? null : hosts.careOf(drain.from);
    if (migration === null) return drain === null || from === null ? null : { home, markers: { token: drain.token, to: [from] }, watchUplink: false };
    const token = markersOf(state);
    const to = [hosts.careOf(migration.from), hosts.careOf(migration.to)].filter((address) => address !== null);
    return { home, markers: token === null ? null : { token, to }, watchUplink: watchesUplink(state) };
  }

  #uplinkSeen(vm: VmId, token: number): void {
    const migration = this.#cache?.state(vm)?.migration ?? null;
    if (migration !== null) this.#options.hosts.session(migration.to)?.tell({ kind: "uplinkSeen", migration: migration.id, token });
  }

  #ask(vm: VmId, state: VmState, host: HostId, what: Question, tries: number): void {
    const { hosts, questioner, waiters, log, clock } = this.#options;
    const config = hosts.vm(vm);
    if (config === null) return;
    questioner.ask(config, state, host, what).then(({ event, reason, detail }) => {
      log.info({ vm, host, ask: what.ask, reason, ...(detail === "" ? {} : { detail }) }, "answered");
      if (event !== null) this.#cache?.insist(vm, event);
      // What the source does with the right to run comes as a word of its own; that it does not take it, only here.
      if (what.ask === "resume" && reason !== "accepted") waiters.end("resolve", vm, { reason, detail: `${host} does not say that it runs ${vm} (${reason}${detail === "" ? "" : `: ${detail}`})` });
      if (what.ask === "revoke" && reason !== "accepted" && tries < REVOKE_LIMIT && hosts.connected(host)) {
        clock.after("revoke again", REVOKE_AGAIN_MS, () => {
          // The revocation's own epoch may be newer than the binding's.
          const holds = this.#cache?.state(vm)?.binding.epoch === state.binding.epoch;
          if (!this.#closed && holds) this.#ask(vm, state, host, what, tries + 1);
        });
      }
    }, (thrown: unknown) => { this.failed(vm, toCareofError(thrown)); });
  }
}

/** What the end of a lost move is for whoever has decided about it. */
function resolvedBy({ binding: { vm, phase, owner } }: VmState, { reason, detail }: MigrationResult): Ended {
  if (phase !== "lost" && owner !== null) return { reason: "accepted", detail: "" };
  const state = phase === "lost" ? `${vm} is lost again` : `${vm} runs nowhere any more`;
  return { reason: reason === "accepted" ? "unspecified" : reason, detail: detail === "" ? state : `${state}: ${detail}` };
}
