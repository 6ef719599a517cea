import { randomBytes } from "node:crypto";
import { isV4, type Ipv4 } from "../model/address.js";
import type { Clock, Timer } from "../model/clock.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { millis, NEVER_BOUND, type HostId, type Millis, type VmId } from "../model/ids.js";
import { ipInIp } from "../model/locator.js";
import type { Logger } from "../model/log.js";
import { isReason, type Reason } from "../model/reasons.js";
import { careofVersion } from "../model/version.js";
import type { PathMtus } from "../net/path-mtu.js";
import type { HostTunnel } from "../net/tunnel.js";
import { decision, type Answer } from "../proto/channel.js";
import type { BindingUpdate, Body, VmReport } from "../proto/messages.js";
import type { Guests, Resident } from "./guests.js";
import type { OutsideVms } from "./external/outside-vms.js";
import type { HeartbeatRelay } from "./heartbeat-relay.js";
import type { HypervisorDriver } from "./hypervisor/driver.js";
import type { Migrations } from "./migrations.js";
import type { Outbox } from "./outbox.js";
import { ASK_LIMIT, type Session } from "./session.js";
import { Turns } from "./turns.js";
import type { VmNetwork } from "./vm-network.js";

const PROTOCOL_VERSION = 1;
/** The owner speaks three times within a binding's lifetime. */
const REFRESHES_PER_LIFETIME = 3;

export interface HostAgentOptions {
  readonly host: HostId;
  readonly careOf: Ipv4;
  readonly pathMtu: number;
  readonly memoryBytes: number;
  readonly restartCounter: number;
  readonly driver: HypervisorDriver;
  readonly network: VmNetwork;
  readonly guests: Guests;
  readonly migrations: Migrations;
  readonly outbox: Outbox;
  readonly outside: OutsideVms;
  readonly session: Session;
  readonly heartbeats: HeartbeatRelay;
  readonly clock: Clock;
  readonly log: Logger;
  /** A tunnel towards these home agents; the one before it is closed by the caller. */
  readonly openTunnel: (homeAgents: readonly Ipv4[]) => HostTunnel;
  /** Ends of the tunnel known before a home agent has said any; kept for the next start. */
  readonly knownTunnelEnds: readonly Ipv4[];
  readonly rememberTunnelEnds: (ends: readonly Ipv4[]) => void;
  /** What the paths to the home agents carry; `changed` goes to `pathChanged`. */
  readonly paths: Pick<PathMtus, "set" | "probe" | "mtu" | "close">;
}

/**
 * The host agent: what a home agent asks goes to guests and migrations, what they have to say goes there, and after each registration both views are made one
 * again.
 */
export class HostAgent {
  readonly #options: HostAgentOptions;
  readonly #instance = randomBytes(8).toString("hex");
  readonly #turns = new Turns<VmId>();
  readonly #tunnels = new Turns<"tunnel">();
  /** Of the tunnel in use. */
  #tunnelEnds: readonly Ipv4[] = [];
  #refreshTimer: Timer | null = null;
  #closed = false;

  constructor(options: HostAgentOptions) {
    this.#options = options;
  }

  /** Finds everything again that an earlier life left, makes the kernel's state so, then connects. */
  async start(): Promise<void> {
    const { guests, migrations, network, driver, session, heartbeats, outside, log, knownTunnelEnds } = this.#options;
    const gone = await guests.recover();
    const beginMigrations = await migrations.recover();
    const ended = await driver.cleanUp([...guests.all().map(({ guest }) => guest?.identity), ...migrations.adopted()].filter((identity) => identity !== undefined));
    if (ended.length > 0) log.warn({ guests: ended }, "guests without a record were ended");
    outside.recover();
    await network.apply();
    await this.#useTunnel(knownTunnelEnds);
    beginMigrations();
    for (const resident of gone) if (!migrations.has(resident.spec.vm)) this.guestDied(resident, "gone while the agent was away");
    log.info({ guests: guests.all().map(({ spec }) => spec.vm), migrations: migrations.records().length }, "host agent is ready");
    heartbeats.start();
    session.start();
  }

