import { toCareofError } from "../../model/errors.js";
import { millis, type Millis } from "../../model/ids.js";
import { LastPacketsSent } from "./last-packets.js";
import type { OldPath } from "./old-path.js";
import type { SourceRelay } from "./relay.js";
import { wasForced, wentByPostcopy } from "./source-phases.js";
import type { SourceRim } from "./source-rim.js";
import type { SourceState } from "./source-shapes.js";

/** How long the relay may take to carry what it has read before the lead is asked for. */
const DRAIN_MS = 300;
/** How long a marker that follows the stop is waited for, to be told with the release. */
const LATE_MARKER_MS = millis(300);

/** What a source says of a switch-over, to the home agent and behind the guest's last packets, and when each may be said. */
export class SourceWords {
  readonly #rim: SourceRim;
  readonly #oldPath: OldPath;
  readonly #state: () => SourceState;
  readonly #lastPackets: LastPacketsSent;
  #closed = false;

  constructor(rim: SourceRim, oldPath: OldPath, state: () => SourceState) {
    this.#rim = rim;
    this.#oldPath = oldPath;
    this.#state = state;
    this.#lastPackets = new LastPacketsSent(rim.clock, state().plan.epoch, (token) => { this.#sendUpMarker(token); });
  }

  /** What is still on its way would be part of the pause: it arrives first, within limits. `after` is a timer. */
  leadReady(relay: SourceRelay | null, after: (delay: Millis, run: () => void) => void): void {
    const { migration, holdMaxMs } = this.#state().plan;
    let told = false;
    const tell = (): void => {
      const { phase } = this.#state();
      if (told || this.#closed || (phase !== "leading" && phase !== "awaiting")) return;
      told = true;
      this.#rim.say({ kind: "leadReady", migration });
    };
    after(millis(Math.min(DRAIN_MS, holdMaxMs / 2)), tell);
    (relay?.taken() ?? Promise.resolve()).then(tell, tell);
  }

  switchOver(): void {
    this.#lastPackets.begin();
    const { plan, stopAt, markerAt, hold } = this.#state();
    if (stopAt !== null) this.#rim.say({ kind: "switchOver", migration: plan.migration, stopAt, markerAt, hold });
  }

  /** A marker that comes behind the stop (no lead) is still worth telling: without it the gap is unmeasured. */
  released(): void {
    const { plan } = this.#state();
    const tell = (markerAt: Millis | null): void => {
      const state = this.#state();
      const { stopAt, bytes } = state;
      this.#rim.report({ kind: "released", migration: plan.migration, epoch: plan.epoch, stopAt: stopAt ?? millis(0), markerAt, bytes, postcopy: wentByPostcopy(state), forced: wasForced(state) });
    };
    const known = this.#state().markerAt ?? this.#rim.stamps()?.marker?.at ?? null;
    tell(known);
    if (known === null && this.#state().stopAt !== null) this.#oldPath.watchLate(LATE_MARKER_MS, tell);
  }

  ended(result: "source-runs" | "source-gone"): void {
    const { plan, reason, detail } = this.#state();
    this.#rim.report({ kind: "sourceEnded", migration: plan.migration, result, reason, detail });
  }

  /** The guest runs here again, or the agent ends: its packets are not at an end, and no lead is asked for. For good. */
  close(): void {
    this.#closed = true;
    this.#lastPackets.close();
  }

  #sendUpMarker(token: number): void {
    try {
      this.#rim.sendUpMarker(token);
    } catch (thrown) {
      this.#rim.log.debug({ migration: this.#state().plan.migration, reason: toCareofError(thrown).code }, "marker could not be sent");
    }
  }
}
