import type { IpAddress, Mac } from "../model/address.js";
import type { Clock, Timer } from "../model/clock.js";
import { toCareofError } from "../model/errors.js";
import { millis, type Millis, type VmId } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import type { Arrival } from "../net/arrival-sight.js";
import type { HomeLan } from "../net/home-lan.js";
import type { Alarms } from "./alarms.js";
import type { Metrics } from "./metrics.js";

/** A broadcast may get lost: each gratuitous ARP is sent again so long after the one before (RFC 5944 §4.6: "a small number of times"). */
const AGAIN_MS = [millis(200), millis(1000)] as const;
/** Ten thousand VMs at once shall not flood the LAN: so many frames at most within so long. */
const BURST = 50;
const BURST_MS = millis(10);
/** Whoever arrives says so several times; of one VM it is heard once within so long, and each time after twice as long, up to the longest: also of one that says so without end, or that somebody else speaks for. */
const ARRIVAL_MS = 1000;
const ARRIVAL_LONGEST_MS = 64_000;
/** What the kernel refused is tried again after so long. */
const RETRY_MS = millis(500);

/** A home address that is answered for, and its VM's Ethernet address. */
export interface Standing {
  readonly vm: VmId;
  readonly home: IpAddress;
  readonly mac: Mac;
}

interface Announcement {
  readonly home: IpAddress;
  /** Null: we are; else the VM, which is not away any more. */
  readonly owner: Mac | null;
  readonly at: Millis;
  readonly sent: number;
}

export interface ProxyArpOptions {
  readonly lan: HomeLan;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Pick<Metrics, "gratuitousArps" | "answered" | "arrivalsIgnored">;
  readonly alarms: Pick<Alarms, "raise">;
  /** The VM, which is answered for, has itself said on the home LAN that it is there. */
  readonly cameHome: (vm: VmId) => void;
}

/**
 * What the home agent does on the home LAN (RFC 5944 §4.6). It answers for every VM that is bound, whatever its state; when it begins to, gratuitous ARP
 * turns the neighbours that still know the VM itself. When a binding ends it stops answering first, then tells by gratuitous ARP that the address belongs
 * to the VM's own Ethernet address again, and says no more. What a former process had set and is still wanted is not announced anew.
 */
export class ProxyArp {
  readonly #options: ProxyArpOptions;
  readonly #covered = new Map<IpAddress, Standing>();
  /** The same by Ethernet address: RARP names no other, and a storm of it shall not go through all VMs each time. */
  readonly #stations = new Map<Mac, Set<IpAddress>>();
  /** The newest about each address: an older one is not repeated. */
  readonly #announcing = new Map<IpAddress, Announcement>();
  /** When a VM was heard, and when that led to something, at last; and how long it shall lead to nothing more. */
  readonly #arrivals = new Map<VmId, { heard: Millis; readonly at: Millis; readonly pause: number }>();
  #stormy = false;
  #timer: Timer | null = null;
  #retry: Timer | null = null;
  #window: { readonly from: Millis; readonly sent: number } | null = null;
  /** Said once, until it goes again. */
  #deaf = false;
  #refusing = false;
  #watching = false;
  #closed = false;

  constructor(options: ProxyArpOptions) {
    this.#options = options;
  }

