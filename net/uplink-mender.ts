import type { Clock, Timer } from "../model/clock.js";
import { toCareofError, type CareofError } from "../model/errors.js";
import { millis, type Millis } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import type { UplinkLoss, UplinkNews } from "./uplink-news.js";

/** An interface that is set up anew has much news at once. */
export const SETTLE_MS = millis(100);
/** What the kernel refused is tried again after so long, then after twice as long, and so on: a renewal may take a second itself. */
export const AGAIN_MS = millis(1000);
export const AGAIN_AT_MOST_MS = millis(30_000);
/** Whoever sets the uplink up (a network manager) may throw out what it does not know, and of routes that were removed there is no news. */
export const SECOND_LOOK_MS = millis(3000);

export interface UplinkMenderOptions {
  readonly uplink: string;
  readonly news: UplinkNews;
  readonly clock: Clock;
  readonly log: Logger;
  /** Makes everything on the uplink as it is wanted; nothing happens where it is so already. May fail, behind having set what can be. */
  readonly renew: () => Promise<void>;
  /** A loss was made good. */
  readonly mended?: (why: UplinkLoss) => void;
}

/** Of some at once the greatest gives the reason. */
const GREATNESS: Readonly<Record<UplinkLoss, number>> = { "news-missed": 0, "address-gone": 1, "uplink-down": 2, "uplink-gone": 3 };

/**
 * When the uplink was down, gone or without its address, what was set there is set again as soon as it is there: some losses at once lead to one renewal, one that fails is repeated, and after one that did not the
 * state is looked at once more. While the uplink is away nothing is tried; it is said once.
 */
export class UplinkMender {
  readonly #options: UplinkMenderOptions;
  /** What has been lost and not been set again; `again` for the second look. */
  #owed: UplinkLoss | "again" | null = null;
  #timer: { readonly timer: Timer; readonly due: Millis } | null = null;
  /** After the next refusal. */
  #pause = AGAIN_MS;
  #renewing = false;
  /** What the log has said last, of what is not mended yet. */
  #said: string | null = null;
  #closed = false;

  constructor(options: UplinkMenderOptions) {
    this.#options = options;
  }

  /** Once, when what is wanted is known: whatever happened since the news began is mended. */
  start(): void {
    const { log, news, uplink } = this.#options;
    news.watch({
      lost: (why, error) => {
        if (error !== undefined) this.#say(error.message, () => { log.warn({ uplink, reason: error.code, err: error }, "news of the uplink could not be read: it may have lost anything"); });
        this.#owe(why);
        this.#soon();
      },
      there: () => { if (this.#owed !== null && this.#owed !== "again") this.#soon(); },
      failed: (error) => { if (!this.#closed) log.error({ uplink, reason: error.code, err: error }, "the uplink is not watched any more: what it loses is not set again before a restart"); },
    });
  }

  close(): void {
    this.#closed = true;
    this.#timer?.timer.cancel();
    this.#options.news.close();
  }

  /** The greatest loss gives the reason. */
  #owe(why: UplinkLoss): void {
    if (this.#owed === null || this.#owed === "again" || GREATNESS[why] > GREATNESS[this.#owed]) this.#owed = why;
  }

  /** What was refused before may work now. */
  #soon(): void {
    this.#pause = AGAIN_MS;
    this.#schedule(SETTLE_MS);
  }

  /** The earlier one counts, so that news without end does not put it off for ever. */
  #schedule(delay: Millis): void {
    if (this.#closed) return;
    const due = millis(this.#options.clock.monotonic() + delay);
    if (this.#timer !== null && this.#timer.due <= due) return;
    this.#timer?.timer.cancel();
    const timer = this.#options.clock.after("uplink", delay, () => {
      this.#timer = null;
      if (!this.#closed) this.#mend();
    });
    this.#timer = { timer, due };
  }

  #mend(): void {
    const owed = this.#owed;
    // The end of the one that is on its way looks after what came meanwhile.
    if (owed === null || this.#renewing) return;
    const { log, news, renew, uplink } = this.#options;
    try {
      const away = news.look();
      if (away !== null) {
        this.#say(away, () => { log.warn({ uplink, reason: away }, "the uplink is away: it is waited for"); });
        return;
      }
    } catch (thrown) {
      this.#refused(toCareofError(thrown));
      return;
    }
    this.#owed = null;
    this.#renewing = true;
    // In a turn of its own, so that what it throws at once is a refusal as well.
    Promise.resolve().then(renew).then(() => { this.#mended(owed); }, (thrown: unknown) => {
      this.#owe(owed === "again" ? "news-missed" : owed);
      this.#refused(toCareofError(thrown));
    }).finally(() => {
      this.#renewing = false;
      if (this.#owed !== null && this.#timer === null) this.#schedule(SETTLE_MS);
    }).catch((thrown: unknown) => { log.error({ uplink, err: toCareofError(thrown) }, "the end of the uplink's renewal went wrong"); });
  }

  #mended(owed: UplinkLoss | "again"): void {
    const { log, mended, uplink } = this.#options;
    this.#said = null;
    this.#pause = AGAIN_MS;
    if (owed === "again") return;
    log.warn({ uplink, reason: owed }, "the uplink may have lost what was set on it: routes and programs are set again");
    mended?.(owed);
    if (this.#owed !== null) return;
    this.#owed = "again";
    this.#schedule(SECOND_LOOK_MS);
  }

  #refused(error: CareofError): void {
    if (this.#closed) return;
    const { log, uplink } = this.#options;
    this.#say(error.message, () => { log.error({ uplink, reason: error.code, err: error }, "not all that was lost on the uplink can be set again yet: it is tried again, less and less often"); });
    this.#schedule(this.#pause);
    this.#pause = millis(Math.min(2 * this.#pause, AGAIN_AT_MOST_MS));
  }

  #say(what: string, say: () => void): void {
    if (this.#said !== what) say();
    this.#said = what;
  }
}
