import type { GuestStatus, StreamStatus } from "../../../agent/hypervisor/driver.js";
import { beginSource, recoverSource, stepSource } from "../../../agent/migration/source.js";
import { ended, sourceMayRun } from "../../../agent/migration/source-phases.js";
import type { SourceEvent, SourcePlan, SourceState, SourceStep } from "../../../agent/migration/source-shapes.js";
import { beginTarget, recoverTarget, stepTarget, targetMayRun, type TargetEvent, type TargetState, type TargetStep } from "../../../agent/migration/target.js";
import { epoch, migrationId, millis, vmId } from "../../../model/ids.js";

export const VM = vmId("web1");
export const PLAN: SourcePlan = {
  migration: migrationId(VM, epoch(2)), vm: VM, epoch: epoch(2), lead: false, holdMaxMs: millis(500), timeoutMs: millis(10_000), downtimeLimitMs: millis(20), onTimeout: "abort", forceMs: millis(5000), postcopy: false,
  disks: false,
};

type Side = "source" | "target";
interface Item { readonly name: string; readonly run: () => void }
/** What is on its way; each channel keeps its order, channels do not wait for each other. */
type Channel = "source-commands" | "source-events" | "target-commands" | "target-events" | "relay" | "source-home" | "target-home" | "home-source" | "home-target" | "source-timer" | "target-timer" | "source-hypervisor";

/**
 * One migration with everything around it: two machines, two hypervisors as they were measured, the relay between them, two disks, and a home agent that
 * does what the protocol says. Nothing happens by itself: `choices` says what may happen next, `act` lets it.
 */
export class World {
  source: SourceState | null = null;
  target: TargetState | null = null;
  sourceGuest: GuestStatus = "running";
  targetGuest: GuestStatus | "none" = "none";
  stream: StreamStatus = "none";
  readonly disk: { source: "active" | "released" | "resumed" | null; target: "prepared" | "continued" | "never-ran" | null } = { source: null, target: null };
  readonly diskBroken = { source: false, target: false };
  readonly home = { sourceRuns: false, sourceGone: false, released: false, running: false, neverRan: false, died: false };
  readonly log: string[] = [];
  killed = false;
  /** On the target's disk. */
  fetching = false;
  /** A postcopy has begun, from which there is no way back. */
  postcopy = false;
  #relay: "none" | "up" | "cut" = "none";
  #release = false;
  readonly #queues = new Map<Channel, Item[]>();

  constructor(readonly plan = PLAN) {
    this.disk.target = "prepared";
    this.targetGuest = "incoming";
    this.#target(beginTarget(PLAN));
    this.#target(stepTarget(this.target ?? fail(), { kind: "ready" }));
    this.#source(beginSource(plan));
  }

