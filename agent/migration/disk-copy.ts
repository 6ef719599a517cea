import type { Clock, Timer } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis, type Millis } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";
import type { GuestDisks } from "../hypervisor/disks.js";
import type { SourceRelay } from "./relay.js";

const LOOK_MS = millis(200);
/** The rate is that of the last looks; what is older counts less and less. */
const SMOOTHING = 0.3;

export interface DiskFigures {
  readonly diskCopied: number;
  readonly diskTotal: number;
  readonly diskBytesPerSecond: number;
}

export interface DiskCopyRim {
  readonly disks: GuestDisks | null;
  readonly clock: Clock;
  readonly log: Logger;
  /** Bytes per second and disk, 0 is unlimited. */
  readonly maxBandwidth: number;
  /** New figures while the disks are copied. */
  readonly told: (figures: DiskFigures) => void;
}

/** The source's copy of the guest's own disks: begins, is looked at, is finished with the target, or dropped. */
export class DiskCopy {
  readonly #rim: DiskCopyRim;
  #timer: Timer | null = null;
  #lookedAt: Millis | null = null;
  #number = 0;
  figures: DiskFigures = { diskCopied: 0, diskTotal: 0, diskBytesPerSecond: 0 };

  constructor(rim: DiskCopyRim) {
    this.#rim = rim;
  }

  /** @throws CareofError of the hypervisor, `relay-failed` */
  async begin(relay: SourceRelay | null): Promise<void> {
    const { disks, maxBandwidth } = this.#rim;
    if (disks === null || relay === null) throw new CareofError("relay-failed", "there is nothing to copy the disks over");
    this.#number = (await disks.sizes()).length;
    await disks.mirror({ socket: relay.diskSocket, maxBandwidth });
    this.#lookLater();
  }

  /** With the guest halted: the source lets go, and the target has ended its exports, when this resolves. Bounded by the relay's life and the machine's own limit. */
  async finish(relay: SourceRelay | null): Promise<void> {
    this.stop();
    if (relay === null) throw new CareofError("relay-failed", "the relay is gone");
    await this.#rim.disks?.finish();
    await Promise.race([relay.endDisks(this.#number), relay.closed.then((cause) => { throw cause ?? new CareofError("relay-failed", "the relay has ended"); })]);
  }

  async drop(): Promise<void> {
    this.stop();
    await this.#rim.disks?.drop();
  }

  stop(): void {
    this.#timer?.cancel();
    this.#timer = null;
  }

  #lookLater(): void {
    this.#timer = this.#rim.clock.after("source-disks", LOOK_MS, () => {
      this.#look().catch((thrown: unknown) => { this.#rim.log.debug({ reason: toCareofError(thrown).code }, "the progress of the disks is not known"); });
    });
  }

  async #look(): Promise<void> {
    const { disks, clock, told } = this.#rim;
    const timer = this.#timer;
    try {
      const { copied = 0, total = 0 } = await disks?.progress() ?? {};
      const now = clock.monotonic();
      const before = this.figures;
      const seconds = this.#lookedAt === null ? 0 : (now - this.#lookedAt) / 1000;
      const rate = seconds <= 0 ? 0 : Math.max(0, copied - before.diskCopied) / seconds;
      this.#lookedAt = now;
      this.figures = { diskCopied: copied, diskTotal: total, diskBytesPerSecond: before.diskBytesPerSecond === 0 ? rate : before.diskBytesPerSecond + (rate - before.diskBytesPerSecond) * SMOOTHING };
      if (this.#timer === timer) told(this.figures);
    } finally {
      if (this.#timer === timer && timer !== null) this.#lookLater();
    }
  }
}
