import { isV4, macBytes, type IpAddress, type Mac } from "../../model/address.js";
import type { Clock, Timer } from "../../model/clock.js";
import { toCareofError } from "../../model/errors.js";
import type { Logger } from "../../model/log.js";
import type { Came, HeldFrame } from "../../net/hold.js";
import { isMarker } from "../../net/marker.js";
import { millis } from "../../model/ids.js";
import type { HostEntry, HostHold, SentOn } from "../../net/tunnel.js";
import type { VmNetwork } from "../vm-network.js";
import type { Eyes } from "./eyes.js";
import { Held, HELD_LONGEST } from "./held.js";
import { deliveryOf, type OutsideVm } from "./outside-vm.js";

const ETHERNET_SOURCE = 6;
const ETHERNET = 14;
/** A port that is merely full refuses more and more: for so long it has no second chance with what it refuses, like any other. */
const FULL_FOR = millis(1000);
const NOTHING: SentOn = { directly: 0, straggler: 0 };

export interface DataPathOptions {
  readonly eyes: Eyes;
  readonly network: VmNetwork;
  readonly gatewayMac: Mac;
  readonly queueLength: number;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Where the packets of one VM go: the tunnel's entries, and what waits in user space beside them. */
export class DataPath {
  readonly held: Held;
  readonly #options: DataPathOptions;
  #state: OutsideVm;
  /** The entries that the data plane has, as text. */
  #entries = "";
  /** Index of the port that has refused packets, for certain or perhaps, which wait for a word on that. */
  #refuser: number | null = null;
  /** Numbers of the last packets that the hold has given us, and of the last ones of them that went on. */
  readonly #taken = new Map<IpAddress, SentOn>();
  readonly #sent = new Map<IpAddress, SentOn>();
  /** Runs while the port counts as full. */
  #full: Timer | null = null;

  constructor(options: DataPathOptions, state: OutsideVm) {
    this.#options = options;
    this.#state = state;
    this.held = new Held({ packets: options.queueLength, longest: HELD_LONGEST });
  }

  /**
   * Idempotent. `takeHeld` brings what waits in the kernel: before the switch, as often as more has come meanwhile, so that it goes first, and once more, for those of a sender who is faster than that.
   */
  set(state: OutsideVm, takeHeld: () => void): void {
    this.#state = state;
    const entries = this.#wanted();
    const { port, spec } = state;
    const text = `${String(port?.index)} ${JSON.stringify(entries)}`;
    if (text === this.#entries) return;
    try {
      this.#options.network.setOutside(spec, entries, port?.carrier === true, (home) => {
        takeHeld();
        this.#release();
        return this.#sentOn(home);
      });
      this.#entries = text;
    } catch (thrown) {
      // The port went between the kernel's word and now; its next word comes.
      const error = toCareofError(thrown);
      this.#options.log.warn({ vm: spec.vm, reason: error.code, detail: error.message }, "the data plane does not take a port");
    }
    takeHeld();
  }

  /** Its port has refused packets, which wait until the caller has found out whether it is gone or full, and says `full` or sets a state that delivers elsewhere. */
  get refused(): boolean {
    return this.#asks() && this.#refuser !== null && this.#refuser === this.#state.port?.index;
  }

