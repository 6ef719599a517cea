import type { Timer } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis, type Millis } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import { NO_HOLD, type HoldPoint } from "../hold.js";
import type { GuestEvent, StreamStatus } from "../hypervisor/driver.js";
import { DiskCopy } from "./disk-copy.js";
import { GuestCommands } from "./guest-commands.js";
import { missedEvents } from "./missed-events.js";
import { LeftBehind } from "./left-behind.js";
import { OldPath } from "./old-path.js";
import type { SourceRelay } from "./relay.js";
import { stepSource } from "./source.js";
import { isDeafSoon, wentByPostcopy } from "./source-phases.js";
import { SourceProgress } from "./source-progress.js";
import type { SourceRim } from "./source-rim.js";
import type { SourceEffect, SourceEvent, SourceState, SourceStep } from "./source-shapes.js";
import { SourceWords } from "./source-words.js";

/** Of the longest that the gate may stay shut. */
const HURRY = 2;

/** Executes the source machine's effects on the hypervisor, the relay, the tunnel and the disk. */
export class SourceRun {
  readonly #rim: SourceRim;
  readonly #timers = new Map<string, Timer>();
  readonly #events: SourceEvent[] = [];
  #state: SourceState;
  readonly #oldPath: OldPath;
  readonly #leftBehind: LeftBehind;
  readonly #words: SourceWords;
  readonly #progress: SourceProgress;
  readonly #commands: GuestCommands;
  readonly #disks: DiskCopy;
  #busy = false;
  #relay: SourceRelay | null = null;
  #cut = false;
  /** What the guest's stream was last said to be. */
  #heard: StreamStatus | null = null;
  #stopWatching: () => void = () => undefined;
  #hurries = false;
  #closed = false;

