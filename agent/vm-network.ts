import { createHash } from "node:crypto";
import type { IpAddress } from "../model/address.js";
import { CareofError, toCareofError } from "../model/errors.js";
import type { VmId } from "../model/ids.js";
import type { PortQueue } from "../net/tap-queue.js";
import type { HostEntry, HostTunnel, SentOn, Stamps } from "../net/tunnel.js";
import type { VmPort, VmPorts } from "../net/vm-port.js";
import type { VmSpec } from "../proto/messages.js";
import { Turns } from "./turns.js";

/** IFNAMSIZ less its closing zero. */
const MAX_INTERFACE_NAME = 15;
/** IEEE Std 802 local experimental EtherType 1: no guest listens to it. */
const PRIMING_ETHERTYPE = [0x88, 0xb5];
/** Locally administered, and no guest's: the guest's card drops what it is the destination of. */
const PRIMING_DESTINATION = [0x02, 0xca, 0x0f, 0xff, 0xff, 0xfe];
const PRIMING_SOURCE = [0x02, 0xca, 0x0f, 0xff, 0xff, 0xff];
const MIN_FRAME = 60;

export interface VmNetworkOptions {
  readonly ports: VmPorts;
  readonly queueLength: number;
  readonly guestMtu: number;
}

interface Attached {
  readonly spec: VmSpec;
  readonly port: VmPort;
  stragglersFrom: readonly IpAddress[];
  forwardTo: IpAddress | null;
}

interface Outside {
  readonly spec: VmSpec;
  readonly entries: readonly HostEntry[];
  readonly present: boolean;
}

/**
 * Ports and tunnel ends of the VMs on this host, as one desired state: `apply` makes the kernel's so, the others change one VM. The tunnel may come later
 * than the VMs (its far end is learned from the home agent) and may be exchanged.
 */
export class VmNetwork {
  readonly #options: VmNetworkOptions;
  readonly #attached = new Map<VmId, Attached>();
  /** VMs that somebody else makes and moves; agent/external says what is to be done for them. */
  readonly #outside = new Map<VmId, Outside>();
  readonly #outsidePorts = new Map<VmId, VmPort>();
  /** Names of ports that are to go, and are not known to be gone. */
  readonly #going = new Map<string, VmId>();
  #pathMtu: number | null = null;
  #tunnel: HostTunnel | null = null;
  readonly #turns = new Turns<"ports">();

  constructor(options: VmNetworkOptions) {
    this.#options = options;
  }

  get tunnel(): HostTunnel | null {
    return this.#tunnel;
  }

