import { addressBytes, type Ipv4 } from "../model/address.js";
import type { Clock, Timer } from "../model/clock.js";
import { toCareofError, type CareofError } from "../model/errors.js";
import { millis, type Millis } from "../model/ids.js";
import { LEAST_PATH_MTU } from "../model/locator.js";
import { encodeProbe, FragNeededSocket, type FragNeeded } from "./frag-needed.js";
import { Readiness } from "./readiness.js";
import * as sys from "./syscall.js";

/** RFC 1191 §6.3: what was learned is forgotten after so long, since a path may have become wider and nothing says so. */
export const LEARNED_FOR = millis(600_000);
/** Before that it is asked whether it still is so: the answer renews it, and no packet of a VM has to be lost for it. */
export const ASK_BEFORE = millis(5000);
/** Probes get lost, and routers limit how often they answer. */
export const PROBES_AT: readonly Millis[] = [millis(0), millis(150), millis(1200)];

/** Contract of what lies below: `heard` for each "fragmentation needed" about a tunnel packet that this machine gets, believable or not; `probe` sends one (frag-needed.ts). */
export interface PathWire {
  listen(heard: (said: FragNeeded) => void, failed: (error: CareofError) => void): void;
  /** `length` in bytes, outer header included. @throws CareofError `kernel-refused` (EMSGSIZE: more than the own link carries) */
  probe(from: Ipv4, to: Ipv4, length: number): void;
  close(): void;
}

interface Path {
  /** What is configured, or the far end said; never more than this. */
  readonly ceiling: number;
  readonly learned: number | null;
  readonly until: Millis;
  readonly timers: readonly Timer[];
}

export interface PathMtusOptions {
  readonly wire: PathWire;
  readonly clock: Clock;
  /** Own outer address: only what is said about packets from there counts. */
  readonly address: Ipv4;
  /** The MTU of the path to this address is another one now. */
  readonly changed: (to: Ipv4, mtu: number) => void;
  readonly failed: (error: CareofError) => void;
}

/**
 * What the paths to the other ends of the tunnels carry. A router's "fragmentation needed" lowers it, at most to `LEAST_PATH_MTU`, for `LEARNED_FOR`; nothing raises it but that time. Only paths
 * in the set count, only packets that this end can have sent, and never anything above what was known.
 */
export class PathMtus {
  readonly #options: PathMtusOptions;
  readonly #paths = new Map<Ipv4, Path>();

