import type { Clock, Timer } from "../../model/clock.js";
import { toCareofError } from "../../model/errors.js";
import { millis } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";
import type { PortQueue } from "../../net/tap-queue.js";

/** Frames at a time, so that the agent does other things in between. */
const PORTION = 64;
/** RELEASE is on its way out when this begins, and comes first: the guest stands until it has arrived. */
const BEGIN = millis(5);

export interface LeftBehindRim {
  readonly clock: Clock;
  /** What waits for the guest in front of its port; `null` where nobody can tell. */
  queue(): PortQueue | null;
  /** An IPv4 packet for the guest, to where it is now. @throws CareofError `kernel-refused` (too big for the path, say) */
  passOn(packet: Buffer): void;
  readonly log: Logger;
}

/**
 * What was in the queue of the guest's port when it stopped for good: of a guest that is too slow for what it is sent, or without a gate. It goes after the guest, like the stragglers that come
 * later; behind what is there already, so it is overtaken, but not lost. Only after RELEASE: before it the guest may run on here and take it itself.
 */
export class LeftBehind {
  readonly #rim: LeftBehindRim;
  #queue: PortQueue | null = null;
  #timer: Timer | null = null;
  #begun = false;
  #passedOn = 0;
  #lost = 0;

  constructor(rim: LeftBehindRim) {
    this.#rim = rim;
  }

  /** Idempotent. */
  begin(): void {
    if (this.#begun) return;
    this.#begun = true;
    this.#timer = this.#rim.clock.after("left-behind", BEGIN, () => {
      this.#queue = this.#rim.queue();
      this.#go();
    });
  }

  close(): void {
    this.#begun = true;
    this.#timer?.cancel();
    this.#queue?.close();
    this.#queue = null;
  }

  #go(): void {
    if (this.#queue === null) return;
    try {
      const { frames, packets, unfit } = this.#queue.take(PORTION);
      this.#lost += unfit;
      for (const packet of packets) this.#send(packet);
      if (frames === PORTION) {
        this.#timer = this.#rim.clock.after("left-behind", millis(0), () => { this.#go(); });
        return;
      }
    } catch (thrown) {
      this.#rim.log.warn({ reason: toCareofError(thrown).code, detail: toCareofError(thrown).message }, "what waits in front of a halted guest cannot be read");
    }
    this.close();
    if (this.#passedOn + this.#lost === 0) return;
    const said = { passedOn: this.#passedOn, lost: this.#lost };
    if (this.#lost > 0) this.#rim.log.warn(said, "packets that waited in front of the guest when it stopped were lost");
    else this.#rim.log.info(said, "packets that waited in front of the guest when it stopped were passed on");
  }

  #send(packet: Buffer): void {
    try {
      this.#rim.passOn(packet);
      this.#passedOn++;
    } catch (thrown) {
      this.#lost++;
      this.#rim.log.debug({ reason: toCareofError(thrown).message }, "a packet that waited in front of a halted guest was lost");
    }
  }
}
