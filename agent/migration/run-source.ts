import type { Timer } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis, type Millis } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import type { MigrationPhase } from "../../proto/messages.js";
import { NO_HOLD, type HoldPoint } from "../hold.js";
import type { GuestEvent, GuestStatus, StreamStatus } from "../hypervisor/driver.js";
import { LastPacketsSent } from "./last-packets.js";
import { OldPath } from "./old-path.js";
import type { SourceRelay } from "./relay.js";
import { DiskCopy, type DiskFigures } from "./disk-copy.js";
import { missedEvents } from "./missed-events.js";
import { stepSource } from "./source.js";
import { isDeafSoon, wasForced, wentByPostcopy } from "./source-phases.js";
import type { SourceRim } from "./source-rim.js";
import type { SourceEffect, SourceEvent, SourceState, SourceStep } from "./source-shapes.js";

/** The gate's moment is found by looking: with it held, the hypervisor spins until it is opened. */
const POLL_MS = millis(20);
const PROGRESS_MS = 200;
/** How long the relay may take to carry what it has read before the lead is asked for. */
const DRAIN_MS = 300;
/** Of the longest that the gate may stay shut. */
const HURRY = 2;
/** How long a marker that follows the stop is waited for, to be told with the release. */
const LATE_MARKER_MS = millis(300);

/** Executes the source machine's effects on the hypervisor, the relay, the tunnel and the disk. */
export class SourceRun {
  readonly #rim: SourceRim;
  readonly #timers = new Map<string, Timer>();
  readonly #events: SourceEvent[] = [];
  #state: SourceState;
  readonly #lastPackets: LastPacketsSent;
  readonly #oldPath: OldPath;
  #busy = false;
  readonly #disks: DiskCopy;
  #relay: SourceRelay | null = null;
  #cut = false;
  #commands: Promise<void> = Promise.resolve();
  #polling = false;
  #toldAt = 0;
  /** What the guest's stream was last said to be. */
  #heard: StreamStatus | null = null;
  #stopWatching: () => void = () => undefined;
  #hurries = false;
  #closed = false;

