import type { Ipv4 } from "../../model/address.js";
import { toCareofError, type CareofError } from "../../model/errors.js";
import { HoldDevice, type HeldFrame } from "../../net/hold.js";
import { Netlink } from "../../net/netlink/client.js";
import { LinkMonitor, type LinkEvent } from "../../net/netlink/link-monitor.js";
import { findLink, listLinks, type Link } from "../../net/netlink/links.js";
import { PortSight, type Seen } from "../../net/port-sight.js";
import { Readiness } from "../../net/readiness.js";
import { StragglerSocket } from "../../net/stragglers.js";
import type { VmSpec } from "../../proto/messages.js";

const ETHERNET = 14;

/** What is heard, at once and never while one of the other calls runs. */
export interface Heard {
  link(event: LinkEvent): void;
  /** Something waits in the hold. */
  held(): void;
  failed(error: CareofError): void;
}

/** One port that is looked at; `armed`: frames of the VM are told. */
export interface Sight {
  armed: boolean;
  close(): void;
}

/** The kernel's side of VMs that somebody else moves. */
export interface Eyes {
  /** The name of the device where held packets wait. */
  readonly hold: string;
  open(heard: Heard): void;
  links(): readonly Link[];
  /** As it is now, which the news of it may be behind; `null`: there is none of that name. */
  link(name: string): Link | null;
  /** @throws CareofError `kernel-refused`: the port is gone */
  look(port: number, spec: VmSpec, seen: (what: Seen) => void): Sight;
  /** Everything that waits in the hold, oldest first. */
  takeHeld(): readonly HeldFrame[];
  /** Packets that found the hold full, since this was last asked. All VMs share it. */
  overflowed(): number;
  /** A held packet goes on to another host. @throws CareofError `kernel-refused` */
  passOn(frame: Buffer, to: Ipv4): void;
  close(): void;
}

/** By rtnetlink, packet sockets and a TAP, in the network namespace in which it was made. */
export class LinuxEyes implements Eyes {
  readonly hold = "co-hold";
  readonly #queueLength: number;
  readonly #netlink = new Netlink();
  readonly #monitor = new LinkMonitor();
  readonly #stragglers: StragglerSocket;
  #heard: Heard | null = null;
  #readiness: Readiness | null = null;
  #device: HoldDevice | null = null;
  #dropped = 0;

  constructor(options: { readonly careOf: Ipv4; readonly queueLength: number }) {
    this.#stragglers = new StragglerSocket(options.careOf);
    this.#queueLength = options.queueLength;
  }

  open(heard: Heard): void {
    const readiness = new Readiness((error) => { heard.failed(error); });
    const device = new HoldDevice(this.hold, this.#queueLength);
    this.#heard = heard;
    this.#readiness = readiness;
    this.#device = device;
    readiness.add(this.#monitor.descriptor, () => { this.#guard(() => { for (const event of this.#monitor.read()) heard.link(event); }); });
    readiness.add(device.descriptor, () => { this.#guard(() => { heard.held(); }); });
  }

  links(): readonly Link[] {
    return listLinks(this.#netlink);
  }

  link(name: string): Link | null {
    return findLink(this.#netlink, name);
  }

  look(port: number, { mac, homeAddresses }: VmSpec, seen: (what: Seen) => void): Sight {
    const sight = new PortSight({ index: port, mac, homeAddresses });
    const guard = (work: () => void): void => { this.#guard(work); };
    this.#readiness?.add(sight.descriptor, () => {
      guard(() => {
        const what = sight.read();
        if (what !== null) seen(what);
      });
    });
    return {
      get armed() { return sight.armed; },
      set armed(wanted: boolean) { guard(() => { sight.armed = wanted; }); },
      close: () => {
        this.#readiness?.remove(sight.descriptor);
        sight.close();
      },
    };
  }

  takeHeld(): readonly HeldFrame[] {
    return this.#device?.read() ?? [];
  }

  overflowed(): number {
    const before = this.#dropped;
    this.#dropped = findLink(this.#netlink, this.hold)?.dropped ?? before;
    return this.#dropped - before;
  }

  passOn(frame: Buffer, to: Ipv4): void {
    this.#stragglers.send(frame.subarray(ETHERNET), to);
  }

  close(): void {
    this.#readiness?.close();
    this.#readiness = null;
    this.#device?.close();
    this.#monitor.close();
    this.#stragglers.close();
    this.#netlink.close();
  }

  #guard(work: () => void): void {
    try {
      work();
    } catch (thrown) {
      this.#heard?.failed(toCareofError(thrown));
    }
  }
}
