import type { Clock, Timer } from "../../model/clock.js";
import { toCareofError } from "../../model/errors.js";
import { millis } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";
import type { Body, MigrationPhase } from "../../proto/messages.js";
import type { Guest, StreamProgress } from "../hypervisor/driver.js";
import type { DiskFigures } from "./disk-copy.js";
import type { SourceState } from "./source-shapes.js";

/** The gate's moment is found by looking: with it held, the hypervisor spins until it is opened. */
const POLL_MS = millis(20);
/** The home agent hears of it so often. */
const PROGRESS_MS = 200;

/** The home agent's word for each phase in which memory is copied. */
const PHASE: Readonly<Partial<Record<SourceState["phase"], MigrationPhase>>> = {
  copying: "copy", leading: "lead", awaiting: "lead", opened: "lead", stopped: "stop", serving: "postcopy",
};

export interface SourceProgressRim {
  readonly guest: Guest | null;
  readonly clock: Clock;
  readonly log: Logger;
  readonly say: (body: Body<"progress">) => void;
  readonly state: () => Pick<SourceState, "phase" | "plan">;
  readonly disks: () => DiskFigures;
  readonly looked: (progress: StreamProgress) => void;
}

/** How far the copy is: looked at again and again while something is copied, for the machine, and told to the home agent now and then. */
export class SourceProgress {
  readonly #rim: SourceProgressRim;
  #timer: Timer | null = null;
  #looking = false;
  #toldAt = 0;
  #closed = false;

  constructor(rim: SourceProgressRim) {
    this.#rim = rim;
  }

  /** Until nothing is copied any more. */
  watch(): void {
    this.#timer?.cancel();
    if (this.#closed || this.#phase === undefined) return;
    this.look();
    this.#timer = this.#rim.clock.after("source-poll", POLL_MS, () => { this.watch(); });
  }

  /** Now, if that is not being done. */
  look(): void {
    const { guest, clock, log, looked, state } = this.#rim;
    if (guest === null || this.#looking || this.#phase === undefined) return;
    const now = clock.monotonic();
    this.#looking = true;
    guest.progress().then((progress) => {
      this.#looking = false;
      looked(progress);
      const phase = this.#phase;
      if (phase === undefined || now - this.#toldAt < PROGRESS_MS) return;
      this.#toldAt = now;
      const { transferred, remaining, total, passes, bytesPerSecond, dirtyBytesPerSecond, expectedDowntimeMs, throttlePercent } = progress;
      this.#tell({ phase, transferred, remaining, total, passes, bytesPerSecond, dirtyBytesPerSecond, expectedDowntimeMs, throttlePercent, ...this.#rim.disks() });
    }, (thrown: unknown) => {
      this.#looking = false;
      log.debug({ migration: state().plan.migration, reason: toCareofError(thrown).code }, "progress is not known");
    });
  }

  /** While the disks are copied nothing of the memory is. */
  disks(figures: DiskFigures): void {
    const now = this.#rim.clock.monotonic();
    if (this.#rim.state().phase !== "mirroring" || now - this.#toldAt < PROGRESS_MS) return;
    this.#toldAt = now;
    this.#tell({ phase: "disks", transferred: 0, remaining: 0, total: 0, passes: 0, bytesPerSecond: 0, dirtyBytesPerSecond: 0, expectedDowntimeMs: null, throttlePercent: 0, ...figures });
  }

  close(): void {
    this.#closed = true;
    this.#timer?.cancel();
  }

  get #phase(): MigrationPhase | undefined {
    return PHASE[this.#rim.state().phase];
  }

  #tell(figures: Omit<Body<"progress">, "kind" | "migration">): void {
    this.#rim.say({ kind: "progress", migration: this.#rim.state().plan.migration, ...figures });
  }
}
