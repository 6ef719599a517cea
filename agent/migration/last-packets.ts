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
  #closed = false;

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

  /** The guest runs here again, or the agent ends: what would say that its packets are at an end would not be true any more. For good. */
  close(): void {
    this.#closed = true;
    this.#timer?.cancel();
    this.#timer = null;
  }

  #again(times: number): void {
    this.#timer?.cancel();
    this.#timer = null;
    if (this.#closed) return;
    this.#send(this.#token);
    if (times > 1) this.#timer = this.#clock.after("source-departure", PERIOD_MS, () => { this.#again(times - 1); });
  }
}

/** The target's side. */
export class LastPacketsAwaited {
  readonly #clock: Clock;
  readonly #token: number;
  readonly #over: Promise<"passed" | "closed">;
  #settle: (how: "passed" | "closed") => void = () => undefined;
  #timer: Timer | null = null;
  #settled = false;

  constructor(clock: Clock, epoch: Epoch) {
    this.#clock = clock;
    this.#token = departureToken(epoch);
    this.#over = new Promise((resolve) => { this.#settle = resolve; });
  }

  /** The home agent has let a marker pass. False: it is none of the source's. */
  seen(token: number): boolean {
    if (token !== this.#token) return false;
    this.#end("passed");
    return true;
  }

  /** Resolves when the guest may send, with how long that took in ms; with `null` once this is closed before: then it is not to run by this. */
  async wait(): Promise<Millis | null> {
    const since = this.#clock.monotonic();
    if (!this.#settled) this.#timer ??= this.#clock.after("target-last-packets", LAST_PACKETS_LIMIT, () => { this.#end("passed"); });
    return (await this.#over) === "closed" ? null : millis(this.#clock.monotonic() - since);
  }

  /** Nothing is waited for any more, and no timer is left. Idempotent. */
  close(): void {
    this.#end("closed");
  }

  #end(how: "passed" | "closed"): void {
    this.#settled = true;
    this.#timer?.cancel();
    this.#timer = null;
    this.#settle(how);
  }
}
