import { join } from "node:path";
import { mac, type IpAddress, type Ipv4, type Mac } from "../model/address.js";
import { SystemClock, type Timer } from "../model/clock.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { millis } from "../model/ids.js";
import { ArrivalSight, type Arrival } from "./arrival-sight.js";
import { BorrowedSettings } from "./borrowed-settings.js";
import { checkSet, requireV4 } from "./entry-checks.js";
import { ENODEV, errnoOf } from "./errno.js";
import { gratuitousArp } from "./gratuitous-arp.js";
import type { HomeLan, HomeLanListener, HomeLanOptions } from "./home-lan.js";
import { Netlink } from "./netlink/client.js";
import { LinkMonitor, type LinkEvent } from "./netlink/link-monitor.js";
import { ETHERNET, findLink, requireLink, type Link } from "./netlink/links.js";
import { updateNeighbour } from "./netlink/neighbours.js";
import { deleteProxy, listProxies, proxyRequest, type ProxyNeighbour } from "./netlink/proxies.js";
import { HOME_AGENT_PROTOCOL } from "./netlink/routes.js";
import { PacketSocket } from "./packet-socket.js";
import { Readiness } from "./readiness.js";
import { routeFor, writeSysctl, type Setting } from "./sysctl.js";

/** After a turn's full measure of arrivals none is looked at for so long: some thousand a second are enough for anybody. */
const STORM_REST_MS = millis(50);

/**
 * By the kernel's proxy neighbours: it answers while this process is away, and by itself only for an address whose route leads over another interface, so that
 * nothing is answered for once the binding's route is gone. Ours carry the protocol number of the home agent's routes. The kernel forgets them when the
 * interface is taken down, hence `watch`.
 */
export class LinuxHomeLan implements HomeLan {
  readonly #options: HomeLanOptions;
  readonly #netlink = new Netlink();
  readonly #frames = new PacketSocket();
  readonly #borrowed: BorrowedSettings;
  #link: Link;
  /** What the kernel answers for on our behalf; null when it has to be asked. */
  #known: Set<Ipv4> | null = null;
  #watching: { readonly monitor: LinkMonitor; readonly sight: ArrivalSight; readonly readiness: Readiness } | null = null;
  /** What `watch` told last, and of which interface. */
  #told = "";
  readonly #clock = new SystemClock();
  #rest: Timer | null = null;
  #closed = false;

  /** Changes nothing yet. @throws CareofError `no-link`, `unsupported` */
  constructor(options: HomeLanOptions) {
    this.#options = options;
    this.#borrowed = borrowedIn(options.runDir, options.warn);
    try {
      this.#link = this.#find();
    } catch (thrown) {
      this.#frames.close();
      this.#netlink.close();
      throw thrown;
    }
  }

