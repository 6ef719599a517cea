import type { Clock, Timer } from "../../model/clock.js";
import { toCareofError } from "../../model/errors.js";
import { millis } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";
import type { PortQueue } from "../../net/tap-queue.js";

/** Frames that are taken at a time, each of up to 64 KiB. */
const PORTION = 16;
/** Packets in one turn, so that the agent does other things in between. */
const PER_TURN = 64;
/** RELEASE is on its way out when this begins, and comes first: the guest stands until it has arrived. */
const BEGIN = millis(5);
/** Until the way out has room again. */
const PAUSE = millis(1);

/** `full`: not sent, there is no room on the way out just now. `not-meant`: nobody elsewhere wants it. */
export type PassedOn = "sent" | "full" | "not-meant";

export interface LeftBehindRim {
  readonly clock: Clock;
  /** What waits for the guest in front of its port; `null` where nobody can tell. */
  queue(): PortQueue | null;
  /** An IPv4 packet for the guest, to where it is now. @throws CareofError `kernel-refused` (too big for the path, say) */
  passOn(packet: Buffer): PassedOn;
  readonly log: Logger;
}

/**
 * What was in the queue of the guest's port when it stopped for good: of a guest that is too slow for what it is sent, or without a gate. It goes after the guest, like the stragglers that come
 * later; behind what is there already, so it is overtaken, but not lost. Only after RELEASE: before it the guest may run on here and take it itself.
 */
export class LeftBehind {
  readonly #rim: LeftBehindRim;
  #phase: "idle" | "waiting" | "going" | "over" = "idle";
  #queue: PortQueue | null = null;
  #timer: Timer | null = null;
  /** Taken and not sent yet. */
  #packets: Buffer[] = [];
  #passedOn = 0;
  #lost = 0;

  constructor(rim: LeftBehindRim) {
    this.#rim = rim;
  }

  /** Idempotent. */
  begin(): void {
    if (this.#phase !== "idle") return;
    this.#phase = "waiting";
    this.#later(BEGIN);
  }

  /** The queue goes with the guest's process: everything at once, and what finds no room on the way out is lost. */
  finish(): void {
    if (this.#phase !== "waiting" && this.#phase !== "going") return;
    this.#timer?.cancel();
    while (this.#advance(Infinity) !== "empty") {
      this.#lost += this.#packets.length;
      this.#packets = [];
    }
    this.#end();
  }

  /** The guest is this host's again, or the agent ends: what has not been taken stays. Idempotent. */
  close(): void {
    this.#phase = "over";
    this.#timer?.cancel();
    this.#queue?.close();
    this.#queue = null;
    this.#packets = [];
  }

  #later(delay: number): void {
    this.#timer = this.#rim.clock.after("left-behind", millis(delay), () => {
      const came = this.#advance(PER_TURN);
      if (came === "empty") this.#end();
      else this.#later(came === "full" ? PAUSE : 0);
    });
  }

  /** `more`: so many packets were enough. */
  #advance(most: number): "empty" | "full" | "more" {
    try {
      if (this.#phase === "waiting") this.#queue = this.#rim.queue();
      this.#phase = "going";
      for (let sent = 0; sent < most;) {
        const packet = this.#packets[0];
        if (packet === undefined) {
          const taken = this.#queue?.take(PORTION);
          if (taken === undefined || taken.frames === 0) return "empty";
          this.#lost += taken.unfit;
          this.#packets.push(...taken.packets);
          continue;
        }
        if (this.#pass(packet) === "full") return "full";
        this.#packets.shift();
        sent++;
      }
      return "more";
    } catch (thrown) {
      this.#rim.log.warn({ reason: toCareofError(thrown).code, detail: toCareofError(thrown).message }, "what waits in front of a halted guest cannot be read");
      return "empty";
    }
  }

  #pass(packet: Buffer): PassedOn {
    try {
      const passed = this.#rim.passOn(packet);
      if (passed === "sent") this.#passedOn++;
      return passed;
    } catch (thrown) {
      this.#lost++;
      this.#rim.log.debug({ reason: toCareofError(thrown).message }, "a packet that waited in front of a halted guest was lost");
      return "not-meant";
    }
  }

  #end(): void {
    this.close();
    if (this.#passedOn + this.#lost === 0) return;
    const said = { passedOn: this.#passedOn, lost: this.#lost };
    if (this.#lost > 0) this.#rim.log.warn(said, "packets that waited in front of the guest when it stopped were lost");
    else this.#rim.log.info(said, "packets that waited in front of the guest when it stopped were passed on");
  }
}
