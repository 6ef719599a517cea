import type { Clock, Timer } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis, type Epoch, type Millis } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";
import { isReason, type Reason } from "../../model/reasons.js";
import type { Stamps } from "../../net/tunnel.js";
import type { Body } from "../../proto/messages.js";
import { NO_HOLD, type Hold, type HoldPoint } from "../hold.js";
import type { Guest, GuestEvent } from "../hypervisor/driver.js";
import { LastPacketsAwaited } from "./last-packets.js";
import type { TargetRelay } from "./relay.js";
import { stepTarget, type TargetEffect, type TargetEvent, type TargetState, type TargetStep } from "./target.js";

/** Up markers before the home agent has said that one came through: often at first, because that is the resolution of gapUp. */
const MARKER_MS = millis(5);
const MARKER_SLOW_MS = millis(100);
const MARKERS_OFTEN = 2000;
const STAMP_LOOK_MS = millis(5);
const RECORD_AGAIN_MS = millis(500);
/** The second, final `running` is said by then, with what is known. */
const FINAL_MS = 250;

/** What a target's migration needs of the host around it. */
export interface TargetRim {
  readonly clock: Clock;
  readonly log: Logger;
  readonly hold?: Hold;
  /** Network, guest process, listening hypervisor, relay: everything that must be there before anything moves. @throws CareofError */
  prepare(owned: (part: { readonly guest?: Guest; readonly relay?: TargetRelay }) => void): Promise<void>;
  /** Durable when it returns. @throws CareofError */
  record(state: "continued" | "never-ran", fetching: boolean): void;
  /** Nothing of the guest is missing any more. Durable when it returns. @throws CareofError */
  recordArrived(): void;
  stamps(): Stamps | null;
  /** Packets that found the queue of the VM's port full since `prepare`. */
  overflowed(): number;
  /** Of a guest that never ran, after `undo`: packets that had come to its port since `prepare`, and are lost with it. `null`: not known. */
  undelivered(): number | null;
  sendUpMarker(token: number): void;
  report(body: Body<"running"> | Body<"targetEnded">): void;
  /** The guest runs here. Called again after it has thrown. @throws CareofError when the disk does not take it */
  runs(guest: Guest): void;
  /** Undo everything of `prepare` that is not the guest or the relay. Idempotent. */
  undo(): Promise<void>;
}

/** Executes the target machine's effects on the hypervisor, the relay, the network and the disk. */
export class TargetRun {
  readonly #rim: TargetRim;
  readonly #timers = new Map<string, Timer>();
  readonly #events: TargetEvent[] = [];
  readonly #markers = new Map<number, Millis>();
  #state: TargetState;
  #busy = false;
  #guest: Guest | null;
  #relay: TargetRelay | null = null;
  #cut = false;
  #preparing: Promise<void> = Promise.resolve();
  #commands: Promise<void> = Promise.resolve();
  #token = 0;
  #uplinkOpenAt: Millis | null = null;
  /** Nobody says any more after a restart. */
  #lastPackets: LastPacketsAwaited | null = null;
  #stopWatching: () => void = () => undefined;
  #closed = false;

  /** `guest`: an adopted one, after a restart. */
  constructor(first: TargetStep, rim: TargetRim, guest: Guest | null) {
    this.#rim = rim;
    this.#state = first.state;
    this.#guest = guest;
    if (guest !== null) this.#watch(guest);
    this.#run(first.effects);
    this.#drain();
  }

  get state(): TargetState {
    return this.#state;
  }