  /** Lets go of everything; guests, ports and tunnels live on. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#refreshTimer?.cancel();
    this.#options.session.close();
    this.#options.heartbeats.close();
    await this.#options.migrations.close();
    this.#options.outside.close();
    this.#options.paths.close();
    await this.#options.guests.release();
    await this.#options.network.tunnel?.close({ keep: true });
  }

  /** The session asks for this at each registration. */
  async registration(): Promise<Body<"register">> {
    const { host, careOf, pathMtu, restartCounter, driver, migrations, memoryBytes, outside } = this.#options;
    const facts = await driver.facts();
    return {
      kind: "register", version: PROTOCOL_VERSION, host, instance: this.#instance, restartCounter, software: `careof/${careofVersion()}`, locators: [ipInIp(careOf, pathMtu)], vms: this.#reports(), migrations: migrations.records(), known: outside.known(),
      capabilities: {
        ownsTap: facts.ownsTap, ownsStream: facts.ownsStream, canLead: facts.canLead, canHoldTarget: facts.canHoldTarget, qemuVersion: facts.version, accelerator: facts.accelerator,
        dataPlane: this.#options.network.tunnel?.driver ?? "none", memoryBytes, localDisks: true, adopts: true, postcopy: true,
      },
    };
  }

  registered(answer: Body<"registered">): void {
    const { log, outbox } = this.#options;
    log.info({ bindings: answer.bindings.length, restartCounter: answer.restartCounter }, "registered");
    this.#inBackground("tunnel", this.#useTunnel(answer.tunnelAddresses.filter(isV4)));
    for (const update of answer.bindings) this.#binding(update, true);
    outbox.flush();
    this.#refresh(millis(Math.max(100, answer.lifetimeMs / REFRESHES_PER_LIFETIME)));
  }

  lost(error: CareofError): void {
    this.#refreshTimer?.cancel();
    this.#options.log.warn({ reason: error.code, detail: error.message }, "the home agent is out of reach; what runs goes on");
  }

