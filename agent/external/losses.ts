import type { Clock, Timer } from "../../model/clock.js";
import { millis, type VmId } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";
import type { Outbox } from "../outbox.js";
import type { Eyes } from "./eyes.js";
import { HELD_LONGEST, type Held } from "./held.js";

/** So much later than the first packet may have waited too long, in milliseconds. */
const TIDY_AFTER = 50;

export interface LossesOptions {
  readonly eyes: Pick<Eyes, "overflowed">;
  readonly outbox: Outbox;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Says of one VM what was lost here while it waited: in the log, and to the home agent, each packet once. */
export class Losses {
  readonly #vm: VmId;
  readonly #held: Held;
  readonly #options: LossesOptions;
  #said = { overflowed: 0, expired: 0 };
  /** The home agent has not answered yet. */
  #saying = false;
  #tidy: Timer | null = null;

  constructor(vm: VmId, held: Held, options: LossesOptions) {
    this.#vm = vm;
    this.#held = held;
    this.#options = options;
  }

  /** Packets wait, or may. Those that nobody asks for any more are dropped, counted and told all the same. */
  watch(): void {
    if (this.#held.size === 0) return;
    const { clock } = this.#options;
    this.#tidy ??= clock.after("held", millis(HELD_LONGEST + TIDY_AFTER), () => {
      this.#tidy = null;
      this.#held.tidy(clock.monotonic());
      this.tell();
      this.watch();
    });
  }

  /** Idempotent. What the hold had no room for, which all VMs share, is put down to the first of them that looks. */
  tell(): void {
    const { outbox, log, eyes } = this.#options;
    this.#held.overflowed += eyes.overflowed();
    const { overflowed, expired } = this.#held;
    const news = { overflowed: overflowed - this.#said.overflowed, expired: expired - this.#said.expired };
    if (this.#saying || news.overflowed + news.expired === 0) return;
    this.#saying = true;
    log.warn({ vm: this.#vm, ...news }, "packets that waited for a VM were lost: they found no room (ports.queueLength), or had waited too long");
    outbox.put({
      key: `${this.#vm}/lost`, topic: `vm/${this.#vm}/lost`, body: { kind: "drained", vm: this.#vm, token: 0, ...news },
      answered: () => {
        this.#saying = false;
        this.#said = { overflowed, expired };
        this.tell();
      },
    });
  }

  close(): void {
    this.#tidy?.cancel();
    this.#tidy = null;
  }
}