  /** A packet that waited in the kernel. */
  take({ home, frame, came, number }: HeldFrame): void {
    const delivery = deliveryOf(this.#state);
    // The port was there a moment ago: it would get it twice.
    if (came === "doubtful" && delivery.to === "port" && this.#full !== null) return;
    this.held.put(frame, came, this.#options.clock.monotonic());
    if (came === "directly" || came === "straggler") this.#taken.set(home, { ...(this.#taken.get(home) ?? NOTHING), [came]: number });
    if ((came === "refused" || came === "doubtful") && this.#asks()) this.#refuser = this.#state.port?.index ?? null;
    // Whoever passed a straggler on would not take it back; what came directly was on its way into the hold when the way on was opened.
    this.#release(delivery.to === "host" && delivery.holdStragglers ? "straggler" : null);
  }

  /**
   * The port is there: what it did not refuse for certain it has queued, or one of its queue's disciplines chose to drop it, whose business that is. It is congested, so nothing more of it is asked for a while. True
   * unless it has refused something for certain, too.
   */
  present(takeHeld: () => void): boolean {
    if (this.held.has("doubtful")) {
      this.held.forget("doubtful");
      if (!this.held.has("refused")) this.#rest(takeHeld);
    }
    return !this.refused;
  }

  /** The port is there and has no room. */
  full(takeHeld: () => void): void {
    this.held.giveUp();
    this.#rest(takeHeld);
  }

  /** For `FULL_FOR` the data plane does not look what becomes of a packet. */
  #rest(takeHeld: () => void): void {
    this.#refuser = null;
    this.#full?.cancel();
    this.#full = this.#options.clock.after("full", FULL_FOR, () => {
      this.#full = null;
      this.set(this.#state, takeHeld);
    });
    this.set(this.#state, takeHeld);
  }

  close(): void {
    this.#full?.cancel();
    this.#full = null;
  }

  /** What the port refuses is kept. */
  #asks(): boolean {
    const delivery = deliveryOf(this.#state);
    return delivery.to === "port" && !delivery.holdDirect && this.#full === null;
  }

  #wanted(): HostEntry[] {
    const { spec, peers } = this.#state;
    const { hold } = this.#options.eyes;
    const delivery = deliveryOf(this.#state);
    const stragglersFrom = peers.map(({ locator }) => locator.address);
    const { mac } = spec;
    const atPort: HostHold["from"] | null = this.#asks() ? "port" : delivery.to === "port" && delivery.holdDirect ? "home-agents" : null;
    return spec.homeAddresses.map((home): HostEntry => {
      switch (delivery.to) {
        case "hold": return { role: "deliver", home, port: delivery.port?.name ?? hold, mac, stragglersFrom, hold: { device: hold, from: "all" } };
        case "port": return { role: "deliver", home, port: delivery.port.name, mac, stragglersFrom, hold: atPort === null ? null : { device: hold, from: atPort } };
        case "host": return { role: "forward", home, to: delivery.address, sender: delivery.port === null ? null : { port: delivery.port.name, mac }, hold: delivery.holdStragglers ? { device: hold, stragglersFrom, mac } : null };
      }
    });
  }

  /** What is none of this any more was sent, or dropped. */
  #sentOn(home: IpAddress): SentOn {
    const { directly, straggler } = this.#taken.get(home) ?? NOTHING;
    const before = this.#sent.get(home) ?? NOTHING;
    const sent = { directly: this.held.has("directly") ? before.directly : directly, straggler: this.held.has("straggler") ? before.straggler : straggler };
    this.#sent.set(home, sent);
    return sent;
  }

  /** Held packets that may go now do. `stays`: what came so does not. */
  #release(stays: Came | null = null): void {
    const delivery = deliveryOf(this.#state);
    if (delivery.to === "hold" || this.held.size === 0) return;
    if (this.refused) return;
    this.#refuser = null;
    for (const frame of this.held.take(this.#options.clock.monotonic(), delivery.to === "port" && delivery.holdDirect ? "directly" : stays)) this.#send(frame);
  }

  #send(frame: Buffer): void {
    const { network, eyes, gatewayMac, log } = this.#options;
    const delivery = deliveryOf(this.#state);
    try {
      if (delivery.to === "host" && isV4(delivery.address)) eyes.passOn(frame, delivery.address);
      // A marker behind them is for the next host's agent, not for a guest.
      else if (delivery.to === "port" && !isMarker(frame.subarray(ETHERNET))) {
        frame.set(macBytes(gatewayMac), ETHERNET_SOURCE);
        network.sendFrame(delivery.port.name, frame);
      }
    } catch (thrown) {
      this.held.overflowed++;
      log.debug({ vm: this.#state.spec.vm, reason: toCareofError(thrown).message }, "a held packet was lost");
    }
  }
}
