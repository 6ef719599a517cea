import { coordinate, vmDeadline } from "../../home-agent/handover/coordinator.js";
import { durable, restore } from "../../home-agent/handover/durable.js";
import { routeOf, type MoveRules, type VmEvent, type VmState } from "../../home-agent/handover/migration.js";
import { unbound, type Now } from "../../home-agent/bindings/binding.js";
import type { HostLife } from "../../home-agent/host-life.js";
import type { Effect, Outcome, Question } from "../../home-agent/outcome.js";
import { epoch, hostId, millis, NEVER_BOUND, vmId, type Epoch, type HostId, type MigrationId } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import type { Body, MigrationRecord } from "../../proto/messages.js";

export const VM = vmId("web1");
export const A = hostId("host-a");
export const B = hostId("host-b");

export const RULES: MoveRules = {
  hosts: [A, B], driver: "qemu", lifetimeMs: millis(30_000), graceMs: millis(2000),
  handover: {
    lead: true, holdMaxMs: millis(250), downtimeLimitMs: millis(100), maxBandwidth: 0, timeoutMs: millis(600_000), onTimeout: "abort", forceMs: millis(60_000), autoConverge: false, channels: 1, postcopy: false, encrypt: true, prepareMs: millis(20_000),
    targetGoneMs: millis(3000), sourceGoneMs: millis(10_000), lostAfterMs: millis(5000),
  },
};

type Said = Body<"leadReady" | "switchOver" | "released" | "running" | "sourceEnded" | "targetEnded">;

interface Letter {
  readonly body: Said;
  /** Sent again at the next registration, until it was accepted. */
  readonly durable: boolean;
}

/** One host: what a well-behaved agent does, with everything that it has on disk. */
class Host {
  readonly name: HostId;
  runs = false;
  epoch: Epoch = NEVER_BOUND;
  record: MigrationRecord | null = null;
  connected = true;
  /** How often its agent was started. */
  starts = 1;
  /** To the home agent. */
  outbox: Letter[] = [];
  /** Questions of the home agent on their way here. */
  inbox: { readonly question: Question; readonly migration: MigrationId | null }[] = [];

  constructor(name: HostId) {
    this.name = name;
  }

  get life(): HostLife {
    return { instance: `${this.name} ${String(this.starts)}`, restartCounter: this.starts };
  }
}

export interface Step {
  readonly name: string;
  readonly run: () => void;
}

/**
 * The home agent's machine between two simulated hosts and the relay between them. Every message may be late, doubled or out of order; hosts, links and the home
 * agent may break at any time. `steps` are the things that can happen next.
 */
export class TwoHosts {
  readonly a = new Host(A);
  readonly b = new Host(B);
  state: VmState = { binding: unbound(VM, NEVER_BOUND), migration: null, givenBack: [] };
  /** What the store has. */
  #stored: unknown = null;
  mono = 1_000_000;
  /** The relay of the migration under way: whether it still carries, and whether the RELEASE is in it. */
  relay: { migration: MigrationId; alive: boolean; release: boolean } | null = null;
  readonly owners = new Map<number, string>();
  readonly trace: string[] = [];
  readonly finished: string[] = [];

  constructor() {
    this.a.runs = true;
    this.dispatch({ type: "report", host: A, report: { vm: VM, state: "runs", basedOn: NEVER_BOUND, locator: null, unreachable: false, evidence: "running" }, careOfListed: true, ownerConnected: false, ownerPassesOn: false });
  }

  get hosts(): readonly Host[] {
    return [this.a, this.b];
  }

  now(): Now {
    return { mono: millis(this.mono), wall: millis(1_700_000_000_000 + this.mono) };
  }

  dispatch(event: VmEvent): Reason {
    const outcome: Outcome<VmState> = coordinate(this.state, event, this.now(), RULES);
    if (outcome.commit !== null) this.#stored = JSON.parse(JSON.stringify(durable(outcome.state)));
    this.#adopt(outcome.state);
    for (const effect of outcome.effects) this.#perform(effect);
    return outcome.reason;
  }