  /** A router has said, or it is forgotten, what fits on the way to a home agent. The reverse tunnel goes to the first. */
  pathChanged(to: Ipv4, mtu: number): void {
    const { log, network } = this.#options;
    log.warn({ homeAgent: to, pathMtu: mtu }, "the path to the home agent carries packets of another size");
    if (to !== this.#tunnelEnds[0]) return;
    try {
      network.usePathMtu(mtu);
    } catch (thrown) {
      const error = toCareofError(thrown);
      log.error({ homeAgent: to, pathMtu: mtu, reason: error.code, err: error }, "guests do not hear of the path's MTU");
    }
  }

  request(body: Body, answer: Answer): void {
    const { migrations, heartbeats, outside } = this.#options;
    switch (body.kind) {
      case "startVm": { this.#decide(body, answer, body.spec.vm, async () => { await this.#start(body); return decision("accepted", "", body.epoch); }); return; }
      case "stopVm": { this.#decide(body, answer, body.vm, () => this.#stop(body)); return; }
      case "prepare": {
        // A guest comes: what the path to the home agent carries is to be known before its first packet.
        for (const end of this.#tunnelEnds) this.#options.paths.probe(end);
        this.#decide(body, answer, body.spec.vm, () => migrations.prepare(body));
        return;
      }
      case "describeDisks": { this.#decide(body, answer, body.vm, () => migrations.describeDisks(body.vm)); return; }
      case "migrate": { this.#decide(body, answer, body.vm, async () => { await migrations.migrate(body); return decision("accepted", "", body.epoch); }); return; }
      case "lead": { this.#answer(answer, migrations.lead(body)); return; }
      case "abort": { this.#answer(answer, migrations.abort(body)); return; }
      case "resume": { this.#answer(answer, migrations.resume(body)); return; }
      case "revoke": { this.#answer(answer, migrations.revoke(body)); return; }
      case "uplinkSeen": { migrations.uplinkSeen(body); return; }
      case "bindingUpdate": { this.#binding(body, false); return; }
      case "drained": { outside.drained(body.vm, body.token); return; }
      case "heartbeatAnswer": { heartbeats.answer(body); return; }
      default: answer(decision("unsupported", `a host agent does not take ${body.kind}`));
    }
  }

  /** A guest's process ended although nobody asked it to. */
  guestDied(resident: Resident, detail: string): void {
    const { migrations, guests, network, log } = this.#options;
    const { spec, epoch } = resident;
    if (this.#closed || migrations.ownsDeathOf(spec.vm)) return;
    log.error({ vm: spec.vm, epoch, reason: "guest-gone", detail }, "a guest's process ended");
    guests.buryInTime(spec, epoch);
    this.#inBackground("detach", network.detach(spec.vm));
    this.#report({ vm: spec.vm, state: "absent", basedOn: epoch, locator: null, evidence: "guest-gone", unreachable: false });
  }

  /** A guest's monitor answers again, or does not any more. */
  reached({ spec: { vm } }: Resident): void {
    if (this.#closed) return;
    for (const report of this.#reports()) if (report.vm === vm) this.#inBackground("refresh", this.#say({ ...report, evidence: "refresh" }));
  }

  async #start({ spec, epoch, adopt }: Body<"startVm">): Promise<void> {
    if (this.#options.migrations.has(spec.vm)) throw new CareofError("already-moving", `${spec.vm} has an unsettled migration here`);
    await this.#options.guests.start(spec, epoch, adopt);
  }

  async #stop(body: Body<"stopVm">): Promise<Body<"decision">> {
    const { migrations, guests } = this.#options;
    if (migrations.ownsDeathOf(body.vm)) throw new CareofError("already-moving", `${body.vm} is moving`);
    const epoch = guests.get(body.vm)?.epoch ?? NEVER_BOUND;
    if (body.giveBack) return decision("accepted", await guests.giveBack(body.vm), epoch);
    await guests.stop(body.vm, { force: body.force, patience: body.patienceMs });
    return decision("accepted", "", epoch);
  }

  #answer(answer: Answer, reason: Reason): void {
    answer(decision(reason));
  }

  /** One after the other per VM, answered by the result or by the error's reason. */
  #decide(body: Body, answer: Answer, vm: VmId, work: () => Promise<Body>): void {
    const { log, guests } = this.#options;
    this.#turns.take(vm, work).then(answer, (thrown: unknown) => {
      const error = toCareofError(thrown);
      const reason: Reason = isReason(error.code) ? error.code : WORD[body.kind] ?? "unspecified";
      log.warn({ vm, request: body.kind, reason, detail: error.message }, "refused or failed");
      answer(decision(reason, error.message.slice(0, 500), guests.get(vm)?.epoch ?? NEVER_BOUND));
    }).catch((thrown: unknown) => { log.error({ vm, request: body.kind, err: toCareofError(thrown) }, "an answer could not be given"); });
  }

  #binding(update: BindingUpdate, registration: boolean): void {
    const { host, guests, migrations, outside } = this.#options;
    if (outside.binding(update, registration)) return;
    migrations.binding(update);
    const resident = guests.get(update.vm);
    if (resident === undefined && !migrations.has(update.vm)) {
      // An owner that is not here (it died while a move held the home agent's attention), or a start whose answer was lost: the home agent waits for a word.
      const ours = update.owner === host && (registration || update.state === "bound" || update.state === "stale");
      if (ours || (registration && update.owner === null)) this.#report({ vm: update.vm, state: "absent", basedOn: update.epoch, locator: null, evidence: "guest-gone", unreachable: false });
      return;
    }
    if (resident?.state !== "runs" || migrations.ownsDeathOf(update.vm)) return;
    if (update.owner === host) guests.rebase(update.vm, update.epoch);
    else if (update.epoch >= resident.epoch && update.state !== "moving") this.#inBackground("claim", this.#claim(resident, update));
  }

  /** Our guest, and the home agent does not know: look whether it is really there, and claim anew on the epoch that it said. */
  async #claim(resident: Resident, update: BindingUpdate): Promise<void> {
    const { spec } = resident;
    // One that cannot be asked has a process: its end would have been heard.
    if (resident.guest === null || (resident.guest.reachable && (await resident.guest.status()) === "gone")) return;
    await this.#say({ vm: spec.vm, state: "runs", basedOn: update.epoch, locator: this.#locator(), evidence: "resync", unreachable: !resident.guest.reachable });
  }

  #report(report: VmReport): void {
    this.#options.outbox.put({ key: `${report.vm}/report`, topic: `vm/${report.vm}`, body: { kind: "vmReport", ...report }, answered: () => undefined });
  }

  async #say(report: VmReport): Promise<void> {
    const { session, guests, log } = this.#options;
    const answer = await session.ask({ kind: "vmReport", ...report }, "decision", ASK_LIMIT);
    if (answer.reason === "accepted") {
      guests.rebase(report.vm, answer.epoch);
      return;
    }
    log.warn({ vm: report.vm, reason: answer.reason, epoch: answer.epoch, basedOn: report.basedOn, detail: answer.detail }, "the home agent does not accept our claim");
    const resident = guests.get(report.vm);
    // Once more, on the current epoch; only a registration would help after that.
    if (answer.reason === "stale-epoch" && report.evidence === "refresh" && resident?.guest !== null && resident?.guest !== undefined && (!resident.guest.reachable || (await resident.guest.status()) === "running")) {
      await this.#say({ ...report, basedOn: answer.epoch, evidence: "resync" });
    }
  }

  #refresh(period: Millis): void {
    this.#refreshTimer?.cancel();
    this.#refreshTimer = this.#options.clock.after("refresh", period, () => {
      this.#inBackground("tidy", this.#options.network.tidy());
      for (const report of this.#reports()) {
        if (report.state === "runs" || report.state === "paused") this.#inBackground("refresh", this.#say({ ...report, evidence: "refresh" }));
      }
      this.#refresh(period);
    });
  }

  #reports(): VmReport[] {
    const { guests, migrations, outside } = this.#options;
    return [...outside.reports(), ...guests.all().filter(({ state }) => state === "runs").map(({ spec, epoch, guest }) => ({
      vm: spec.vm, state: migrations.reportState(spec.vm) ?? "runs", basedOn: epoch, locator: this.#locator(), evidence: "resync" as const, unreachable: guest?.reachable === false,
    }))];
  }

  #locator(): ReturnType<typeof ipInIp> {
    return ipInIp(this.#options.careOf, this.#options.pathMtu);
  }

  #useTunnel(ends: readonly Ipv4[]): Promise<void> {
    return this.#tunnels.take("tunnel", () => this.#openTunnel(ends));
  }

