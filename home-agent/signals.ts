import type { IpAddress } from "../model/address.js";
import type { Clock, Timer } from "../model/clock.js";
import { millis, type VmId } from "../model/ids.js";
import type { HomeTunnel } from "../net/tunnel.js";

/** A lost marker is made good after so long. */
const MARKER_PERIOD_MS = millis(5);
/** How often a moving VM's up markers are looked for; only which of them came matters, not when it is noticed. */
const UPLINK_PERIOD_MS = millis(5);
/** A source that never answers is not sent markers for ever. */
const MARKER_LIMIT = 2000;

/** What a move needs from the data plane now. */
export interface Signals {
  readonly home: IpAddress;
  /** Markers with this token go to these care-of addresses, again and again. */
  readonly markers: { readonly token: number; readonly to: readonly IpAddress[] } | null;
  readonly watchUplink: boolean;
}

interface Running {
  wanted: Signals;
  markerTimer: Timer | null;
  uplinkTimer: Timer | null;
  sent: number;
  seenToken: number;
}

/** Markers and the watch for up markers, of the few VMs that move: set what is wanted, it does the repeating. */
export class SignalSender {
  readonly #running = new Map<VmId, Running>();
  readonly #clock: Clock;
  readonly #tunnel: HomeTunnel;
  readonly #uplinkSeen: (vm: VmId, token: number) => void;
  readonly #failed: (vm: VmId, thrown: unknown) => void;

  constructor(options: { readonly clock: Clock; readonly tunnel: HomeTunnel; readonly uplinkSeen: (vm: VmId, token: number) => void; readonly failed: (vm: VmId, thrown: unknown) => void }) {
    this.#clock = options.clock;
    this.#tunnel = options.tunnel;
    this.#uplinkSeen = options.uplinkSeen;
    this.#failed = options.failed;
  }

  /** Idempotent. The first marker has left when this returns. */
  set(vm: VmId, wanted: Signals | null): void {
    const present = this.#running.get(vm);
    if (wanted === null || (wanted.markers === null && !wanted.watchUplink)) {
      present?.markerTimer?.cancel();
      present?.uplinkTimer?.cancel();
      this.#running.delete(vm);
      return;
    }
    const running: Running = present ?? { wanted, markerTimer: null, uplinkTimer: null, sent: 0, seenToken: 0 };
    const newMarkers = wanted.markers?.token !== present?.wanted.markers?.token;
    running.wanted = wanted;
    this.#running.set(vm, running);
    if (newMarkers) {
      running.markerTimer?.cancel();
      running.sent = 0;
      this.#mark(vm, running);
    }
    if (wanted.watchUplink && running.uplinkTimer === null) {
      if (present === undefined) this.#guard(vm, () => { this.#tunnel.clearStamps(wanted.home); });
      this.#watch(vm, running);
    }
  }

  close(): void {
    for (const vm of [...this.#running.keys()]) this.set(vm, null);
  }

  #mark(vm: VmId, running: Running): void {
    running.markerTimer = null;
    const { markers, home } = running.wanted;
    if (markers === null || this.#running.get(vm) !== running || running.sent >= MARKER_LIMIT) return;
    running.sent += 1;
    this.#guard(vm, () => {
      for (const careOf of markers.to) this.#tunnel.sendMarker(home, careOf, markers.token);
    });
    running.markerTimer = this.#clock.after("marker", MARKER_PERIOD_MS, () => { this.#mark(vm, running); });
  }

  #watch(vm: VmId, running: Running): void {
    running.uplinkTimer = null;
    if (!running.wanted.watchUplink || this.#running.get(vm) !== running) return;
    this.#guard(vm, () => {
      const { marker } = this.#tunnel.stamps(running.wanted.home);
      if (marker === null || marker.token === running.seenToken) return;
      running.seenToken = marker.token;
      this.#uplinkSeen(vm, marker.token);
    });
    running.uplinkTimer = this.#clock.after("uplink watch", UPLINK_PERIOD_MS, () => { this.#watch(vm, running); });
  }

  #guard(vm: VmId, run: () => void): void {
    try {
      run();
    } catch (thrown) {
      this.#failed(vm, thrown);
    }
  }
}