  steps(): readonly Step[] {
    const steps: Step[] = [];
    // What carries a migration on is likelier than what breaks it, so that the interesting ends are reached.
    const add = (name: string, run: () => void): void => {
      const weight = /hears|releases|RELEASE|registers/.test(name) ? 6 : /says|operator: (to|resolve)/.test(name) ? 3 : 1;
      for (let i = 0; i < weight; i++) steps.push({ name, run });
    };
    for (const host of this.hosts) {
      const other = host === this.a ? this.b : this.a;
      host.inbox.forEach((_letter, i) => { if (i === 0) add(`${host.name} hears`, () => { this.#hear(host); }); });
      host.outbox.forEach((letter, i) => {
        if (!host.connected) return;
        add(`${host.name} says ${letter.body.kind}`, () => { this.#say(host, i, false); });
        add(`${host.name} says ${letter.body.kind} twice`, () => { this.#say(host, i, true); });
      });
      if (host.record?.side === "source" && host.record.state === "active") {
        add(`${host.name} leads`, () => { host.outbox.push({ durable: false, body: { kind: "leadReady", migration: idOf(host) } }); });
        add(`${host.name} switches over`, () => { host.outbox.push({ durable: false, body: { kind: "switchOver", migration: idOf(host), stopAt: millis(1), markerAt: null, hold: "no-gate" } }); });
        if (this.relay?.alive === true && this.relay.migration === host.record.migration) add(`${host.name} releases`, () => { this.#release(host); });
        add(`${host.name} fails`, () => { this.#resume(host, "migrate-failed"); });
      }
      if (host.record?.side === "target" && host.record.state === "prepared") {
        add(`${host.name} gives up`, () => { this.#neverRan(host, "relay-failed"); });
        if (this.relay?.alive === true && this.relay.release && this.relay.migration === host.record.migration) add(`${host.name} gets the RELEASE`, () => { this.#continue(host); });
      }
      if (host.connected) add(`${host.name} is cut off`, () => { this.disconnect(host); });
      else add(`${host.name} registers`, () => { this.connect(host); });
      if (this.state.migration === null) add(`operator: to ${host.name}`, () => { this.migrate(host, other); });
    }
    if (this.relay?.alive === true) add("the relay breaks", () => { if (this.relay !== null) this.relay.alive = false; });
    const { migration } = this.state;
    if (migration !== null) {
      add("operator: cancel", () => { this.dispatch({ type: "cancel", migration: migration.id }); });
      if (migration.phase === "lost") add("operator: resolve to the target", () => { this.dispatch({ type: "resolve", host: migration.to, actor: "operator", force: false, connected: this.#host(migration.to).connected }); });
    }
    add("time passes", () => { this.sleep(); });
    add("the home agent is killed", () => { this.crash(); });
    return steps;
  }

  migrate(to: Host, from: Host): void {
    this.dispatch({ type: "migrate", host: to.name, actor: "operator", sourceConnected: from.connected, targetConnected: to.connected, targetLife: to.life, sourceCanLead: true });
  }

  /** To the next deadline, and what it brings. */
  sleep(): void {
    const due = vmDeadline(this.state, RULES);
    if (due === null) return;
    this.mono = Math.max(this.mono, due);
    // The owner's reports keep it fresh, as in life.
    for (const host of this.hosts) if (host.connected && host.runs) this.#reportOf(host);
    this.dispatch({ type: "deadline" });
    const next = vmDeadline(this.state, RULES);
    if (next !== null && next <= this.mono) throw new Error(`a deadline that stays: ${this.state.migration?.phase ?? this.state.binding.phase}`);
  }

  crash(): void {
    this.#adopt(restore(VM, this.#stored, this.now()));
    for (const host of this.hosts) this.#lose(host);
  }

  disconnect(host: Host): void {
    const open = host.inbox;
    this.#lose(host);
    this.dispatch({ type: "host-gone", host: host.name });
    for (const { question, migration } of open) this.#refuse(question, migration, "host-gone", false);
  }

  /** Its agent was started again, from the same disk. */
  connect(host: Host): void {
    host.connected = true;
    host.starts += 1;
    this.#reportOf(host);
    const { record } = host;
    this.dispatch({ type: "host-back", host: host.name, life: host.life, records: record === null ? [] : [record], reported: host.runs ? "runs" : record?.side === "target" ? "incoming" : "absent" });
    this.#tell();
  }

  /** Everything that can settle by itself, does. */
  quiesce(): void {
    for (let i = 0; i < 400; i++) {
      for (const host of this.hosts) if (!host.connected) this.connect(host);
      const busy = this.hosts.find((host) => host.inbox.length > 0);
      const speaking = this.hosts.find((host) => host.outbox.length > 0);
      const released = this.hosts.find((host) => host.record?.state === "prepared");
      if (busy !== undefined) this.#hear(busy);
      else if (speaking !== undefined) this.#say(speaking, 0, false);
      else if (released !== undefined && this.relay?.release === true && this.relay.alive) this.#continue(released);
      else if (released !== undefined && this.relay?.alive !== true) this.#neverRan(released, "relay-failed");
      else if (this.state.migration === null && i > 20) {
        for (const host of this.hosts) this.#reportOf(host);
        return;
      }
      else if (this.state.migration?.phase === "copy" || this.state.migration?.phase === "lead" || this.state.migration?.phase === "stop") this.dispatch({ type: "cancel", migration: this.state.migration.id });
      else this.sleep();
    }
  }

  #host(name: HostId): Host {
    return name === A ? this.a : this.b;
  }

  #adopt(state: VmState): void {
    const changed = state.binding.epoch !== this.state.binding.epoch || state.binding.owner !== this.state.binding.owner || state.binding.phase !== this.state.binding.phase;
    if (state.binding.epoch < this.state.binding.epoch) throw new Error(`epoch ${String(state.binding.epoch)} after ${String(this.state.binding.epoch)}`);
    this.state = state;
    const { epoch: newest, owner } = state.binding;
    if (owner !== null) {
      const known = this.owners.get(newest);
      if (known !== undefined && known !== owner) throw new Error(`epoch ${String(newest)} has two owners`);
      this.owners.set(newest, owner);
    }
    if (changed) this.#tell();
  }

  /** BindingUpdate to whoever is connected. */
  #tell(): void {
    const { owner, epoch: newest } = this.state.binding;
    const owning = owner === null ? null : this.#host(owner);
    if (owning?.connected !== true) return;
    if (owning.runs) owning.epoch = newest;
    // The relay was lost after RELEASE: the home agent passes it on.
    const { record } = owning;
    if (record?.side === "target" && record.state === "prepared" && this.relay?.migration === record.migration && this.relay.release && newest >= epochOf(record.migration)) this.#continue(owning);
  }

  #perform(effect: Effect): void {
    if (effect.do === "finished") this.finished.push(effect.result.result);
    if (effect.do === "alarm" && effect.alarm === "rule-broken") throw new Error(`a well-behaved host is accused: ${effect.detail}`);
    if (effect.do !== "ask") return;
    const host = this.#host(effect.host);
    const migration = this.state.migration?.id ?? null;
    if (host.connected) host.inbox.push({ question: effect.what, migration });
    else this.#refuse(effect.what, migration, "host-gone", false);
  }

  #refuse(question: Question, migration: MigrationId | null, reason: Reason, answered: boolean): void {
    if (migration === null) return;
    if (question.ask === "prepare" || question.ask === "migrate") this.dispatch({ type: "refused", migration, ask: question.ask, reason, detail: "", answered });
    if (question.ask === "abort" && answered && question.migration === migration) this.dispatch({ type: "refused", migration, ask: "abort", reason, detail: "", answered });
  }

  #hear(host: Host): void {
    const letter = host.inbox.shift();
    if (letter === undefined) return;
    const { question, migration } = letter;
    const { record } = host;
    switch (question.ask) {
      case "prepare":
        if (migration === null || host.runs) return;
        if (record !== null && record.state !== "never-ran") {
          this.#refuse(question, migration, "prepare-failed", true);
          return;
        }
        host.outbox = host.outbox.filter((each) => each.body.kind !== "targetEnded");
        host.record = { migration, side: "target", state: "prepared", peer: host.name };
        this.relay = { migration, alive: true, release: false };
        this.dispatch({ type: "prepared", migration, relayAddress: "127.0.0.1", relayPort: 1, canLead: true });
        break;
      case "migrate":
        if (migration === null) return;
        if (!host.runs || (record !== null && record.state !== "resumed")) {
          this.#refuse(question, migration, "migrate-failed", true);
          return;
        }
        host.record = { migration, side: "source", state: "active", peer: host.name };
        break;
      case "abort":
        if (record?.migration !== question.migration) {
          if (host.name === this.state.migration?.from) this.#refuse(question, migration, "not-moving", true);
        } else if (record.state === "active") this.#resume(host, question.reason);
        else if (record.state === "prepared") this.#neverRan(host, question.reason);
        break;
      case "resume":
        if (record?.migration === question.migration && record.state === "released") {
          host.epoch = question.epoch;
          this.#resume(host, "relay-failed");
        }
        break;
      case "revoke":
        if (record?.side === "source" && record.state === "released") host.record = null;
        break;
      case "lead":
      case "start":
      case "stop": break;
    }
  }

  #say(host: Host, index: number, again: boolean): void {
    const letter = host.outbox[index];
    if (letter === undefined) return;
    if (!again) host.outbox.splice(index, 1);
    const reason = this.dispatch({ type: "said", host: host.name, body: letter.body });
    if (again || reason !== "accepted" || letter.body.kind === "released") return;
    const settles = letter.body.kind === "sourceEnded" || letter.body.kind === "targetEnded" || letter.body.kind === "running";
    if (settles && host.record?.migration === letter.body.migration) host.record = null;
  }

  #release(host: Host): void {
    const migration = idOf(host);
    host.runs = false;
    host.record = { migration, side: "source", state: "released", peer: host.name };
    if (this.relay !== null) this.relay.release = true;
    host.outbox.push({ durable: true, body: { kind: "released", migration, epoch: epochOf(migration), stopAt: millis(1), markerAt: null, bytes: 1, postcopy: false, forced: false } });
  }

  #resume(host: Host, reason: Reason): void {
    const migration = idOf(host);
    host.runs = true;
    host.record = { migration, side: "source", state: "resumed", peer: host.name };
    if (this.relay?.migration === migration && !this.relay.release) this.relay.alive = false;
    host.outbox.push({ durable: true, body: { kind: "sourceEnded", migration, result: "source-runs", reason, detail: "" } });
  }

  #neverRan(host: Host, reason: Reason): void {
    const migration = idOf(host);
    host.record = { migration, side: "target", state: "never-ran", peer: host.name };
    if (this.relay?.migration === migration) this.relay.alive = false;
    host.outbox.push({ durable: true, body: { kind: "targetEnded", migration, result: "target-never-ran", reason, detail: "", undelivered: null } });
  }

  #continue(host: Host): void {
    const migration = idOf(host);
    host.runs = true;
    host.epoch = epochOf(migration);
    host.record = { migration, side: "target", state: "continued", peer: host.name };
    host.outbox.push({ durable: true, body: { kind: "running", migration, epoch: host.epoch, resumeAt: millis(1), firstDeliverableAt: null, uplinkOpenAt: null, pauseMs: null, pauseErrorMs: millis(1), final: true, overflowed: 0, postcopy: false, resumedAtSource: null } });
  }

  #reportOf(host: Host): void {
    if (host.runs) this.dispatch({ type: "report", host: host.name, report: { vm: VM, state: "runs", basedOn: host.epoch, locator: null, unreachable: false, evidence: "refresh" }, careOfListed: true, ownerConnected: true, ownerPassesOn: true });
  }

  #lose(host: Host): void {
    host.connected = false;
    host.inbox = [];
    host.outbox = host.outbox.filter((letter) => letter.durable);
  }

  check(): void {
    if (this.a.runs && this.b.runs) throw new Error("I1: two guests run");
    const { binding, migration } = this.state;
    const route = routeOf(this.state);
    if (migration === null && binding.phase === "bound" && route?.active !== binding.owner) throw new Error("I2: the tunnel does not end at the owner");
    if (route !== null && route.active !== null && !route.accept.includes(route.active)) throw new Error("the owner may not send");
  }
}

function idOf(host: Host): MigrationId {
  if (host.record === null) throw new Error(`${host.name} has no migration`);
  return host.record.migration;
}

function epochOf(migration: MigrationId): Epoch {
  return epoch(Number(migration.split("@")[1]));
}
