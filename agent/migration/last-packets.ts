import type { Clock, Timer } from "../../model/clock.js";
import { millis, type Epoch, type Millis } from "../../model/ids.js";
import { departureToken } from "../../model/lead-token.js";

/** The marker is repeated, since one may get lost: so often, so far apart. */
const MARKERS = 20;
const PERIOD_MS = millis(5);
/** Longest that the guest stands for its own last packets. */
export const LAST_PACKETS_LIMIT = millis(250);

/*
 * A guest's first packets from the target must not overtake its last ones from the source: where the way from the source to the home agent is longer than the one from the source to the target and
 * on, they would. So the source sends an up marker behind what the guest has sent, the home agent tells the target that it has passed, and the target lets the guest run only then, or
 * after LAST_PACKETS_LIMIT. The guest stands meanwhile: that is pause and not gap, and as a rule none, since the word travels while RELEASE is being written.
 */

/** The source's side. */
export class LastPacketsSent {
  readonly #clock: Clock;
  readonly #token: number;
  readonly #send: (token: number) => void;
  #timer: Timer | null = null;

  /** `send` must not throw. */
  constructor(clock: Clock, epoch: Epoch, send: (token: number) => void) {
    this.#clock = clock;
    this.#token = departureToken(epoch);
    this.#send = send;
  }

  /** The guest stands. The first marker has left when this returns. */
  begin(): void {
    this.#again(MARKERS);
  }

  close(): void {
    this.#timer?.cancel();
  }

  #again(times: number): void {
    this.#timer?.cancel();
    this.#send(this.#token);
    if (times > 1) this.#timer = this.#clock.after("source-departure", PERIOD_MS, () => { this.#again(times - 1); });
  }
}

/** The target's side. */
export class LastPacketsAwaited {
  readonly #clock: Clock;
  readonly #token: number;
  readonly #passed: Promise<void>;
  #over: () => void = () => undefined;
  #timer: Timer | null = null;
  #closed = false;

  constructor(clock: Clock, epoch: Epoch) {
    this.#clock = clock;
    this.#token = departureToken(epoch);
    this.#passed = new Promise((resolve) => { this.#over = resolve; });
  }

  /** The home agent has let a marker pass. False: it is none of the source's. */
  seen(token: number): boolean {
    if (token !== this.#token) return false;
    this.#timer?.cancel();
    this.#over();
    return true;
  }

  /** Resolves when the guest may send, with how long that took in ms; never once this is closed before. */
  async wait(): Promise<Millis> {
    const since = this.#clock.monotonic();
    if (!this.#closed) this.#timer ??= this.#clock.after("target-last-packets", LAST_PACKETS_LIMIT, this.#over);
    await this.#passed;
    return millis(this.#clock.monotonic() - since);
  }

  close(): void {
    this.#closed = true;
    this.#timer?.cancel();
  }
}