  constructor(options: PathMtusOptions) {
    this.#options = options;
    options.wire.listen((said) => { this.#heard(said); }, options.failed);
  }

  /** The paths that are in use, and what each carries as far as it is configured, in bytes. Idempotent; what was learned of a path that stays is kept. A new path is probed. */
  set(paths: ReadonlyMap<Ipv4, number>): void {
    for (const [to, path] of this.#paths) {
      if (paths.has(to)) continue;
      for (const timer of path.timers) timer.cancel();
      this.#paths.delete(to);
    }
    for (const [to, ceiling] of paths) {
      const known = this.#paths.get(to);
      if (known?.ceiling === ceiling) continue;
      this.#paths.set(to, { learned: null, until: millis(0), timers: [], ...known, ceiling });
      this.probe(to);
    }
  }

  /** `null` for a path that is not in the set. */
  mtu(to: Ipv4): number | null {
    const path = this.#paths.get(to);
    return path === undefined ? null : valueOf(path);
  }

  /** Sends packets of the largest size that the path is believed to carry, so that a router that cannot take them says so now: before a move, not in it. */
  probe(to: Ipv4): void {
    this.#probe(to, 0);
  }

  close(): void {
    this.set(new Map());
    this.#options.wire.close();
  }

  #heard({ destination, length, mtu, source }: FragNeeded): void {
    const path = this.#paths.get(destination);
    if (path === undefined || source !== this.#options.address || length > path.ceiling) return;
    const named = Math.max(mtu, LEAST_PATH_MTU);
    const before = valueOf(path);
    // RFC 1191 §3: it never raises; what says the same again keeps it.
    if (named > before || named >= path.ceiling) return;
    for (const timer of path.timers) timer.cancel();
    this.#paths.set(destination, { ...path, learned: named, until: millis(this.#options.clock.monotonic() + LEARNED_FOR), timers: [] });
    this.#after(destination, millis(LEARNED_FOR - ASK_BEFORE), () => { this.#probe(destination, 1); });
    this.#after(destination, LEARNED_FOR, () => { this.#forget(destination); });
    if (named === before) return;
    this.#options.changed(destination, named);
    // A router further on may carry still less.
    this.probe(destination);
  }

  #forget(to: Ipv4): void {
    const path = this.#paths.get(to);
    if (path === undefined || path.learned === null) return;
    const rest = path.until - this.#options.clock.monotonic();
    if (rest > 0) {
      // A timer that was early must not be the last one: what was learned would never be forgotten.
      this.#after(to, millis(Math.max(1, rest)), () => { this.#forget(to); });
      return;
    }
    this.#paths.set(to, { ...path, learned: null });
    this.#options.changed(to, path.ceiling);
    this.probe(to);
  }

  #after(to: Ipv4, delay: Millis, run: () => void): void {
    const timer: Timer = this.#options.clock.after("path mtu", delay, () => {
      const path = this.#paths.get(to);
      if (path?.timers.includes(timer) !== true) return;
      this.#paths.set(to, { ...path, timers: path.timers.filter((each) => each !== timer) });
      run();
    });
    const path = this.#paths.get(to);
    if (path !== undefined) this.#paths.set(to, { ...path, timers: [...path.timers, timer] });
  }

  /** `more`: bytes beyond what is believed. */
  #probe(to: Ipv4, more: number): void {
    const { address, failed, wire } = this.#options;
    for (const delay of PROBES_AT) {
      this.#after(to, delay, () => {
        const mtu = this.mtu(to);
        if (mtu === null) return;
        try {
          wire.probe(address, to, mtu + more);
        } catch (thrown) {
          failed(toCareofError(thrown));
        }
      });
    }
  }
}

function valueOf({ ceiling, learned }: Path): number {
  return learned === null ? ceiling : Math.min(learned, ceiling);
}

const AF_INET = 2;
const SOCK_RAW_CLOEXEC = 3 | 0o2000000;
const IPPROTO_RAW = 255;
const IPPROTO_IP = 0;
const IP_MTU_DISCOVER = 10;
const IP_PMTUDISC_PROBE = 3;

/** Raw sockets of the network namespace in which it was made. */
export class LinuxPathWire implements PathWire {
  readonly #errors = new FragNeededSocket();
  readonly #probes = sys.socket(AF_INET, SOCK_RAW_CLOEXEC, IPPROTO_RAW);
  #readiness: Readiness | null = null;

  constructor() {
    // Where the kernel has a tunnel device it learns of the path too, and would answer a probe itself.
    const probe = Buffer.alloc(4);
    probe.writeUInt32LE(IP_PMTUDISC_PROBE);
    sys.setSocketOption(this.#probes, IPPROTO_IP, IP_MTU_DISCOVER, probe);
  }

  listen(heard: (said: FragNeeded) => void, failed: (error: CareofError) => void): void {
    const readiness = new Readiness(failed);
    this.#readiness = readiness;
    readiness.add(this.#errors.descriptor, () => {
      try {
        for (const said of this.#errors.read()) heard(said);
      } catch (thrown) {
        failed(toCareofError(thrown));
      }
    });
  }

  probe(from: Ipv4, to: Ipv4, length: number): void {
    const address = Buffer.alloc(16);
    address.writeUInt16LE(AF_INET);
    address.set(addressBytes(to), 4);
    sys.sendTo(this.#probes, encodeProbe(from, to, length), address);
  }

  close(): void {
    this.#readiness?.remove(this.#errors.descriptor);
    this.#readiness?.close();
    this.#errors.close();
    sys.close(this.#probes);
  }
}