  set(homes: readonly IpAddress[]): readonly IpAddress[] {
    checkSet(homes.map((home) => ({ home })), this.#options.maxEntries);
    const missing = new Set(homes.map(requireV4));
    const wanted = new Set(missing);
    const { index } = this.#prepare();
    this.#known = null;
    for (const found of ours(this.#netlink)) {
      if (found.device === index && wanted.has(found.address)) missing.delete(found.address);
      else deleteProxy(this.#netlink, found);
    }
    this.#netlink.requestAll([...missing].map((address) => proxyRequest({ device: index, address, protocol: HOME_AGENT_PROTOCOL })));
    this.#known = wanted;
    return [...missing];
  }

  put(home: IpAddress): boolean {
    const address = requireV4(home);
    if (this.#known === null) this.#prepare();
    const known = this.#load();
    if (known.has(address)) return false;
    if (known.size >= this.#options.maxEntries) checkSet([...known, address].map((each) => ({ home: each })), this.#options.maxEntries);
    this.#netlink.request(proxyRequest({ device: this.#link.index, address, protocol: HOME_AGENT_PROTOCOL }));
    known.add(address);
    return true;
  }

  drop(home: IpAddress): boolean {
    const address = requireV4(home);
    const present = deleteProxy(this.#netlink, { device: this.#link.index, address });
    this.#known?.delete(address);
    return present;
  }

  answered(): readonly IpAddress[] {
    return ours(this.#netlink).filter(({ device }) => device === this.#link.index).map(({ address }) => address).sort();
  }

  announce(home: IpAddress, owner: Mac | null): void {
    const address = requireV4(home);
    this.#link = this.#find();
    const from = mac(this.#link.mac);
    this.#frames.send(this.#link.index, gratuitousArp({ address, owner: owner ?? from, from }));
  }

  watch(listener: HomeLanListener): void {
    const [monitor, sight, readiness] = [new LinkMonitor(), new ArrivalSight(), new Readiness((error) => { listener.failed(error); })];
    const guard = (work: () => void) => (): void => {
      try {
        work();
      } catch (thrown) {
        readiness.close();
        listener.failed(toCareofError(thrown));
      }
    };
    this.#watching = { monitor, sight, readiness };
    const link = findLink(this.#netlink, this.#options.interface);
    this.#told = identity(link);
    if (link !== null) sight.listenOn(link.index);
    readiness.add(monitor.descriptor, guard(() => {
      for (const event of monitor.read()) this.#heard(event, listener, sight);
    }));
    const look = guard(() => {
      const { arrivals, more } = sight.read();
      for (const arrival of arrivals) {
        this.#learn(arrival);
        listener.arrived(arrival);
      }
      const missed = sight.missed();
      if (missed > 0) listener.missed(missed);
      if (!more) return;
      // A storm: who has arrived says so more than once, so what finds the kernel's queue full meanwhile may be lost.
      readiness.remove(sight.descriptor);
      this.#rest = this.#clock.after("a storm on the home LAN", STORM_REST_MS, () => { readiness.add(sight.descriptor, look); });
    });
    readiness.add(sight.descriptor, look);
  }

  close({ keep }: { readonly keep: boolean }): void {
    if (this.#closed) return;
    this.#closed = true;
    if (!keep) takeAway(this.#netlink, this.#borrowed);
    this.#rest?.cancel();
    this.#watching?.readiness.close();
    this.#watching?.monitor.close();
    this.#watching?.sight.close();
    this.#frames.close();
    this.#netlink.close();
  }

  #find(): Link {
    const link = requireLink(this.#netlink, this.#options.interface);
    if (link.hardware !== ETHERNET) throw new CareofError("unsupported", `the interface ${link.name} of the home LAN is not Ethernet, on which alone there is ARP`);
    return link;
  }

  #prepare(): Link {
    this.#link = this.#find();
    const { name } = this.#link;
    routeFor([name]);
    writeSysctl(["net", "ipv4", "conf", name, "forwarding"], "1");
    const settings = settingsFor(name);
    // Those of an interface that the configuration does not name any more.
    this.#borrowed.giveBack(settings.map((each) => each.name));
    for (const each of settings) this.#borrowed.borrow(each.name, each.value);
    return this.#link;
  }

  #load(): Set<Ipv4> {
    this.#known ??= new Set(ours(this.#netlink).filter(({ device }) => device === this.#link.index).map(({ address }) => address));
    return this.#known;
  }

  #heard(event: LinkEvent, listener: HomeLanListener, sight: ArrivalSight): void {
    if (event.kind !== "missed" && event.link.name !== this.#options.interface) return;
    const link = event.kind === "missed" ? findLink(this.#netlink, this.#options.interface) : event.kind === "there" ? event.link : null;
    const now = identity(link);
    // What was missed may have been a change there and back.
    if (now === this.#told && event.kind !== "missed") return;
    this.#told = now;
    this.#known = null;
    const usable = link?.carrier === true && stillThere(link, sight);
    listener.changed(usable ? "usable" : "unusable");
  }

  /** What the kernel would do with it if it did not drop gratuitous ARP (see `#prepare`). */
  #learn({ mac: neighbour, home }: Arrival): void {
    if (home !== null && this.#known?.has(home) !== true) updateNeighbour(this.#netlink, { device: this.#link.index, address: home, mac: neighbour });
  }
}

/** False when it has gone since; there is news of that on the way. */
function stillThere({ index }: Link, sight: ArrivalSight): boolean {
  try {
    sight.listenOn(index);
    return true;
  } catch (thrown) {
    if (errnoOf(thrown) !== ENODEV) throw thrown;
    return false;
  }
}

function ours(netlink: Netlink): ProxyNeighbour[] {
  return listProxies(netlink).filter(({ protocol }) => protocol === HOME_AGENT_PROTOCOL);
}

/** Empty while it is not usable. */
function identity(link: Link | null): string {
  return link?.carrier === true ? `${String(link.index)} ${link.mac}` : "";
}

/** What we need of an interface that is not ours. */
function settingsFor(name: string): readonly Setting[] {
  return [
    // Otherwise it answers after a random time of up to 0.8 s, so that the true owner could be first; there is none on this link.
    { name: ["net", "ipv4", "neigh", name, "proxy_delay"], value: "0" },
    // Otherwise it would answer a VM's own announcement, and a guest that looks for conflicts give its address up. What that drops besides, `#learn` makes good.
    { name: ["net", "ipv4", "conf", name, "drop_gratuitous_arp"], value: "1" },
  ];
}

function borrowedIn(runDir: string, warn: (detail: string) => void = () => undefined): BorrowedSettings {
  return new BorrowedSettings(join(runDir, "home-lan.settings"), warn);
}

/** Returns how many there were. */
function takeAway(netlink: Netlink, borrowed: BorrowedSettings): number {
  const left = ours(netlink);
  for (const found of left) deleteProxy(netlink, found);
  borrowed.giveBack();
  return left.length;
}

/** For a home agent that routes: what an earlier one left that answered for addresses is taken away, and the interface's settings are as they were. Returns for how many addresses it was. */
export function stopAnswering(runDir: string, warn?: (detail: string) => void): number {
  const netlink = new Netlink();
  try {
    return takeAway(netlink, borrowedIn(runDir, warn));
  } finally {
    netlink.close();
  }
}