  /** Home addresses that are here, and whose. */
  owners(): ReadonlyMap<IpAddress, VmId> {
    const present = [...this.#outside.values()].filter((each) => each.present);
    return new Map([...this.#attached.values(), ...present].flatMap(({ spec }) => spec.homeAddresses.map((home) => [home, spec.vm] as const)));
  }

  async useTunnel(tunnel: HostTunnel): Promise<void> {
    this.#tunnel = tunnel;
    if (this.#pathMtu !== null) tunnel.usePathMtu(this.#pathMtu);
    await this.apply();
  }

  /** The path to the home agent carries outer packets of so many bytes from now on: guests hear of it by "frag needed". @throws CareofError `kernel-refused` */
  usePathMtu(bytes: number): void {
    this.#pathMtu = bytes;
    this.#options.ports.usePathMtu(bytes);
    this.#tunnel?.usePathMtu(bytes);
  }

  /** Says what is here without making it so; then `apply`. For the start, when a crash may have left anything. */
  expect(spec: VmSpec, existing: string | null = null): string {
    const port = this.#portFor(spec, existing);
    this.#attached.set(spec.vm, { spec, port, stragglersFrom: [], forwardTo: null });
    return port.name;
  }

  apply(): Promise<void> {
    return this.#inTurn(async () => {
      const going = [...this.#going.keys()];
      await this.#options.ports.set(this.#ports());
      // What was let go of meanwhile was still wanted.
      for (const name of going) this.#going.delete(name);
      await this.#tunnel?.set(this.#entries());
    });
  }

  /** What the kernel may have dropped is set again, and nothing else is changed: what cannot be, of one VM, keeps no other one's from it. @throws CareofError the first failure, when everything has been tried */
  renew(): Promise<void> {
    return this.#inTurn(async () => {
      const failures: CareofError[] = [];
      // One after the other: the tunnel's entries lead to the ports.
      for (const part of [() => this.#options.ports.renew(this.#ports()), () => this.#tunnel?.renew(this.#entries())]) {
        try {
          await part();
        } catch (thrown) {
          failures.push(toCareofError(thrown));
        }
      }
      if (failures[0] !== undefined) throw failures[0];
    });
  }

  /** Idempotent. Returns the port's interface, ready for the hypervisor. `existing`: an interface that is there already and is not made. @throws CareofError `no-link` when it is not */
  async attach(spec: VmSpec, stragglersFrom: readonly IpAddress[], existing: string | null = null): Promise<string> {
    if (this.#tunnel === null) throw new CareofError("no-home-agent", "this host has no tunnel yet", { retryable: true });
    const port = this.#portFor(spec, existing);
    await this.#inTurn(async () => {
      this.#going.delete(port.name);
      try {
        await this.#options.ports.put(port);
      } catch (thrown) {
        // It may be there from before, or half made.
        if (existing === null && !this.#ports().some(({ name }) => name === port.name)) this.#going.set(port.name, spec.vm);
        throw thrown;
      }
      const attached: Attached = { spec, port, stragglersFrom, forwardTo: null };
      this.#attached.set(spec.vm, attached);
      for (const entry of entriesOf(attached)) this.#tunnel?.put(entry);
    });
    return port.name;
  }

  /** From the next packet on, what still comes for the VM goes to another host. */
  forward(vm: VmId, to: IpAddress): void {
    this.#change(vm, { forwardTo: to });
  }

  deliver(vm: VmId): void {
    this.#change(vm, { forwardTo: null });
  }

  /** The move is over: nobody but the home agents may send for it any more. */
  settle(vm: VmId): void {
    this.#change(vm, { stragglersFrom: [] });
  }

  /** Idempotent. @throws CareofError `kernel-refused`: nothing is delivered here any more, and the port goes when this, `tidy` or `apply` succeeds */
  async detach(vm: VmId): Promise<void> {
    this.#letGo(vm);
    await this.#inTurn(() => this.#dropGoing((owner) => owner === vm));
  }

  /** As `detach`, for a VM that is about to come: a port that `attach` would make anew stays for it, and goes with `tidy` should that not come. */
  async makeRoom(vm: VmId): Promise<void> {
    if (this.#attached.get(vm)?.port.kind === "tap") this.#letGo(vm);
    else await this.detach(vm);
  }

  /** Tries again to remove the ports that could not be removed. @throws CareofError the first failure; the others were tried all the same */
  async tidy(): Promise<void> {
    await this.#inTurn(() => this.#dropGoing(() => true));
  }

  /** As `detach`, but the port's interface stays, and is not ours any more. Returns its name. Idempotent. */
  giveBack(vm: VmId): Promise<string | null> {
    // Only in its turn: a whole state that is set before must not take for left over what is to stay.
    return this.#inTurn(async () => {
      const port = this.#forget(vm);
      if (port !== null) await this.#options.ports.giveAway(port);
      return port;
    });
  }

  /** What the ports are asked for takes its time, and what is wanted by then must not be what was wanted before. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    return this.#turns.take("ports", work);
  }

  #ports(): readonly VmPort[] {
    return [...[...this.#attached.values()].map(({ port }) => port), ...this.#outsidePorts.values()];
  }

  #entries(): readonly HostEntry[] {
    return [...[...this.#attached.values()].flatMap(entriesOf), ...[...this.#outside.values()].flatMap(({ entries }) => entries)];
  }

  async #dropGoing(whose: (owner: VmId) => boolean): Promise<void> {
    const failures: CareofError[] = [];
    for (const [name, owner] of [...this.#going]) {
      if (!whose(owner)) continue;
      try {
        await this.#options.ports.drop(name);
        this.#going.delete(name);
      } catch (thrown) {
        failures.push(toCareofError(thrown));
      }
    }
    if (failures[0] !== undefined) throw failures[0];
  }

  #letGo(vm: VmId): void {
    const port = this.#forget(vm);
    if (port !== null) this.#going.set(port, vm);
  }

  #forget(vm: VmId): string | null {
    const attached = this.#attached.get(vm);
    if (attached === undefined) return null;
    this.#attached.delete(vm);
    for (const home of attached.spec.homeAddresses) this.#tunnel?.drop(home);
    return attached.port.name;
  }

  /** Idempotent. `present`: its port is up here. `sendOn`: as for `HostTunnel.put`, of one home address. @throws CareofError `no-link` */
  setOutside(spec: VmSpec, entries: readonly HostEntry[], present: boolean, sendOn: (home: IpAddress) => SentOn): void {
    this.#outside.set(spec.vm, { spec, entries, present });
    for (const entry of entries) this.#tunnel?.put(entry, () => sendOn(entry.home));
  }

  /** What the stack knows of the port: addresses, neighbour, routes. The data plane's fast path does without. */
  async setOutsidePort(spec: VmSpec, name: string | null, old: string | null): Promise<void> {
    const { ports, queueLength, guestMtu } = this.#options;
    await this.#inTurn(async () => {
      this.#outsidePorts.delete(spec.vm);
      if (old !== null) this.#going.set(old, spec.vm);
      await this.#dropGoing((owner) => owner === spec.vm);
      if (name === null) return;
      const port: VmPort = { name, kind: "external", mac: spec.mac, homeAddresses: spec.homeAddresses, queueLength, mtu: guestMtu };
      this.#going.delete(name);
      await ports.put(port);
      this.#outsidePorts.set(spec.vm, port);
    });
  }

  /** Idempotent. The interface stays, and what the stack knew of it goes. What another VM has by now (the same one under a new name, say) is left to it. @throws CareofError as `detach` */
  async dropOutside(vm: VmId): Promise<void> {
    const outside = this.#outside.get(vm);
    this.#outside.delete(vm);
    const others = [...this.#attached.values(), ...this.#outside.values()];
    for (const home of outside?.spec.homeAddresses ?? []) if (!others.some(({ spec }) => spec.homeAddresses.includes(home))) this.#tunnel?.drop(home);
    await this.#inTurn(async () => {
      const port = this.#outsidePorts.get(vm);
      this.#outsidePorts.delete(vm);
      if (port !== undefined && ![...this.#outsidePorts.values()].some(({ name }) => name === port.name)) this.#going.set(port.name, vm);
      await this.#dropGoing((owner) => owner === vm);
    });
  }

  /** @throws CareofError `no-link`, `kernel-refused` */
  sendFrame(port: string, frame: Uint8Array): void {
    this.#options.ports.sendFrame(port, frame);
  }

  /** The stamps of a move, of the VM's first home address (its markers carry that one). */
  stamps(vm: VmId): Stamps | null {
    const home = this.#home(vm);
    return home === null ? null : this.#tunnel?.stamps(home) ?? null;
  }

  clearStamps(vm: VmId): void {
    const home = this.#home(vm);
    if (home !== null) this.#tunnel?.clearStamps(home);
  }

  sendUpMarker(vm: VmId, token: number): void {
    const home = this.#home(vm);
    if (home !== null) this.#tunnel?.sendMarker(home, token);
  }

  /**
   * One frame that the guest will drop. A halted QEMU takes exactly one packet out of the TAP and reads it with the header length of a guest that
   * has not loaded its state yet, so that it arrives shifted: this one is for that.
   */
  prime(vm: VmId): void {
    const attached = this.#attached.get(vm);
    if (attached === undefined) return;
    const frame = new Uint8Array(MIN_FRAME);
    frame.set([...PRIMING_DESTINATION, ...PRIMING_SOURCE, ...PRIMING_ETHERTYPE]);
    this.#options.ports.sendFrame(attached.port.name, frame);
  }

  /** Packets for the VM that found its port's queue full, since the port was made; 0 for a VM without a port here. */
  overflowed(vm: VmId): number {
    const attached = this.#attached.get(vm);
    return attached === undefined ? 0 : this.#options.ports.overflowed(attached.port.name);
  }

  /** Packets that the data plane has handed to the VM's port, since it has one here; 0 for a VM without a port here. */
  delivered(vm: VmId): number {
    const homes = this.#attached.get(vm)?.spec.homeAddresses ?? [];
    return homes.reduce((sum, home) => sum + (this.#tunnel?.counters(home).downPackets ?? 0), 0);
  }

  /** What waits for the guest in front of its port, of which process `reader` is the guest. `null`: it has no port here. @throws CareofError `no-reader`, `kernel-refused` */
  queue(vm: VmId, reader: number): PortQueue | null {
    const attached = this.#attached.get(vm);
    return attached === undefined ? null : this.#options.ports.queue(attached.port.name, reader);
  }

  /** The interface of a guest that is here already is the one that process `reader` has open. @throws CareofError `no-reader`, `no-link` */
  requireReader(port: string, reader: number): void {
    try {
      this.#options.ports.queue(port, reader).close();
    } catch (thrown) {
      // It has it open; only what waits there cannot be seen, which costs a move some packets and no more.
      if (toCareofError(thrown).code !== "kernel-refused") throw thrown;
    }
  }

  #change(vm: VmId, change: { readonly stragglersFrom?: readonly IpAddress[]; readonly forwardTo?: IpAddress | null }): void {
    const attached = this.#attached.get(vm);
    if (attached === undefined) return;
    if (change.stragglersFrom !== undefined) attached.stragglersFrom = change.stragglersFrom;
    if (change.forwardTo !== undefined) attached.forwardTo = change.forwardTo;
    for (const entry of entriesOf(attached)) this.#tunnel?.put(entry);
  }

  #home(vm: VmId): IpAddress | null {
    return (this.#attached.get(vm) ?? this.#outside.get(vm))?.spec.homeAddresses[0] ?? null;
  }

  #portFor(spec: VmSpec, existing: string | null): VmPort {
    return {
      name: existing ?? portName(spec.vm), kind: existing === null ? "tap" : "external", mac: spec.mac, homeAddresses: spec.homeAddresses,
      queueLength: this.#options.queueLength, mtu: this.#options.guestMtu,
    };
  }
}

function entriesOf(attached: Attached): HostEntry[] {
  const { spec, port, forwardTo, stragglersFrom } = attached;
  return spec.homeAddresses.map((home) => forwardTo === null
    ? { role: "deliver", home, port: port.name, mac: spec.mac, stragglersFrom }
    : { role: "forward", home, to: forwardTo });
}

/** The VM's name where it fits an interface's, else a digest of it. */
export function portName(vm: VmId): string {
  const plain = `co-${vm}`;
  return plain.length <= MAX_INTERFACE_NAME ? plain : `co_${createHash("sha256").update(vm).digest("hex").slice(0, MAX_INTERFACE_NAME - 3)}`;
}
