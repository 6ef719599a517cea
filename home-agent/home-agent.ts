import { randomBytes } from "node:crypto";
import type { AddressInfo } from "node:net";
import type { Clock } from "../model/clock.js";
import type { Endpoint } from "../model/config.js";
import { isV4, type Ipv4 } from "../model/address.js";
import { CareofError } from "../model/errors.js";
import { millis, type HostId, type VmId } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import type { HomeLan } from "../net/home-lan.js";
import { PathMtus, type PathWire } from "../net/path-mtu.js";
import type { HomeTunnel } from "../net/tunnel.js";
import { AGENT_PATH, Registrar } from "./registrar.js";
import { Alarms } from "./alarms.js";
import type { ReloadView } from "./api/operations.js";
import { openApi, type Api } from "./api/server.js";
import { BindingCache } from "./bindings/binding-cache.js";
import type { HomeAgentConfig } from "./config.js";
import { Drains } from "./drains/drains.js";
import { EffectDriver } from "./effect-driver.js";
import { EventBus } from "./events.js";
import { ASK_AGAIN_MS, ASK_LIMIT, COPY_SLACK_MS, publicState, type MoveRules } from "./handover/migration.js";
import { copyLimit } from "./handover/move-plan.js";
import { HeartbeatListener } from "./heartbeat-listener.js";
import { Heartbeats } from "./heartbeats.js";
import { HeldConfig } from "./held-config.js";
import { Hosts } from "./hosts.js";
import { Metrics } from "./metrics.js";
import { MigrationBook } from "./migrations.js";
import { OperatorDesk, type OperatorDeskOptions } from "./operator-desk.js";
import { ProxyArp } from "./proxy-arp.js";
import { Questioner, stopLimit, WORD_MS } from "./questions.js";
import { ReplayWindow } from "./replay.js";
import { Journal } from "./store/journal.js";
import type { Store } from "./store/store.js";
import { Waiters } from "./waiters.js";

/** An operator waits so much longer than what he waits for may take. */
const WAIT_SLACK_MS = 10_000;

export interface HomeAgentOptions {
  readonly config: HomeAgentConfig;
  /** Reads the configuration again. @throws CareofError `config-…` */
  readonly readConfig: () => HomeAgentConfig;
  readonly clock: Clock;
  readonly log: Logger;
  readonly tunnel: HomeTunnel;
  readonly pathWire: PathWire;
  /** With mode `proxy-arp`; none otherwise. */
  readonly homeLan?: HomeLan | null;
  readonly store: Store;
  readonly version: string;
}

export interface Listening {
  readonly agents: AddressInfo;
  readonly heartbeats: AddressInfo;
  readonly api: Endpoint;
}

/** Everything that a home agent is, around a tunnel, a store and a clock that were given. */
export class HomeAgent {
  readonly #options: HomeAgentOptions;
  #config: HomeAgentConfig;
  readonly #held: HeldConfig;
  readonly #paths: PathMtus;
  readonly #hosts: Hosts;
  readonly #cache: BindingCache;
  readonly #driver: EffectDriver;
  readonly #heartbeats: Heartbeats;
  readonly #registrar: Registrar;
  readonly #listener: HeartbeatListener;
  readonly #metrics: Metrics;
  readonly #desk: OperatorDesk;
  readonly #book: MigrationBook;
  readonly #drains: Drains;
  #api: Api | null = null;
  readonly #alarms: Alarms;
  #listening: Listening | null = null;
  #fence = 0;
  #closing: Promise<void> | null = null;

  static async open(options: HomeAgentOptions): Promise<HomeAgent> {
    return new HomeAgent(options, await options.store.takeOver());
  }