  /** Those that are not among `still` are not answered for any more. Before their way into the tunnel is taken away. */
  retire(still: readonly Standing[]): void {
    const wanted = new Set(still.map(({ home }) => home));
    for (const home of [...this.#covered.keys()]) if (!wanted.has(home)) this.uncover(home);
  }

  /** Exactly these, whatever was before: at the start, and after the configuration has changed. */
  set(wanted: readonly Standing[]): void {
    this.retire(wanted);
    for (const each of wanted) this.#stand(each);
    if (!this.#watching) {
      this.#watching = true;
      this.#options.lan.watch({
        changed: (state) => { this.#onLink(state === "usable"); },
        arrived: (arrival) => { this.#onArrival(arrival); },
        missed: (frames) => { this.#onStorm(frames); },
        failed: (error) => { this.#alarm(`the home LAN is not watched any more: ${error.message}`); },
      });
    }
    this.#sync();
  }

  cover(standing: Standing): void {
    const { home } = standing;
    const before = this.#covered.has(home);
    this.#stand(standing);
    if (before) return;
    this.#guard(() => { this.#options.lan.put(home); });
    this.#count();
    // Also where the kernel has it already: the binding is new.
    this.#announce([home], null);
  }

  uncover(home: IpAddress): void {
    const standing = this.#covered.get(home);
    if (standing === undefined) return;
    this.#leave(standing);
    this.#arrivals.delete(standing.vm);
    this.#guard(() => { this.#options.lan.drop(home); });
    this.#count();
    this.#announce([home], standing.mac);
  }

  close(): void {
    this.#closed = true;
    this.#timer?.cancel();
    this.#retry?.cancel();
  }

  #onLink(usable: boolean): void {
    if (this.#closed) return;
    const { log } = this.#options;
    if (!usable) {
      log.warn({ addresses: this.#covered.size }, "the home LAN's interface is down or gone: nobody is answered there");
      return;
    }
    log.info({ addresses: this.#covered.size }, "the home LAN's interface is there again");
    this.#put();
    // All of them: it may be another Ethernet address or another cable, or neighbours took somebody else for the VM meanwhile.
    this.#announce(this.#covered.keys(), null);
  }

  /** Only with the Ethernet address that the configuration has: of an address taken by another station nothing follows here. */
  #onArrival({ mac, home }: Arrival): void {
    if (this.#closed) return;
    const { clock, metrics, cameHome } = this.#options;
    const now = clock.monotonic();
    for (const address of home === null ? (this.#stations.get(mac) ?? []) : [home]) {
      const standing = this.#covered.get(address);
      if (standing?.mac !== mac) continue;
      const last = this.#arrivals.get(standing.vm);
      const quiet = last === undefined ? ARRIVAL_LONGEST_MS : now - last.heard;
      if (last !== undefined) last.heard = now;
      if (last !== undefined && now - last.at < last.pause) {
        metrics.arrivalsIgnored.inc({ why: "repeated" });
        continue;
      }
      this.#arrivals.set(standing.vm, { heard: now, at: now, pause: last === undefined || quiet >= ARRIVAL_LONGEST_MS ? ARRIVAL_MS : Math.min(2 * last.pause, ARRIVAL_LONGEST_MS) });
      cameHome(standing.vm);
    }
  }

  #onStorm(frames: number): void {
    const { metrics, log } = this.#options;
    metrics.arrivalsIgnored.inc({ why: "storm" }, frames);
    // Once: the count says the rest.
    if (!this.#stormy) log.warn({ frames }, "a storm of gratuitous ARP or RARP on the home LAN: some were not looked at (careof_home_lan_arrivals_ignored_total)");
    this.#stormy = true;
  }

  #stand(standing: Standing): void {
    const before = this.#covered.get(standing.home);
    if (before !== undefined) this.#leave(before);
    this.#covered.set(standing.home, standing);
    const homes = this.#stations.get(standing.mac);
    if (homes === undefined) this.#stations.set(standing.mac, new Set([standing.home]));
    else homes.add(standing.home);
  }

  #leave({ home, mac }: Standing): void {
    this.#covered.delete(home);
    const homes = this.#stations.get(mac);
    homes?.delete(home);
    if (homes?.size === 0) this.#stations.delete(mac);
  }

  /** What was not there before is announced. */
  #sync(): void {
    this.#announce(this.#put(), null);
  }

  /** The kernel's state made what is wanted. Returns what was not there before. */
  #put(): readonly IpAddress[] {
    let added: readonly IpAddress[] = [];
    this.#guard(() => { added = this.#options.lan.set([...this.#covered.keys()]); });
    this.#count();
    return added;
  }

  #count(): void {
    this.#options.metrics.answered.set(this.#covered.size);
  }

  #announce(homes: Iterable<IpAddress>, owner: Mac | null): void {
    const at = this.#options.clock.monotonic();
    for (const home of homes) this.#announcing.set(home, { home, owner, at, sent: 0 });
    this.#send();
  }

  #send(): void {
    const { clock } = this.#options;
    const now = clock.monotonic();
    let next = Infinity;
    for (const announcement of [...this.#announcing.values()]) {
      if (announcement.at > now) next = Math.min(next, announcement.at);
      else if (this.#mayStill(now)) next = Math.min(next, this.#sendOne(announcement, now));
      else {
        next = Math.min(next, now + BURST_MS);
        break;
      }
    }
    this.#timer?.cancel();
    this.#timer = next === Infinity ? null : clock.after("gratuitous ARP", millis(Math.max(1, next - now)), () => { if (!this.#closed) this.#send(); });
  }

  /** When it is due again, if ever. */
  #sendOne(announcement: Announcement, now: Millis): number {
    const { lan, metrics, log } = this.#options;
    const { home, owner, sent } = announcement;
    try {
      lan.announce(home, owner);
      metrics.gratuitousArps.inc({ what: owner === null ? "away" : "home" });
      this.#deaf = false;
    } catch (thrown) {
      // It is repeated anyway, and from the beginning when the interface comes back.
      if (!this.#deaf) log.warn({ home, code: toCareofError(thrown).code }, `a gratuitous ARP could not be sent: ${toCareofError(thrown).message}`);
      this.#deaf = true;
    }
    const pause = AGAIN_MS[sent];
    if (pause === undefined) {
      this.#announcing.delete(home);
      return Infinity;
    }
    const at = millis(now + pause);
    this.#announcing.set(home, { home, owner, at, sent: sent + 1 });
    return at;
  }

  #mayStill(now: Millis): boolean {
    if (this.#window === null || now - this.#window.from >= BURST_MS) this.#window = { from: now, sent: 0 };
    if (this.#window.sent >= BURST) return false;
    this.#window = { ...this.#window, sent: this.#window.sent + 1 };
    return true;
  }

  #guard(work: () => void): void {
    try {
      work();
      this.#refusing = false;
    } catch (thrown) {
      if (!this.#refusing) this.#alarm(`the home LAN cannot be set: ${toCareofError(thrown).message}`);
      this.#refusing = true;
      this.#retry ??= this.#options.clock.after("home LAN again", RETRY_MS, () => {
        this.#retry = null;
        if (!this.#closed) this.#sync();
      });
    }
  }

  #alarm(why: string): void {
    this.#options.alarms.raise("home-lan", null, [], why, this.#options.clock.now());
  }
}