  /** Resolves when the target is ready, or has failed: `state` then says which. */
  prepare(): Promise<void> {
    this.#lastPackets = new LastPacketsAwaited(this.#rim.clock, this.#state.plan.epoch);
    this.#preparing = this.#rim.prepare(({ guest, relay }) => {
      if (guest !== undefined) {
        this.#guest = guest;
        this.#watch(guest);
      }
      if (relay !== undefined) this.#use(relay);
    }).then(() => new Promise<void>((resolve) => { this.#hold("prepare", resolve); })).then(
      () => {
        this.#later({ kind: "ready" });
        this.#sendMarkers();
      },
      (thrown: unknown) => {
        const error = toCareofError(thrown);
        this.#rim.log.error({ migration: this.#state.plan.migration, reason: error.code, err: error }, "the target could not be prepared");
        this.#later({ kind: "failed", reason: isReason(error.code) ? error.code : "prepare-failed", detail: error.message });
      },
    );
    return this.#preparing;
  }

  take(event: TargetEvent): Reason {
    const { state, effects, decision } = stepTarget(this.#state, event);
    if (state.phase !== this.#state.phase) {
      this.#rim.log.info({ migration: state.plan.migration, vm: state.plan.vm, from: this.#state.phase, to: state.phase, cause: event.kind, reason: state.reason, detail: state.detail }, "target");
    }
    this.#state = state;
    this.#run(effects);
    return decision;
  }

  /** The home agent's word that the source has released. */
  granted(epoch: Epoch): void {
    this.#later({ kind: "release", epoch, stopAt: null });
  }

  uplinkSeen(token: number): void {
    if (this.#lastPackets?.seen(token) === true) return;
    if (this.#uplinkOpenAt !== null) return;
    this.#uplinkOpenAt = this.#markers.get(token) ?? null;
    if (this.#uplinkOpenAt !== null) this.#timers.get("marker")?.cancel();
  }

  /** The agent ends: the guest is left as it is, for the next life to find. */
  async abandon(): Promise<void> {
    this.close();
    await this.#guest?.release();
  }

  close(): void {
    this.#closed = true;
    this.#stopWatching();
    for (const timer of this.#timers.values()) timer.cancel();
    this.#lastPackets?.close();
    this.#cutRelay("shutting-down");
  }

  #later(event: TargetEvent): void {
    const point = holdPoint(this.#state, event);
    const go = (): void => {
      this.#events.push(event);
      if (!this.#busy) this.#drain();
    };
    if (point === null) go();
    else this.#hold(point, go);
  }

  #hold(point: HoldPoint, go: () => void): void {
    (this.#rim.hold ?? NO_HOLD).pass(point, go);
  }

  #drain(): void {
    for (let event = this.#events.shift(); event !== undefined && !this.#closed; event = this.#events.shift()) this.take(event);
  }

  #run(effects: readonly TargetEffect[]): void {
    const outer = this.#busy;
    this.#busy = true;
    for (const effect of effects) this.#safely(effect);
    this.#busy = outer;
    if (!outer) this.#drain();
  }

  /** An effect that fails (a kernel that refuses, say) must not stop the ones behind it: the machine's next event may be what saves the guest. */
  #safely(effect: TargetEffect): void {
    try {
      this.#execute(effect);
    } catch (thrown) {
      const error = toCareofError(thrown);
      this.#rim.log.error({ migration: this.#state.plan.migration, effect: effect.kind, reason: error.code, err: error }, "a step of a migration failed");
    }
  }

  #execute(effect: TargetEffect): void {
    switch (effect.kind) {
      case "record": { this.#record(effect.state); return; }
      case "record-arrived": { this.#rim.recordArrived(); return; }
      case "continue-guest": { this.#continue(); return; }
      case "look": { this.#look(); return; }
      case "cut": { this.#cutRelay("the move is over"); return; }
      case "destroy-guest": { this.#destroy(); return; }
      case "report-running": { this.#reportRunning(); return; }
      case "report-ended": {
        const { plan, reason, detail } = this.#state;
        this.#lastPackets?.close();
        this.#rim.report({ kind: "targetEnded", migration: plan.migration, result: effect.result, reason, detail, undelivered: effect.result === "target-never-ran" ? this.#rim.undelivered() : null });
        return;
      }
      case "timer": { this.#timer(effect.name, effect.delay, () => { this.take({ kind: "timer", name: effect.name }); }); return; }
      case "stop-timer": { this.#timers.get(effect.name)?.cancel(); return; }
    }
  }

  #record(state: "continued" | "never-ran"): void {
    try {
      this.#rim.record(state, this.#state.postcopy === "begun");
      this.#later({ kind: "recorded", state });
    } catch (thrown) {
      const error = toCareofError(thrown);
      this.#rim.log.error({ migration: this.#state.plan.migration, reason: error.code, err: error }, "a record could not be written");
      this.#later({ kind: "record-failed", detail: error.message });
    }
  }

  /** What is being prepared is waited for, so that nothing of it appears after the end. */
  #destroy(): void {
    this.#lastPackets?.close();
    this.#command("destroy-guest", async () => {
      await this.#preparing;
      this.#cutRelay("the move is over");
      await this.#guest?.destroy();
      await this.#rim.undo();
      this.#later({ kind: "destroyed" });
    });
  }

  #continue(): void {
    this.#command("continue-guest", async () => {
      const waitedMs = this.#lastPackets === null ? millis(0) : await this.#lastPackets.wait();
      // Given up or closed meanwhile: what comes next is none of this guest's.
      if (waitedMs === null || this.#closed) return;
      if (this.#lastPackets !== null) this.#rim.log.debug({ migration: this.#state.plan.migration, waitedMs }, "stood for its own last packets");
      await this.#guest?.resume();
    });
    this.#look();
  }

  #look(): void {
    this.#command("look", async () => {
      const status = this.#guest === null ? "gone" : await this.#guest.status();
      this.#later({ kind: "guest", status, at: this.#rim.clock.monotonic() });
    });
  }

  #command(name: string, run: () => Promise<void> | undefined): void {
    this.#commands = this.#commands.then(run).catch((thrown: unknown) => {
      const error = toCareofError(thrown);
      this.#rim.log.warn({ migration: this.#state.plan.migration, command: name, reason: error.code, detail: error.message }, "command failed");
      this.#later({ kind: "command-failed", command: name, detail: error.message });
    });
  }

  #watch(guest: Guest): void {
    this.#stopWatching = guest.subscribe((event: GuestEvent) => {
      if (event.kind === "stream") this.#later({ kind: "stream", status: event.status });
      else if (event.kind === "resumed") this.#later({ kind: "resumed", at: event.at });
      else if (event.kind === "gone") this.#later({ kind: "guest", status: "gone", at: this.#rim.clock.monotonic() });
    });
  }

  #use(relay: TargetRelay): void {
    this.#relay = relay;
    if (this.#cut || this.#closed) {
      this.#cutRelay("given up");
      return;
    }
    relay.released.then((release) => { this.#later({ kind: "release", epoch: release.epoch, stopAt: release.stopAt }); }, () => undefined);
    relay.disksDone.then((disks) => {
      this.#command("end-exports", async () => { await this.#guest?.disks.endExports(); relay.disksEnded(disks); });
    }, () => undefined);
    relay.connected.then(() => { this.#later({ kind: "relay-up" }); }, () => undefined);
    relay.closed.then((cause) => { this.#later({ kind: "relay-lost", detail: cause?.message ?? "ended" }); }, () => undefined);
  }

  #cutRelay(why: string): void {
    this.#cut = true;
    this.#relay?.cut(new CareofError("relay-failed", why));
  }

  #sendMarkers(): void {
    if (this.#closed || this.#uplinkOpenAt !== null || this.#state.phase === "destroying" || this.#state.phase === "burying" || this.#state.phase === "buried") return;
    this.#token++;
    this.#markers.set(this.#token, this.#rim.clock.monotonic());
    this.#markers.delete(this.#token - MARKERS_OFTEN);
    try {
      this.#rim.sendUpMarker(this.#token);
    } catch (thrown) {
      this.#rim.log.debug({ migration: this.#state.plan.migration, reason: toCareofError(thrown).code }, "marker could not be sent");
    }
    this.#timer("marker", this.#token < MARKERS_OFTEN ? MARKER_MS : MARKER_SLOW_MS, () => { this.#sendMarkers(); });
  }

  /** Twice: at once, and when the stamps of the move are there. */
  #reportRunning(): void {
    this.#rim.report(this.#running(false));
    // It can still be lost, and nobody else speaks for it until then.
    if (this.#state.phase === "fetching") return;
    this.#settleIn();
    const end = this.#rim.clock.monotonic() + FINAL_MS;
    const look = (): void => {
      const body = this.#running(true);
      const complete = body.firstDeliverableAt !== null && body.uplinkOpenAt !== null;
      if (complete || this.#rim.clock.monotonic() >= end) this.#rim.report(body);
      else this.#timer("stamps", STAMP_LOOK_MS, look);
    };
    look();
  }

  /** It runs, whatever the disk says: the disk is asked until it has it. */
  #settleIn(): void {
    if (this.#guest === null) return;
    try {
      this.#rim.runs(this.#guest);
    } catch (thrown) {
      const error = toCareofError(thrown);
      this.#rim.log.error({ migration: this.#state.plan.migration, reason: error.code, err: error }, "the record of a guest that has arrived could not be written");
      this.#timer("settle-in", RECORD_AGAIN_MS, () => { this.#settleIn(); });
    }
  }

  #running(final: boolean): Body<"running"> {
    const { plan, stopAt } = this.#state;
    const resumeAt = this.#state.resumeAt ?? this.#rim.clock.monotonic();
    const reading = this.#relay?.clock() ?? null;
    const stamps = this.#rim.stamps();
    const deliverable = [stamps?.marker?.at, stamps?.firstPacket].filter((at) => at !== null && at !== undefined);
    return {
      kind: "running", migration: plan.migration, epoch: plan.epoch, resumeAt, final,
      firstDeliverableAt: deliverable.length === 0 ? null : millis(Math.min(...deliverable)),
      uplinkOpenAt: this.#uplinkOpenAt,
      pauseMs: stopAt === null || reading === null ? null : millis(Math.max(0, resumeAt - (stopAt - reading.offset))),
      pauseErrorMs: reading?.error ?? millis(0), overflowed: this.#rim.overflowed(), postcopy: this.#state.phase === "fetching",
      // The home agent's word may have overtaken the relay's with `stopAt`, and the guest may run before that has come.
      resumedAtSource: reading === null ? null : millis(Math.max(0, resumeAt + reading.offset)),
    };
  }

  #timer(name: string, delay: Millis, run: () => void): void {
    this.#timers.get(name)?.cancel();
    this.#timers.set(name, this.#rim.clock.after(`target-${name}`, delay, () => { if (!this.#closed) run(); }));
  }
}

function holdPoint({ phase }: TargetState, event: TargetEvent): HoldPoint | null {
  if (event.kind === "release") return "grant";
  const runs = event.kind === "resumed" || (event.kind === "guest" && event.status === "running");
  return (runs || (event.kind === "guest" && event.status === "fetching")) && phase === "starting" ? "settle" : null;
}