  /** What has failed is tried again at the next registration. */
  async #openTunnel(ends: readonly Ipv4[]): Promise<void> {
    if (ends.length === 0 || (ends.length === this.#tunnelEnds.length && ends.every((end, index) => end === this.#tunnelEnds[index]))) return;
    const { network, rememberTunnelEnds, log } = this.#options;
    const before = network.tunnel;
    const tunnel = this.#options.openTunnel(ends);
    // Not those of the one before any more, and these when all is done.
    this.#tunnelEnds = [];
    log.info({ driver: tunnel.driver, homeAgents: ends }, "tunnel");
    await network.useTunnel(tunnel);
    await before?.close({ keep: true });
    this.#usePaths(ends);
    this.#tunnelEnds = ends;
    rememberTunnelEnds(ends);
  }

  #usePaths(ends: readonly Ipv4[]): void {
    const { network, pathMtu, paths } = this.#options;
    paths.set(new Map(ends.map((end) => [end, pathMtu])));
    const [first] = ends;
    if (first !== undefined) network.usePathMtu(paths.mtu(first) ?? pathMtu);
  }

  #inBackground(what: string, work: Promise<void>): void {
    work.catch((thrown: unknown) => {
      const error = toCareofError(thrown);
      this.#options.log[error.retryable ? "debug" : "error"]({ what, reason: error.code, detail: error.message }, "did not work");
    });
  }
}

/** The reason of a failure that has no better one. */
const WORD: Readonly<Partial<Record<Body["kind"], Reason>>> = { startVm: "start-failed", stopVm: "stop-failed", prepare: "prepare-failed", describeDisks: "disk-failed", migrate: "migrate-failed" };