  constructor(first: SourceStep, rim: SourceRim) {
    this.#rim = rim;
    this.#state = first.state;
    const { guest, clock, log, stream } = rim;
    const state = (): SourceState => this.#state;
    this.#oldPath = new OldPath(rim);
    const { migration, vm } = this.#state.plan;
    this.#leftBehind = new LeftBehind({ clock, log: log.child({ migration, vm }), queue: () => rim.queue(), passOn: (packet) => rim.passOn(packet) });
    this.#words = new SourceWords(rim, this.#oldPath, state);
    this.#progress = new SourceProgress({
      guest, clock, log, state, say: (body) => { rim.say(body); }, disks: () => this.#disks.figures, looked: (progress) => { this.#later({ kind: "progress", ...progress }); },
    });
    this.#commands = new GuestCommands(guest, (command, error) => { this.#commandFailed(command, error); });
    this.#disks = new DiskCopy({
      disks: guest?.disks ?? null, clock, log, maxBandwidth: stream.maxBandwidth,
      told: (figures) => {
        this.#later({ kind: "disk-progress", copied: figures.diskCopied });
        this.#progress.disks(figures);
      },
    });
    if (rim.guest !== null) this.#stopWatching = rim.guest.subscribe((event) => { this.#guestEvent(event); });
    this.#run(first.effects);
    this.#drain();
  }

  get state(): SourceState {
    return this.#state;
  }

  /** Returns the machine's decision on a request. */
  take(event: SourceEvent): Reason {
    const { state, effects, decision } = stepSource(this.#state, event);
    if (state.phase !== this.#state.phase) {
      this.#rim.log.info({ migration: state.plan.migration, vm: state.plan.vm, from: this.#state.phase, to: state.phase, cause: event.kind, reason: state.reason, detail: state.detail }, "source");
    }
    this.#state = state;
    this.#hurry();
    this.#run(effects);
    return decision;
  }

  /** Bounded: a hypervisor that does not stop its guest must not have this process come first for ever. */
  #hurry(): void {
    const { phase, plan } = this.#state;
    const urgent = isDeafSoon(phase);
    if (urgent === this.#hurries) return;
    this.#hurries = urgent;
    this.#rim.urgency.set(plan.migration, urgent);
    if (urgent) this.#timer("urgency", millis(HURRY * plan.holdMaxMs), () => { this.#rim.urgency.set(plan.migration, false); });
    else this.#timers.get("urgency")?.cancel();
  }

  /** Lets go: the agent ends. The guest and its migration are left as they are. */
  close(): void {
    this.#closed = true;
    this.#rim.urgency.set(this.#state.plan.migration, false);
    this.#disks.stop();
    this.#stopWatching();
    for (const timer of this.#timers.values()) timer.cancel();
    this.#progress.close();
    this.#words.close();
    this.#oldPath.close();
    this.#leftBehind.close();
    this.#cutRelay("shutting-down");
  }

  /** Events that effects cause are taken after the effects, in order. */
  #later(event: SourceEvent): void {
    const point = holdPoint(event);
    const go = (): void => {
      this.#events.push(event);
      if (!this.#busy) this.#drain();
    };
    if (point === null) go();
    else (this.#rim.hold ?? NO_HOLD).pass(point, go);
  }

  #drain(): void {
    for (let event = this.#events.shift(); event !== undefined && !this.#closed; event = this.#events.shift()) this.take(event);
  }

  #run(effects: readonly SourceEffect[]): void {
    const outer = this.#busy;
    this.#busy = true;
    for (const effect of effects) this.#safely(effect);
    this.#busy = outer;
    if (!outer) this.#drain();
  }

  /** An effect that fails (a kernel that refuses, say) must not stop the ones behind it: the machine's next event may be what saves the guest. */
  #safely(effect: SourceEffect): void {
    try {
      this.#execute(effect);
    } catch (thrown) {
      const error = toCareofError(thrown);
      this.#rim.log.error({ migration: this.#state.plan.migration, effect: effect.kind, reason: error.code, err: error }, "a step of a migration failed");
    }
  }

  #execute(effect: SourceEffect): void {
    const { guest, log } = this.#rim;
    const { migration } = this.#state.plan;
    switch (effect.kind) {
      case "record": {
        // What is still in front of its port is its own again.
        if (effect.state === "resumed") this.#leftBehind.close();
        this.#record(effect.state);
        return;
      }
      case "connect": { this.#connect(); return; }
      case "mirror-disks": { this.#commands.run("mirror-disks", () => this.#disks.begin(this.#relay)); return; }
      case "close-disks": {
        this.#commands.run("close-disks", async () => { await this.#disks.finish(this.#relay); this.#later({ kind: "disks", what: "closed" }); });
        return;
      }
      case "drop-disks": {
        this.#commands.run("drop-disks", async () => { await this.#disks.drop(); this.#later({ kind: "disks", what: "dropped" }); });
        return;
      }
      case "send": {
        const socket = this.#relay?.socket ?? "";
        this.#rim.clearStamps();
        this.#commands.run("send", () => guest?.send({ ...this.#rim.stream, socket }));
        this.#progress.watch();
        return;
      }
      case "stall": { this.#relay?.stall(); return; }
      case "flow": { this.#relay?.flow(); return; }
      case "measure": { this.#progress.look(); return; }
      case "prefer-switchover": { this.#commands.run("prefer-switchover", () => guest?.preferSwitchover()); return; }
      case "halt-guest": { this.#commands.run("halt-guest", () => guest?.halt()); return; }
      case "start-postcopy": { this.#commands.run("start-postcopy", () => guest?.startPostcopy()); return; }
      case "force-switchover": { this.#commands.run("force-switchover", () => guest?.forceSwitchover()); return; }
      case "open-gate": {
        const held = this.#relay?.open() ?? 0;
        log.debug({ migration, held, sinceMarkerMs: this.#state.markerAt === null ? null : this.#rim.clock.monotonic() - this.#state.markerAt }, "gate opened");
        return;
      }
      case "cut": {
        this.#words.close();
        this.#cutRelay("given up");
        return;
      }
      case "watch-marker": { this.#oldPath.watch(effect.token, this.#state.plan.holdMaxMs, (at) => { this.#later({ kind: "marker", at }); }); return; }
      case "forward": { this.#rim.forward(); return; }
      case "deliver": { this.#rim.deliver(); return; }
      case "continue-switchover": { this.#commands.run("continue-switchover", () => guest?.continueSwitchover()); return; }
      case "cancel-send": { this.#commands.run("cancel-send", () => guest?.cancelSend()); return; }
      case "resume-guest": { this.#commands.run("resume-guest", () => guest?.resume()); return; }
      case "look": { this.#commands.look((seen) => { this.#later({ kind: "guest", ...seen }); }); return; }
      case "send-release": { this.#sendRelease(); return; }
      case "destroy-guest": {
        this.#leftBehind.finish();
        this.#commands.run("destroy-guest", async () => { await guest?.destroy(); await this.#rim.destroyed(); });
        return;
      }
      case "end-guest": { this.#commands.run("end-guest", () => guest?.destroy()); return; }
      case "tell-lead-ready": { this.#words.leadReady(this.#relay, (delay, tell) => { this.#timer("drain", delay, tell); }); return; }
      case "tell-switch-over": { this.#words.switchOver(); return; }
      case "report-released": {
        this.#words.released();
        this.#leftBehind.begin();
        return;
      }
      case "report-ended": { this.#words.ended(effect.result); return; }
      case "timer": { this.#timer(effect.name, effect.delay, () => { this.take({ kind: "timer", name: effect.name }); }); return; }
      case "stop-timer": { this.#timers.get(effect.name)?.cancel(); return; }
    }
  }

  #record(state: "active" | "released" | "resumed"): void {
    this.#state = { ...this.#state, bytes: Math.max(this.#state.bytes, (this.#relay?.bytes ?? 0) + (this.#relay?.diskBytes ?? 0)) };
    try {
      this.#rim.record(state, this.#state);
      this.#later({ kind: "recorded", state });
    } catch (thrown) {
      const error = toCareofError(thrown);
      this.#rim.log.error({ migration: this.#state.plan.migration, reason: error.code, err: error }, "a record could not be written");
      this.#later({ kind: "record-failed", detail: error.message });
    }
  }

  #connect(): void {
    this.#rim.openRelay().then(
      (relay) => {
        this.#relay = relay;
        if (this.#cut || this.#closed) {
          this.#cutRelay("given up");
          return;
        }
        if (this.#state.plan.lead) relay.hold();
        relay.closed.then((cause) => { this.#later({ kind: "relay-lost", detail: cause?.message ?? "ended" }); }, () => undefined);
        this.#later({ kind: "relay-ready" });
      },
      (thrown: unknown) => { this.#later({ kind: "relay-lost", detail: toCareofError(thrown).message }); },
    );
  }

  #cutRelay(why: string): void {
    this.#cut = true;
    this.#relay?.cut(new CareofError("relay-failed", why));
  }

  #commandFailed(command: string, error: CareofError): void {
    this.#rim.log.debug({ migration: this.#state.plan.migration, command, reason: error.code, detail: error.message }, "command failed");
    this.#later({ kind: "command-failed", command, detail: error.message });
  }

  /** Its monitor answers again: what it would have told meanwhile. */
  #catchUp(): void {
    // `send` is in the queue before this, or the hypervisor is asked before it knows of this migration.
    const { sending } = this.#state;
    this.#commands.look((seen) => {
      const missed = missedEvents(this.#state, { ...seen, sending, heard: this.#heard, at: this.#rim.clock.monotonic() });
      if (missed.length > 0) this.#rim.log.info({ migration: this.#state.plan.migration, ...seen, missed: missed.map(({ kind }) => kind) }, "the guest's monitor answers again");
      for (const event of missed) {
        if (event.kind === "stream") this.#heard = event.status;
        this.#later(event);
      }
    });
  }

  #sendRelease(): void {
    const { plan, stopAt } = this.#state;
    const release = { migration: plan.migration, epoch: plan.epoch, stopAt: stopAt ?? this.#rim.clock.monotonic() };
    if (wentByPostcopy(this.#state)) {
      this.#relay?.releaseEarly(release);
      this.#progress.watch();
      return;
    }
    this.#relay?.release(release).catch((thrown: unknown) => {
      this.#rim.log.warn({ migration: plan.migration, reason: toCareofError(thrown).code }, "RELEASE did not leave by the relay; the home agent passes it on");
    });
  }

  #guestEvent(event: GuestEvent): void {
    switch (event.kind) {
      case "stopped": this.#later({ kind: "stopped", at: event.at }); return;
      case "resumed": this.#later({ kind: "resumed" }); return;
      case "stream": {
        this.#rim.log.debug({ migration: this.#state.plan.migration, stream: event.status }, "stream");
        this.#heard = event.status;
        this.#later({ kind: "stream", status: event.status });
        return;
      }
      case "disks": this.#later(event.status === "ready" ? { kind: "disks", what: "ready" } : { kind: "disks-failed", detail: event.detail }); return;
      // What it is asked next fails, or does not; what it has not told is not told later.
      case "monitor": {
        if (event.reachable) this.#catchUp();
        return;
      }
      case "pass": this.#later({ kind: "pass", passes: event.passes, at: event.at, heardAt: this.#rim.clock.monotonic() }); return;
      case "gone": this.#later({ kind: "guest", status: "gone", stream: "none" }); return;
    }
  }

  #timer(name: string, delay: Millis, run: () => void): void {
    this.#timers.get(name)?.cancel();
    this.#timers.set(name, this.#rim.clock.after(`source-${name}`, delay, () => { if (!this.#closed) run(); }));
  }
}

function holdPoint(event: SourceEvent): HoldPoint | null {
  if (event.kind === "marker") return "lead";
  if (event.kind === "recorded" && event.state === "released") return "release";
  if (event.kind !== "stream") return null;
  return event.status === "pre-switchover" ? "stop" : event.status === "completed" || event.status === "postcopy-active" ? "completed" : null;
}
