import { isV4, macBytes, type Mac } from "../../model/address.js";
import type { Clock } from "../../model/clock.js";
import { toCareofError } from "../../model/errors.js";
import type { Logger } from "../../model/log.js";
import { isMarker } from "../../net/marker.js";
import type { HostEntry } from "../../net/tunnel.js";
import type { VmNetwork } from "../vm-network.js";
import type { Eyes } from "./eyes.js";
import { Held, HELD_LONGEST } from "./held.js";
import { deliveryOf, type OutsideVm } from "./outside-vm.js";

const ETHERNET_SOURCE = 6;
const ETHERNET = 14;
/** Before a switch what waits is sent, and what has come meanwhile, and so on; of somebody who sends faster than that there is no end. */
const ROUNDS = 8;

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

  constructor(options: DataPathOptions, state: OutsideVm) {
    this.#options = options;
    this.#state = state;
    this.held = new Held({ packets: options.queueLength, longest: HELD_LONGEST });
  }

  /**
   * Idempotent. `takeHeld` brings what waits in the kernel, and says whether anything did: before the switch, so that it goes first, and once more, since packets do not wait for us. The
   * shorter the time between the last look and the switch, the less can be overtaken by what comes behind it.
   */
  set(state: OutsideVm, takeHeld: () => boolean): void {
    this.#state = state;
    const entries = this.#wanted();
    const { port, spec } = state;
    const text = `${String(port?.index)} ${JSON.stringify(entries)}`;
    if (text === this.#entries) return;
    try {
      this.#options.network.setOutside(spec, entries, port?.carrier === true, () => {
        takeHeld();
        this.#release();
        for (let round = 1; round < ROUNDS && takeHeld(); round++) this.#release();
      });
      this.#entries = text;
    } catch (thrown) {
      // The port went between the kernel's word and now; its next word comes.
      const error = toCareofError(thrown);
      this.#options.log.warn({ vm: spec.vm, reason: error.code, detail: error.message }, "the data plane does not take a port");
    }
    takeHeld();
  }

  /** A packet that waited in the kernel. */
  take(frame: Buffer, straggler: boolean): void {
    this.held.put(frame, straggler, this.#options.clock.monotonic());
    const delivery = deliveryOf(this.#state);
    // Whoever passed a straggler on would not take it back; what came directly was on its way into the hold when the way on was opened.
    if (delivery.to !== "host" || !delivery.holdStragglers) this.#release();
    else for (const late of this.held.take("direct", this.#options.clock.monotonic())) this.#send(late);
  }

  #wanted(): HostEntry[] {
    const { spec, peers } = this.#state;
    const { hold } = this.#options.eyes;
    const delivery = deliveryOf(this.#state);
    const stragglersFrom = peers.map(({ locator }) => locator.address);
    const { mac } = spec;
    return spec.homeAddresses.map((home): HostEntry => {
      switch (delivery.to) {
        case "hold": return { role: "deliver", home, port: delivery.port?.name ?? hold, mac, stragglersFrom, hold: { device: hold, from: "all" } };
        case "port": return { role: "deliver", home, port: delivery.port.name, mac, stragglersFrom, hold: delivery.holdDirect ? { device: hold, from: "home-agents" } : null };
        case "host": return { role: "forward", home, to: delivery.address, sender: delivery.port === null ? null : { port: delivery.port.name, mac }, hold: delivery.holdStragglers ? { device: hold, stragglersFrom, mac } : null };
      }
    });
  }

  /** Held packets that may go now do. */
  #release(): void {
    const delivery = deliveryOf(this.#state);
    if (delivery.to === "hold" || this.held.size === 0) return;
    const which = delivery.to === "port" && delivery.holdDirect ? "stragglers" : "all";
    for (const frame of this.held.take(which, this.#options.clock.monotonic())) this.#send(frame);
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
