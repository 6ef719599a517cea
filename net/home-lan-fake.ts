import type { IpAddress, Mac } from "../model/address.js";
import { CareofError } from "../model/errors.js";
import type { Arrival } from "./arrival-sight.js";
import { checkSet, requireV4 } from "./entry-checks.js";
import type { HomeLan, HomeLanListener, HomeLanOptions, HomeLanState } from "./home-lan.js";

/** A home LAN in memory, same contract. `announced` keeps what was sent; `state` is the interface's, `null` when it is gone. */
export class FakeHomeLan implements HomeLan {
  readonly #options: HomeLanOptions;
  readonly announced: { readonly home: IpAddress; readonly owner: Mac | null }[] = [];
  #state: HomeLanState | null = "usable";
  #answered: Set<IpAddress>;
  #listener: HomeLanListener | null = null;

  /** `left`: what an earlier process answered for. */
  constructor(options: HomeLanOptions, left: readonly IpAddress[] = []) {
    this.#options = options;
    this.#answered = new Set(left);
  }

  /** The kernel forgets what it answered for when the interface goes down. */
  become(state: HomeLanState | null): void {
    this.#state = state;
    if (state !== "usable") this.#answered.clear();
    this.#listener?.changed(state ?? "unusable");
  }

  /** A station says that it is there. */
  arrive(arrival: Arrival): void {
    this.#listener?.arrived(arrival);
  }

  set(homes: readonly IpAddress[]): readonly IpAddress[] {
    const wanted = this.#check(homes);
    this.#require();
    const added = wanted.filter((home) => !this.#answered.has(home));
    this.#answered = new Set(wanted);
    return added;
  }

  put(home: IpAddress): boolean {
    const address = requireV4(home);
    this.#require();
    if (this.#answered.has(address)) return false;
    this.#check([...this.#answered, address]);
    this.#answered.add(address);
    return true;
  }

  drop(home: IpAddress): boolean {
    return this.#answered.delete(requireV4(home));
  }

  answered(): readonly IpAddress[] {
    return [...this.#answered].sort();
  }

  announce(home: IpAddress, owner: Mac | null): void {
    const address = requireV4(home);
    this.#require();
    if (this.#state === "unusable") throw new CareofError("kernel-refused", `the kernel refused to send: ${this.#options.interface} is down`);
    this.announced.push({ home: address, owner });
  }

  watch(listener: HomeLanListener): void {
    this.#listener = listener;
  }

  /** A storm of arrivals of which so many were not looked at. */
  miss(frames: number): void {
    this.#listener?.missed(frames);
  }

  close({ keep }: { readonly keep: boolean }): void {
    if (!keep) this.#answered.clear();
  }

  #check(homes: readonly IpAddress[]): readonly IpAddress[] {
    checkSet(homes.map((home) => ({ home })), this.#options.maxEntries);
    return homes.map(requireV4);
  }

  #require(): void {
    if (this.#state === null) throw new CareofError("no-link", `there is no interface "${this.#options.interface}"`, { retryable: true });
  }
}