  private constructor(options: HomeAgentOptions, fence: number) {
    const { clock, log, tunnel, store, config } = options;
    this.#options = options;
    this.#config = config;
    this.#fence = fence;
    this.#paths = new PathMtus({
      wire: options.pathWire, clock, address: config.tunnel.address,
      changed: (to, mtu) => { this.#pathChanged(to, mtu); },
      failed: (error) => { log.warn({ code: error.code, detail: error.message }, "a path could not be probed"); },
    });
    const paths = this.#paths;
    this.#hosts = new Hosts((address) => (isV4(address) ? paths.mtu(address) : null), clock.monotonic());
    this.#hosts.configure(config.hosts, config.vms);
    const hosts = this.#hosts;
    this.#held = new HeldConfig({ store, fence, log });
    const events = new EventBus();
    const waiters = new Waiters(clock);
    const book = new MigrationBook();
    const metrics = new Metrics({ bindings: () => this.#countBindings(), hosts: () => [...hosts.hosts].filter((host) => hosts.connected(host.name)).length });
    const alarms = new Alarms({ log, metrics, events });
    this.#alarms = alarms;
    const questioner = new Questioner(() => ({ hosts, handover: this.#config.handover, timing: this.#config.timing }));
    const lan = options.homeLan ?? null;
    const proxyArp = lan === null ? null : new ProxyArp({ lan, clock, log, metrics, alarms, cameHome: (vm) => { this.#cache.insist(vm, { type: "came-home" }); } });
    this.#driver = new EffectDriver({ clock, log, tunnel, hosts, questioner, waiters, book, events, metrics, alarms, pathMtu: config.tunnel.pathMtu, paths, mode: config.home.mode, proxyArp, changed: (vm) => { this.#ended(vm); } });
    this.#cache = new BindingCache({ store, fence, clock, rim: this.#driver, rulesOf: (vm) => this.#rulesOf(vm), careOfOf: (host) => hosts.careOf(host) });
    this.#driver.attach(this.#cache);
    this.#heartbeats = new Heartbeats({ clock, log, hosts, cache: this.#cache, metrics, window: new ReplayWindow(randomBytes(32)) });
    this.#listener = new HeartbeatListener({ endpoint: config.listen.heartbeats, clock, log, receive: (datagram) => this.#heartbeats.direct(datagram) });
    this.#registrar = new Registrar({
      endpoint: config.listen.agents, clock, log, maxConnections: 4096,
      keepAliveMs: () => this.#config.timing.keepAliveMs,
      host: (name) => hosts.host(name),
      session: {
        clock, log, hosts, cache: this.#cache, heartbeats: this.#heartbeats, book, events, metrics, maxOutstanding: 4096,
        arrived: (host) => { this.#arrived(host); },
        home: () => ({
          restartCounter: this.#fence,
          tunnelAddresses: [this.#config.tunnel.address],
          keepAliveMs: this.#config.timing.keepAliveMs,
          lifetimeMs: this.#config.timing.lifetimeMs,
          heartbeatPort: this.#listening?.heartbeats.port ?? this.#config.listen.heartbeats.port,
        }),
      },
    });
    this.#metrics = metrics;
    this.#book = book;
    this.#drains = new Drains({
      store, fence, clock, log, hosts, cache: this.#cache, events,
      rules: () => ({ limit: this.#config.drain.limit, reserveBytes: this.#config.drain.reserve }),
      migrate: (vm, host, actor, wishes) => this.#desk.migrate(vm, host, actor, wishes),
      cancel: (migration) => this.#desk.cancel(migration),
    });
    this.#desk = new OperatorDesk({ hosts, cache: this.#cache, waiters, book, drains: this.#drains, events, limits: () => this.#waitingLimits(), notReady: () => (this.#listening === null ? "it has not started, or is stopping" : null), reload: () => this.reload() });
  }

  /** Bindings into the tunnel first, then the doors open. @throws CareofError `store-corrupt`, `config-invalid` as `runningConfig`, `cannot-listen`, and what the tunnel throws */
  async start(): Promise<Listening> {
    this.#warnOfKeys();
    this.#cache.restore(this.#config.vms.map((vm) => vm.name));
    this.#config = { ...this.#config, vms: this.#held.restore(this.#config.vms, (vm) => this.#runs(vm)) };
    this.#hosts.configure(this.#config.hosts, this.#config.vms);
    // Whoever began a migration before this process began asks on for its end.
    for (const { binding, migration } of this.#cache.states()) if (migration !== null) this.#book.phase(binding.vm, migration);
    await this.#driver.setRoutes();
    this.#usePaths();
    this.#drains.restore();
    const heartbeats = await this.#listener.open();
    const agents = await this.#registrar.open();
    const { clock, log, version } = this.#options;
    const { registry } = this.#metrics;
    const metrics = async (): Promise<{ readonly type: string; readonly text: string }> => ({ type: registry.contentType, text: await registry.metrics() });
    this.#api = await openApi({ listen: this.#config.listen.api, operations: this.#desk, clock, log, version, metrics });
    const api = this.#api.address;
    this.#listening = { agents, heartbeats, api };
    const at = ({ address, port }: Endpoint): string => `${address}:${String(port)}`;
    this.#options.log.info({ agents: `${at(agents)}${AGENT_PATH}`, heartbeats: at(heartbeats), api: at(api), vms: this.#cache.size, restartCounter: this.#fence }, "home agent is ready");
    return this.#listening;
  }

  get cache(): BindingCache {
    return this.#cache;
  }

  get alarms(): Alarms {
    return this.#alarms;
  }

  get metrics(): Metrics {
    return this.#metrics;
  }

  /** Every entry that the bindings want, at once: somebody else has taken away what the kernel had. @throws CareofError what the tunnel throws */
  async setRoutes(): Promise<void> {
    await this.#driver.setRoutes();
  }

  /**
   * Takes over hosts, VMs and times of the changed configuration; connections and traffic of what stays are not touched.
   * @throws CareofError `config-…`, `already-moving`, having changed nothing
   */
  async reload(): Promise<ReloadView> {
    const before = this.#config;
    const config = this.#options.readConfig();
    this.#requireMoves(config);
    const { vms, held } = this.#held.take(before.vms, config.vms, (vm) => this.#runs(vm));
    const needRestart = (["name", "stateDir", "runDir", "tunnel", "home", "listen"] as const).filter((key) => JSON.stringify(before[key]) !== JSON.stringify(config[key]));
    for (const key of needRestart) this.#options.log.warn({ key }, "a change that needs a restart was not taken over");
    for (const { vm, keys } of held) this.#options.log.warn({ vm, keys }, "a change that counts from the VM's next start: it runs as it was");
    if (config.log.level !== before.log.level) this.#options.log.level = config.log.level;
    this.#config = { ...before, hosts: config.hosts, vms, exposedKeys: config.exposedKeys, timing: config.timing, handover: config.handover, drain: config.drain, log: config.log };
    this.#warnOfKeys();
    this.#hosts.configure(config.hosts, vms);
    const wanted = new Set(config.vms.map((vm) => vm.name));
    for (const vm of before.vms) if (!wanted.has(vm.name)) this.#driver.forget(vm.name);
    this.#cache.restore(wanted);
    this.#heartbeats.configure();
    // Before the updates of what is new: an address or a port may be another VM's now. And before the connection of a host that is not listed at all is closed.
    for (const vm of before.vms) this.#driver.announceRemoval(vm);
    this.#registrar.dismissUnlisted();
    this.#usePaths();
    await this.#driver.setRoutes();
    for (const vm of vms) {
      const state = this.#cache.state(vm.name);
      if (state !== null) this.#driver.announce(state, vm);
    }
    await this.#held.written();
    this.#options.log.info({ hosts: config.hosts.length, vms: vms.length }, "configuration taken over");
    return { hosts: config.hosts.length, vms: vms.length, needRestart, nextStart: held.map(({ vm, keys }) => ({ vm, keys: [...keys] })) };
  }

  /** A guest of it is somewhere, or may be. */
  #runs(vm: VmId): boolean {
    const state = this.#cache.state(vm);
    return state !== null && (state.binding.owner !== null || state.binding.starting !== null || state.migration !== null);
  }

  /** A VM that has ended is from now on what the file has wanted for a while. */
  #ended(vm: VmId): void {
    if (!this.#held.has(vm) || this.#runs(vm)) return;
    const wanted = this.#held.ended(vm);
    if (wanted === null) return;
    this.#config = { ...this.#config, vms: this.#config.vms.map((each) => (each.name === vm ? wanted : each)) };
    this.#hosts.configure(this.#config.hosts, this.#config.vms);
    this.#heartbeats.configure();
    this.#options.log.info({ vm }, "the VM's changed configuration counts from now on");
    const state = this.#cache.state(vm);
    if (state !== null) this.#driver.announce(state, wanted);
  }

  /** Clean: nothing is acknowledged that was not written, and the tunnel stays as it is. Only the first call does something. */
  async close(): Promise<void> {
    this.#closing ??= this.#close();
    await this.#closing;
  }

  async #close(): Promise<void> {
    this.#listening = null;
    await this.#api?.close();
    await this.#registrar.close();
    await this.#listener.close();
    this.#drains.close();
    this.#cache.close();
    this.#driver.close();
    this.#paths.close();
    await this.#options.store.close();
    this.#options.homeLan?.close({ keep: true });
    await this.#options.tunnel.close({ keep: true });
  }

  /** The path to a host carries at most what is configured here and what it has registered. */
  #usePaths(): void {
    const { pathMtu } = this.#config.tunnel;
    this.#paths.set(new Map([...this.#hosts.careOfs()].flatMap(([address, known]) => (isV4(address) ? [[address, known === 0 ? pathMtu : Math.min(pathMtu, known)] as const] : []))));
  }

  #arrived(host: HostId): void {
    this.#usePaths();
    const careOf = this.#hosts.careOf(host);
    if (careOf !== null && isV4(careOf)) this.#paths.probe(careOf);
    this.#driver.rerouteHost(host);
  }

  #pathChanged(to: Ipv4, mtu: number): void {
    this.#options.log.warn({ careOf: to, pathMtu: mtu }, "the path to a host carries packets of another size");
    for (const { name } of this.#hosts.hosts) if (this.#hosts.careOf(name) === to) this.#driver.rerouteHost(name);
  }

  /**
   * What a host says of a move is said until it is decided, and "there is no such VM" is a decision: without the VM or one of its two hosts the RELEASE would be lost, and with it who may run
   * the guest. A VM that is lost waits for a person, who may do without it. @throws CareofError `already-moving`
   */
  #requireMoves({ vms, hosts }: HomeAgentConfig): void {
    for (const { binding: { vm: name }, migration } of this.#cache.states()) {
      if (migration === null || migration.phase === "lost") continue;
      const { id, from, to } = migration;
      const listed = vms.find((vm) => vm.name === name)?.hosts;
      const missing = listed === undefined ? name : [from, to].find((host) => !listed.includes(host) || !hosts.some((each) => each.name === host));
      if (missing === undefined) continue;
      throw new CareofError("already-moving", `${name} moves from ${from} to ${to} (${id}): a configuration ${missing === name ? "without it" : `that does not list ${missing} for it`} can be taken over when that is over`, { retryable: true });
    }
  }

  #warnOfKeys(): void {
    const { exposedKeys } = this.#config;
    if (exposedKeys.length > 0) this.#options.log.warn({ files: exposedKeys.slice(0, 20), count: exposedKeys.length }, "others can read these keys, and speak for the guests: chmod 600");
  }

  #rulesOf(name: Parameters<Hosts["vm"]>[0]): MoveRules | null {
    const vm = this.#hosts.vm(name);
    if (vm === null) return null;
    const { timing, handover } = this.#config;
    return { hosts: vm.hosts, driver: vm.driver, lifetimeMs: timing.lifetimeMs, graceMs: timing.graceMs, handover };
  }

  #waitingLimits(): ReturnType<OperatorDeskOptions["limits"]> {
    const { timing, handover } = this.#config;
    return {
      start: millis(timing.startMs + WAIT_SLACK_MS),
      stop: millis(stopLimit(timing) + WAIT_SLACK_MS),
      resolve: millis(WORD_MS + WAIT_SLACK_MS),
      migration: (plan) => millis(handover.prepareMs + copyLimit(plan ?? handover) + COPY_SLACK_MS + ASK_AGAIN_MS * ASK_LIMIT + WAIT_SLACK_MS),
    };
  }

  #countBindings(): ReadonlyMap<string, number> {
    const counts = new Map<string, number>();
    for (const { binding } of this.#cache.states()) counts.set(publicState(binding.phase), (counts.get(publicState(binding.phase)) ?? 0) + 1);
    return counts;
  }
}

/** The journal of a state directory. @throws CareofError as `Journal.open` */
export async function openStore(stateDir: string, log: Logger): Promise<Store> {
  const journal = await Journal.open({ directory: stateDir });
  if (journal.cut > 0) log.warn({ bytes: journal.cut }, "the journal's torn tail, never acknowledged, was cut off");
  return journal;
}
