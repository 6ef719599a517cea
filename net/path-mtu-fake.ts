import type { Ipv4 } from "../model/address.js";
import type { FragNeeded } from "./frag-needed.js";
import type { PathWire } from "./path-mtu.js";

/** A way on which a test is the routers: it sees what is probed, and says what does not fit. */
export class FakePathWire implements PathWire {
  readonly probes: { readonly from: Ipv4; readonly to: Ipv4; readonly length: number }[] = [];
  /** What the path to an address really carries: a probe that is longer is answered at once. Where there is nothing, everything fits. */
  readonly carries = new Map<Ipv4, number>();
  closed = false;
  #heard: (said: FragNeeded) => void = () => undefined;

  listen(heard: (said: FragNeeded) => void): void {
    this.#heard = heard;
  }

  probe(from: Ipv4, to: Ipv4, length: number): void {
    this.probes.push({ from, to, length });
    const mtu = this.carries.get(to);
    if (mtu !== undefined && length > mtu) this.say({ source: from, destination: to, length, mtu });
  }

  /** Anybody can. */
  say(said: FragNeeded): void {
    this.#heard(said);
  }

  close(): void {
    this.closed = true;
  }
}