  /** Everything that may happen now, faults apart. */
  choices(): Item[] {
    const heads: Item[] = [];
    for (const queue of this.#queues.values()) if (queue[0] !== undefined) heads.push({ name: queue[0].name, run: () => { queue.shift()?.run(); } });
    const advance = this.#advance();
    return advance === null ? heads : [...heads, advance];
  }

  faults(): Item[] {
    return [
      { name: "cut relay", run: () => { this.#cut(); } },
      { name: "crash source agent", run: () => { this.#crash("source"); } },
      { name: "crash target agent", run: () => { this.#crash("target"); } },
      { name: "kill source guest", run: () => { this.#kill("source"); } },
      { name: "kill target guest", run: () => { this.#kill("target"); } },
      { name: "abort", run: () => { this.#push("home-source", "abort", () => { this.#toSource({ kind: "abort", reason: "cancelled-by-operator" }); }); } },
      { name: "abort target", run: () => { this.#push("home-target", "abort", () => { this.#toTarget({ kind: "abort", reason: "cancelled-by-operator" }); }); } },
      { name: "source disk", run: () => { this.diskBroken.source = !this.diskBroken.source; } },
      { name: "target disk", run: () => { this.diskBroken.target = !this.diskBroken.target; } },
    ];
  }

  act(item: Item): void {
    this.log.push(item.name);
    item.run();
    this.check();
  }

  /** Lets everything come to rest, with no more faults. */
  settle(): void {
    this.diskBroken.source = false;
    this.diskBroken.target = false;
    for (let steps = 0; steps < 5000; steps++) {
      const [next, ...others] = this.choices();
      if (next === undefined) {
        if (!this.#remind()) return;
        continue;
      }
      this.act(others[steps % (others.length + 1)] ?? next);
    }
    throw new Error(`does not come to rest: ${this.log.slice(-40).join(", ")}`);
  }

  check(): void {
    if (this.sourceGuest === "running" && executes(this.targetGuest)) throw new Error(`both run: ${this.log.join(", ")}`);
    if (this.source !== null && this.sourceGuest === "running" && !sourceMayRun(this.source.phase)) throw new Error(`the source runs in ${this.source.phase}: ${this.log.join(", ")}`);
    if (this.target !== null && executes(this.targetGuest) && !targetMayRun(this.target.phase)) throw new Error(`the target runs in ${this.target.phase}: ${this.log.join(", ")}`);
  }

  get running(): number {
    return Number(this.sourceGuest === "running") + Number(executes(this.targetGuest));
  }

  #push(channel: Channel, name: string, run: () => void): void {
    const queue = this.#queues.get(channel) ?? [];
    queue.push({ name: `${channel}: ${name}`, run });
    this.#queues.set(channel, queue);
  }

  #clear(...channels: Channel[]): void {
    for (const channel of channels) this.#queues.delete(channel);
  }

  #toSource(event: SourceEvent): void {
    if (this.source !== null) this.#source(stepSource(this.source, event));
  }

  #toTarget(event: TargetEvent): void {
    if (this.target !== null) this.#target(stepTarget(this.target, event));
  }

  #source({ state, effects }: SourceStep): void {
    this.source = state;
    for (const effect of effects) {
      switch (effect.kind) {
        case "record":
          if (this.diskBroken.source) {
            // The worst of failures: the disk has it and says that it has not.
            if (Math.floor(this.log.length / 2) % 2 === 0) this.disk.source = effect.state;
            this.#push("source-commands", "record failed", () => { this.#toSource({ kind: "record-failed", detail: "disk" }); });
          } else {
            this.disk.source = effect.state;
            this.#toSource({ kind: "recorded", state: effect.state });
          }
          break;
        case "connect":
          if (this.#relay === "none") this.#relay = "up";
          this.#push("relay", "ready", () => { this.#toSource(this.#relay === "up" ? { kind: "relay-ready" } : { kind: "relay-lost", detail: "" }); });
          this.#push("target-events", "relay up", () => { this.#toTarget({ kind: "relay-up" }); });
          break;
        case "send":
          if (this.plan.postcopy && this.log.length % 4 > 0) this.#push("source-timer", "copy", () => { this.#toSource({ kind: "timer", name: "copy" }); });
          this.#push("source-commands", "migrate", () => { this.stream = this.#relay === "up" ? "active" : "failed"; if (this.stream === "failed") this.#sourceEvent({ kind: "stream", status: "failed" }); }); break;
        case "cut": this.#cut(); break;
        case "start-postcopy": this.#push("source-commands", "postcopy", () => {
          if (this.stream !== "active" || this.sourceGuest !== "running") return;
          this.postcopy = true;
          this.sourceGuest = "halted";
          this.#sourceEvent({ kind: "stopped", at: millis(1) });
        }); break;
        case "end-guest": this.#push("source-commands", "end", () => { this.sourceGuest = "gone"; }); break;
        case "cancel-send": this.#push("source-commands", "cancel", () => { this.#cancel(); }); break;
        case "continue-switchover": this.#push("source-commands", "continue", () => { if (this.stream === "pre-switchover") this.stream = "device"; }); break;
        case "resume-guest": this.#push("source-commands", "cont", () => { this.#contSource(); }); break;
        case "look": this.#push("source-commands", "look", () => { this.#toSource({ kind: "guest", status: this.sourceGuest, stream: this.sourceGuest === "gone" ? "none" : this.stream }); }); break;
        case "send-release": if (this.#relay === "up") { this.#release = true; this.#push("relay", "release", () => { this.#toTarget({ kind: "release", epoch: PLAN.epoch, stopAt: millis(1) }); }); } break;
        case "destroy-guest": this.#push("source-commands", "destroy", () => { this.sourceGuest = "gone"; }); break;
        case "report-released": this.#push("source-home", "released", () => { this.home.released = true; this.#grant(); }); break;
        case "report-ended": this.#push("source-home", effect.result, () => { if (effect.result === "source-runs") this.home.sourceRuns = true; else this.home.sourceGone = true; this.#abortTarget(); }); break;
        case "timer": if (effect.name === "look" || (effect.name === "copy" && state.sending && this.log.length % 4 === 0)) this.#push("source-timer", effect.name, () => { this.#toSource({ kind: "timer", name: effect.name }); }); break;
        default: break;
      }
    }
  }

  #target({ state, effects }: TargetStep): void {
    this.target = state;
    for (const effect of effects) {
      switch (effect.kind) {
        case "record":
          if (this.diskBroken.target) {
            if (Math.floor(this.log.length / 2) % 2 === 0) this.disk.target = effect.state;
            this.#push("target-commands", "record failed", () => { this.#toTarget({ kind: "record-failed", detail: "disk" }); });
          } else {
            this.disk.target = effect.state;
            this.fetching = state.postcopy === "begun";
            this.#toTarget({ kind: "recorded", state: effect.state });
          }
          break;
        case "continue-guest": this.#push("target-commands", "cont", () => { if (this.targetGuest === "loaded") { this.targetGuest = this.stream === "postcopy-active" ? (this.#relay === "up" ? "fetching" : "stranded") : this.stream === "postcopy-paused" ? "stranded" : "running"; this.#targetEvent({ kind: "resumed", at: millis(2) }); } }); break;
        case "look": this.#push("target-commands", "look", () => { this.#toTarget({ kind: "guest", status: this.targetGuest === "none" ? "gone" : this.targetGuest, at: millis(2) }); }); break;
        case "cut": this.#cut(); break;
        case "record-arrived": this.fetching = false; break;
        case "destroy-guest": this.#push("target-commands", "destroy", () => { this.targetGuest = "gone"; this.#toTarget({ kind: "destroyed" }); }); break;
        case "report-running": this.#push("target-home", "running", () => { this.home.running = true; this.#revoke(); }); break;
        case "report-ended": this.#push("target-home", effect.result, () => { if (effect.result === "target-died") { this.home.died = true; this.#revoke(); } else { this.home.neverRan = true; this.#afterNeverRan(); } }); break;
        case "timer": if (effect.name === "look" || effect.name === "claim" || effect.name === "bury") this.#push("target-timer", effect.name, () => { this.#toTarget({ kind: "timer", name: effect.name }); }); break;
        default: break;
      }
    }
  }

  #sourceEvent(event: SourceEvent): void {
    this.#push("source-events", event.kind, () => { this.#toSource(event); });
  }

  #targetEvent(event: TargetEvent): void {
    this.#push("target-events", event.kind, () => { this.#toTarget(event); });
  }

  /** What the source's hypervisor does next by itself. */
  #advance(): Item | null {
    if (this.sourceGuest === "gone") return null;
    const up = this.#relay === "up" && this.targetGuest !== "gone";
    switch (this.stream) {
      case "active":
        return { name: "hypervisor: stop or fail", run: () => {
          if (!up) { this.#streamFailed(); return; }
          this.stream = "pre-switchover";
          if (!this.postcopy) this.#sourceEvent({ kind: "stopped", at: millis(1) });
          this.sourceGuest = "halted";
          this.#sourceEvent({ kind: "stream", status: "pre-switchover" });
        } };
      case "device":
        if (up && this.postcopy) {
          return { name: "hypervisor: postcopy", run: () => {
            this.stream = "postcopy-active";
            this.targetGuest = "loaded";
            this.#targetEvent({ kind: "stream", status: "postcopy-active" });
            this.#sourceEvent({ kind: "stream", status: "postcopy-active" });
          } };
        }
        if (up && this.targetGuest === "incoming") return { name: "hypervisor: loaded", run: () => { this.targetGuest = "loaded"; this.#targetEvent({ kind: "stream", status: "completed" }); } };
        return { name: "hypervisor: completed or failed", run: () => {
          if (!up) { this.#streamFailed(); return; }
          this.stream = "completed";
          this.sourceGuest = "handed-over";
          this.#sourceEvent({ kind: "stream", status: "completed" });
        } };
      case "postcopy-active":
        return { name: "hypervisor: the last page, or none any more", run: () => {
          this.stream = up ? "completed" : "postcopy-paused";
          if (up) this.sourceGuest = "handed-over";
          if (this.targetGuest === "fetching") this.targetGuest = up ? "running" : "stranded";
          this.#sourceEvent({ kind: "stream", status: this.stream });
          if (this.targetGuest !== "gone") this.#targetEvent({ kind: "stream", status: this.stream });
        } };
      default: return null;
    }
  }

  #streamFailed(): void {
    this.stream = "failed";
    this.#sourceEvent({ kind: "stream", status: "failed" });
    // Stopped before it was told to go over: QEMU does not let it run again by itself.
    if (this.sourceGuest === "halted" && !this.postcopy) this.#sourceResumes();
  }

  #sourceResumes(): void {
    this.sourceGuest = "running";
    this.#sourceEvent({ kind: "resumed" });
  }

  #cancel(): void {
    if (this.sourceGuest === "gone" || !["active", "pre-switchover", "device"].includes(this.stream)) return;
    this.stream = "cancelled";
    this.#sourceEvent({ kind: "stream", status: "cancelled" });
    if (this.sourceGuest === "halted" && !this.postcopy) this.#sourceResumes();
    this.#endIncoming();
  }

  #contSource(): void {
    if ((this.sourceGuest === "halted" && ["failed", "cancelled", "none"].includes(this.stream)) || this.sourceGuest === "handed-over") this.#sourceResumes();
  }

  #cut(): void {
    const wasUp = this.#relay === "up";
    this.#relay = "cut";
    if (!wasUp) return;
    if (this.#release) this.#queues.set("relay", (this.#queues.get("relay") ?? []).filter((item) => item.name.includes("release") && this.log.length % 2 === 0));
    this.#push("source-events", "relay lost", () => { this.#toSource({ kind: "relay-lost", detail: "cut" }); });
    this.#push("target-events", "relay lost", () => { this.#toTarget({ kind: "relay-lost", detail: "cut" }); });
    this.#endIncoming();
  }

  #endIncoming(): void {
    if (this.targetGuest !== "incoming" || this.#relay === "none") return;
    this.targetGuest = "gone";
    this.#targetEvent({ kind: "stream", status: "failed" });
    this.#targetEvent({ kind: "guest", status: "gone", at: millis(2) });
  }

  #kill(side: Side): void {
    if (side === "source") {
      if (this.sourceGuest === "gone") return;
      this.killed = true;
      this.sourceGuest = "gone";
      if (this.stream === "postcopy-active") this.stream = "postcopy-paused";
      if (this.stream === "postcopy-paused" && this.targetGuest === "fetching") this.targetGuest = "stranded";
      if (this.stream === "postcopy-paused" && this.targetGuest !== "gone") this.#targetEvent({ kind: "stream", status: "postcopy-paused" });
      this.#sourceEvent({ kind: "guest", status: "gone", stream: "none" });
    } else if (this.targetGuest !== "none" && this.targetGuest !== "gone") {
      this.killed = true;
      this.targetGuest = "gone";
      this.#targetEvent({ kind: "guest", status: "gone", at: millis(2) });
    }
  }

  /** The agent's process dies and comes back: everything in memory and on its way is lost, the guest and the disk are not. */
  #crash(side: Side): void {
    this.#cut();
    if (side === "source") {
      this.#clear("source-commands", "source-events", "source-home", "home-source", "source-timer");
      const record = this.disk.source;
      if (record !== null && !(this.source !== null && ended(this.source) && this.source.phase === "revoked")) {
        this.#source(recoverSource(this.plan, record, { stopAt: null, markerAt: null, bytes: 0 }, this.postcopy));
      }
    } else {
      this.#clear("target-commands", "target-events", "target-home", "home-target", "target-timer");
      if (this.disk.target !== null) this.#target(recoverTarget(PLAN, this.disk.target, this.fetching));
    }
    this.#remind();
  }

  /** The home agent, when it sees a host register: it says again what it knows. */
  #remind(): boolean {
    const { home } = this;
    const before = this.choices().length;
    if (home.sourceRuns || home.sourceGone) this.#abortTarget();
    if (home.running || home.died) this.#revoke();
    if (home.neverRan) this.#afterNeverRan();
    if (home.released) this.#grant();
    return this.choices().length > before && this.#unsettled();
  }

  #unsettled(): boolean {
    const sourceOpen = this.source !== null && !ended(this.source) && this.source.phase !== "starting";
    const targetOpen = this.target !== null && (this.target.phase === "waiting" || this.target.phase === "fetching");
    return sourceOpen || targetOpen;
  }

  #abortTarget(): void {
    if (this.target !== null && !["running", "buried", "died"].includes(this.target.phase)) this.#push("home-target", "abort", () => { this.#toTarget({ kind: "abort", reason: "migrate-failed" }); });
  }

  #revoke(): void {
    // What is still fetched from is not revoked.
    if (this.source?.phase === "released" && (this.target?.phase !== "fetching" || this.home.died)) this.#push("home-source", "revoke", () => { this.#toSource({ kind: "revoke" }); });
  }

  #afterNeverRan(): void {
    if (this.source?.phase === "released" || this.source?.phase === "serving") this.#push("home-source", "resume", () => { this.#toSource({ kind: "resume" }); });
    else if (this.source !== null && !ended(this.source)) this.#push("home-source", "abort", () => { this.#toSource({ kind: "abort", reason: "target-gone" }); });
  }

  #grant(): void {
    if (this.target?.phase === "waiting") this.#push("home-target", "grant", () => { this.#toTarget({ kind: "release", epoch: PLAN.epoch, stopAt: null }); });
  }
}

function executes(status: GuestStatus | "none"): boolean {
  return status === "running" || status === "fetching" || status === "stranded";
}

function fail(): never {
  throw new Error("no machine");
}