  constructor(first: SourceStep, rim: SourceRim) {
    this.#rim = rim;
    this.#state = first.state;
    this.#lastPackets = new LastPacketsSent(rim.clock, first.state.plan.epoch, (token) => { this.#sendUpMarker(token); });
    this.#oldPath = new OldPath(rim);
    this.#disks = new DiskCopy({
      disks: rim.guest?.disks ?? null, clock: rim.clock, log: rim.log, maxBandwidth: rim.stream.maxBandwidth, told: (figures) => { this.#disksTold(figures); },
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
    this.#lastPackets.close();
    this.#oldPath.close();
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
      case "record": { this.#record(effect.state); return; }
      case "connect": { this.#connect(); return; }
      case "mirror-disks": { this.#command("mirror-disks", () => this.#disks.begin(this.#relay)); return; }
      case "close-disks": {
        this.#command("close-disks", async () => { await this.#disks.finish(this.#relay); this.#later({ kind: "disks", what: "closed" }); });
        return;
      }
      case "drop-disks": {
        this.#command("drop-disks", async () => { await this.#disks.drop(); this.#later({ kind: "disks", what: "dropped" }); });
        return;
      }
      case "send": {
        const socket = this.#relay?.socket ?? "";
        this.#rim.clearStamps();
        this.#command("send", () => guest?.send({ ...this.#rim.stream, socket }));
        this.#poll();
        return;
      }
      case "stall": { this.#relay?.stall(); return; }
      case "flow": { this.#relay?.flow(); return; }
      case "measure": { this.#pollOnce(); return; }
      case "prefer-switchover": { this.#command("prefer-switchover", () => guest?.preferSwitchover()); return; }
      case "halt-guest": { this.#command("halt-guest", () => guest?.halt()); return; }
      case "start-postcopy": { this.#command("start-postcopy", () => guest?.startPostcopy()); return; }
      case "force-switchover": { this.#command("force-switchover", () => guest?.forceSwitchover()); return; }
      case "open-gate": {
        const held = this.#relay?.open() ?? 0;
        log.debug({ migration, held, sinceMarkerMs: this.#state.markerAt === null ? null : this.#rim.clock.monotonic() - this.#state.markerAt }, "gate opened");
        return;
      }
      case "cut": {
        this.#lastPackets.close();
        this.#cutRelay("given up");
        return;
      }
      case "watch-marker": { this.#oldPath.watch(effect.token, this.#state.plan.holdMaxMs, (at) => { this.#later({ kind: "marker", at }); }); return; }
      case "forward": { this.#rim.forward(); return; }
      case "deliver": { this.#rim.deliver(); return; }
      case "continue-switchover": { this.#command("continue-switchover", () => guest?.continueSwitchover()); return; }
      case "cancel-send": { this.#command("cancel-send", () => guest?.cancelSend()); return; }
      case "resume-guest": { this.#command("resume-guest", () => guest?.resume()); return; }
      case "look": { this.#look(); return; }
      case "send-release": { this.#sendRelease(); return; }
      case "destroy-guest": {
        this.#command("destroy-guest", async () => { await guest?.destroy(); await this.#rim.destroyed(); });
        return;
      }
      case "end-guest": { this.#command("end-guest", () => guest?.destroy()); return; }
      case "tell-lead-ready": { this.#tellLeadReady(); return; }
      case "tell-switch-over": {
        this.#lastPackets.begin();
        const { stopAt, markerAt, hold } = this.#state;
        if (stopAt !== null) this.#rim.say({ kind: "switchOver", migration, stopAt, markerAt, hold });
        return;
      }
      case "report-released": { this.#reportReleased(); return; }
      case "report-ended": {
        const { reason, detail } = this.#state;
        this.#rim.report({ kind: "sourceEnded", migration, result: effect.result, reason, detail });
        return;
      }
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

  /** One after the other, so that a look sees what the command before it did. */
  #command(name: string, run: () => Promise<void> | undefined): void {
    this.#commands = this.#commands.then(run).catch((thrown: unknown) => {
      const error = toCareofError(thrown);
      this.#rim.log.debug({ migration: this.#state.plan.migration, command: name, reason: error.code, detail: error.message }, "command failed");
      this.#later({ kind: "command-failed", command: name, detail: error.message });
    });
  }

  #look(): void {
    this.#command("look", async () => { this.#later({ kind: "guest", ...await this.#seen() }); });
  }

  async #seen(): Promise<{ readonly status: GuestStatus; readonly stream: StreamStatus }> {
    const { guest } = this.#rim;
    const status = guest === null ? "gone" : await guest.status();
    return { status, stream: guest === null || status === "gone" ? "none" : (await guest.progress()).status };
  }

  /** Its monitor answers again: what it would have told meanwhile. */
  #catchUp(): void {
    // `send` is in the queue before this, or the hypervisor is asked before it knows of this migration.
    const { sending } = this.#state;
    this.#command("look", async () => {
      const seen = await this.#seen();
      const missed = missedEvents(this.#state, { ...seen, sending, heard: this.#heard, at: this.#rim.clock.monotonic() });
      if (missed.length > 0) this.#rim.log.info({ migration: this.#state.plan.migration, ...seen, missed: missed.map(({ kind }) => kind) }, "the guest's monitor answers again");
      for (const event of missed) {
        if (event.kind === "stream") this.#heard = event.status;
        this.#later(event);
      }
    });
  }

  /** What is still on its way would be part of the pause: it arrives first, within limits. */
  #tellLeadReady(): void {
    const { migration } = this.#state.plan;
    let told = false;
    const tell = (): void => {
      if (told || this.#closed || (this.#state.phase !== "leading" && this.#state.phase !== "awaiting")) return;
      told = true;
      this.#rim.say({ kind: "leadReady", migration });
    };
    this.#timer("drain", millis(Math.min(DRAIN_MS, this.#state.plan.holdMaxMs / 2)), tell);
    (this.#relay?.taken() ?? Promise.resolve()).then(tell, tell);
  }

  #sendRelease(): void {
    const { plan, stopAt } = this.#state;
    const release = { migration: plan.migration, epoch: plan.epoch, stopAt: stopAt ?? this.#rim.clock.monotonic() };
    if (wentByPostcopy(this.#state)) {
      this.#relay?.releaseEarly(release);
      this.#poll();
      return;
    }
    this.#relay?.release(release).catch((thrown: unknown) => {
      this.#rim.log.warn({ migration: plan.migration, reason: toCareofError(thrown).code }, "RELEASE did not leave by the relay; the home agent passes it on");
    });
  }

  #sendUpMarker(token: number): void {
    try {
      this.#rim.sendUpMarker(token);
    } catch (thrown) {
      this.#rim.log.debug({ migration: this.#state.plan.migration, reason: toCareofError(thrown).code }, "marker could not be sent");
    }
  }

  /** A marker that comes behind the stop (no lead) is still worth telling: without it the gap is unmeasured. */
  #reportReleased(): void {
    const { plan } = this.#state;
    const tell = (markerAt: Millis | null): void => {
      const { stopAt, bytes } = this.#state;
      this.#rim.report({ kind: "released", migration: plan.migration, epoch: plan.epoch, stopAt: stopAt ?? millis(0), markerAt, bytes, postcopy: wentByPostcopy(this.#state), forced: wasForced(this.#state) });
    };
    const known = this.#state.markerAt ?? this.#rim.stamps()?.marker?.at ?? null;
    tell(known);
    if (known === null && this.#state.stopAt !== null) this.#oldPath.watchLate(LATE_MARKER_MS, tell);
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
      case "pass": this.#later({ kind: "pass", passes: event.passes }); return;
      case "gone": this.#later({ kind: "guest", status: "gone", stream: "none" }); return;
    }
  }

  #disksTold(figures: DiskFigures): void {
    const { clock } = this.#rim;
    this.#later({ kind: "disk-progress", copied: figures.diskCopied });
    if (this.#state.phase !== "mirroring" || clock.monotonic() - this.#toldAt < PROGRESS_MS) return;
    this.#toldAt = clock.monotonic();
    this.#rim.say({
      kind: "progress", migration: this.#state.plan.migration, phase: "disks",
      transferred: 0, remaining: 0, total: 0, passes: 0, bytesPerSecond: 0, dirtyBytesPerSecond: 0, expectedDowntimeMs: null, throttlePercent: 0, ...figures,
    });
  }

  #poll(): void {
    if (this.#closed || PROGRESS_PHASE[this.#state.phase] === undefined) return;
    this.#pollOnce();
    this.#timer("poll", POLL_MS, () => { this.#poll(); });
  }

  #pollOnce(): void {
    const { guest, clock, log } = this.#rim;
    const now = clock.monotonic();
    if (guest === null || this.#polling || PROGRESS_PHASE[this.#state.phase] === undefined) return;
    this.#polling = true;
    guest.progress().then((progress) => {
      this.#polling = false;
      this.#later({ kind: "progress", ...progress });
      const phase = PROGRESS_PHASE[this.#state.phase];
      if (phase === undefined || now - this.#toldAt < PROGRESS_MS) return;
      this.#toldAt = now;
      const { transferred, remaining, total, passes, bytesPerSecond, dirtyBytesPerSecond, expectedDowntimeMs, throttlePercent } = progress;
      this.#rim.say({
        kind: "progress", migration: this.#state.plan.migration, phase,
        transferred, remaining, total, passes, bytesPerSecond, dirtyBytesPerSecond, expectedDowntimeMs, throttlePercent, ...this.#disks.figures,
      });
    }, (thrown: unknown) => {
      this.#polling = false;
      log.debug({ migration: this.#state.plan.migration, reason: toCareofError(thrown).code }, "progress is not known");
    });
  }

  #timer(name: string, delay: Millis, run: () => void): void {
    this.#timers.get(name)?.cancel();
    this.#timers.set(name, this.#rim.clock.after(`source-${name}`, delay, () => { if (!this.#closed) run(); }));
  }
}

/** The home agent's word for each phase in which bytes are copied. */
const PROGRESS_PHASE: Readonly<Partial<Record<SourceState["phase"], MigrationPhase>>> = {
  copying: "copy", leading: "lead", awaiting: "lead", opened: "lead", stopped: "stop", serving: "postcopy",
};

function holdPoint(event: SourceEvent): HoldPoint | null {
  if (event.kind === "marker") return "lead";
  if (event.kind === "recorded" && event.state === "released") return "release";
  if (event.kind !== "stream") return null;
  return event.status === "pre-switchover" ? "stop" : event.status === "completed" || event.status === "postcopy-active" ? "completed" : null;
}
