import type { Clock, Timer } from "../model/clock.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { millis, NEVER_BOUND, type Epoch, type Millis, type VmId } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import type { Adopt, VmSpec } from "../proto/messages.js";
import type { Guest, GuestIdentity, GuestSpec, HypervisorDriver } from "./hypervisor/driver.js";
import type { VmRecord } from "./record-shapes.js";
import type { Records } from "./records.js";
import type { VmNetwork } from "./vm-network.js";

/** A QEMU that was just left by the agent's earlier life may still be closing that connection. */
const ADOPT_TRIES = 5;
const ADOPT_PAUSE = millis(300);
const END_AGAIN = millis(1000);
const BURY_AGAIN = millis(1000);

/**
 * A guest that this host is the owner of, or was until it released it:
 * `starting` → `runs` → `stopping`; a migration keeps its source's guest `runs` until the revocation.
 */
export interface Resident {
  readonly spec: VmSpec;
  epoch: Epoch;
  state: "starting" | "runs" | "stopping";
  guest: Guest | null;
  /** It runs in a process that somebody else has started. */
  readonly adopted: Adopt | null;
}

export interface GuestsOptions {
  readonly driver: HypervisorDriver;
  readonly network: VmNetwork;
  readonly records: Records<VmRecord>;
  readonly clock: Clock;
  readonly log: Logger;
  /** A guest's process ended without having been told to. */
  readonly died: (resident: Resident, detail: string) => void;
  /** A guest's monitor answers again, or does not any more. */
  readonly reached: (resident: Resident) => void;
}

/** The guests of this host, each with its record on disk. What is not on disk does not run: the record is written before the process is started. */
export class Guests {
  readonly #options: GuestsOptions;
  readonly #residents = new Map<VmId, Resident>();
  readonly #epochs = new Map<VmId, Epoch>();
  /** Tombstones that the disk has not taken yet. */
  readonly #unburied = new Map<VmId, Timer>();

  constructor(options: GuestsOptions) {
    this.#options = options;
  }

  get(vm: VmId): Resident | undefined {
    return this.#residents.get(vm);
  }

  all(): readonly Resident[] {
    return [...this.#residents.values()];
  }

  /** Nothing up to this epoch is new here; 0 for a VM that was never here. */
  lastEpoch(vm: VmId): Epoch {
    return this.#epochs.get(vm) ?? NEVER_BOUND;
  }

  /**
   * After the agent's restart: finds the processes of the records again, all at once: a monitor that hangs holds up no other. Returns the VMs whose guest is gone.
   */
  async recover(): Promise<readonly Resident[]> {
    const { records, network } = this.#options;
    const gone: Resident[] = [];
    const found = await Promise.all([...records.all().values()].map(async (record) => {
      const { state, identity, spec: { vm } } = record;
      return { record, guest: state === "ended" || identity === null ? null : await this.adopt(vm, identity) };
    }));
    for (const { record, guest } of found) {
      const { vm } = record.spec;
      this.#epochs.set(vm, record.epoch);
      if (record.state === "ended") continue;
      const resident: Resident = { spec: record.spec, epoch: record.epoch, state: "runs", guest, adopted: record.adopted };
      if (guest === null) {
        gone.push(resident);
        continue;
      }
      this.#keep(resident, guest);
      network.expect(record.spec, record.adopted?.port ?? null);
    }
    return gone;
  }

  /**
   * One that somebody else has started need not answer: it is not reachable then, until it does.
   * @throws CareofError `adopt-failed`: a process of ours lives and does not answer. It is left alone: another agent may be its master.
   */
  async adopt(vm: VmId, identity: GuestIdentity): Promise<Guest | null> {
    for (let tries = 1; ; tries++) {
      try {
        return await this.#options.driver.adopt(vm, identity);
      } catch (cause) {
        if (tries >= ADOPT_TRIES) throw new CareofError("adopt-failed", `process ${String(identity.pid)} of ${vm} lives and does not answer on ${identity.control}: is another agent running?`, { cause });
        await this.#pause(ADOPT_PAUSE);
      }
    }
  }

  /** `adopted`: it runs already, and nothing is started. @throws CareofError `already-running`, `stale-epoch`, `unsupported`, `start-failed` */
  async start(spec: VmSpec, epoch: Epoch, adopted: Adopt | null = null): Promise<void> {
    const { vm } = spec;
    const here = this.#residents.get(vm);
    if (here !== undefined) {
      if (here.epoch === epoch && here.state === "runs") return;
      throw new CareofError("already-running", `${vm} runs here under epoch ${String(here.epoch)}`);
    }
    if (epoch <= this.lastEpoch(vm)) throw new CareofError("stale-epoch", `${vm} was here under epoch ${String(this.lastEpoch(vm))}`);
    const resident: Resident = { spec, epoch, state: "starting", guest: null, adopted };
    this.#residents.set(vm, resident);
    let guest: Guest | null = null;
    try {
      this.#write(resident, null);
      guest = adopted === null ? await this.#launch(spec, epoch) : await this.#takeOver(spec, epoch, adopted);
      this.#write(resident, guest.identity);
      resident.state = "runs";
      this.#keep(resident, guest);
    } catch (thrown) {
      // Whoever hears of a failed start may start it elsewhere: first it must not run here.
      if (guest !== null) await (adopted === null ? this.#end(guest) : guest.release());
      await this.#leaveAfter(resident);
      const error = toCareofError(thrown);
      throw error.code === "unsupported" || error.code === "not-running" ? error : new CareofError("start-failed", error.message, { cause: error });
    }
  }

  /** Asks the guest to go, then makes it. @throws CareofError `not-running`, `stop-failed` */
  async stop(vm: VmId, how: { readonly force: boolean; readonly patience: Millis }): Promise<void> {
    const resident = this.#residents.get(vm);
    if (resident?.guest === null || resident === undefined) throw new CareofError("not-running", `${vm} does not run here`);
    const { guest } = resident;
    resident.state = "stopping";
    try {
      if (!how.force) await this.#askToGo(guest, how.patience);
      await guest.destroy();
    } catch (cause) {
      resident.state = "runs";
      throw new CareofError("stop-failed", toCareofError(cause).message, { cause });
    }
    await this.#leave(resident);
  }

  /** Lets go of a guest, whoever started it: it runs on with its port, and is none of this host's any more. Returns where it is, for people. @throws CareofError `not-running`, `stop-failed` */
  async giveBack(vm: VmId): Promise<string> {
    const resident = this.#residents.get(vm);
    if (resident?.guest === null || resident?.state !== "runs") throw new CareofError("not-running", `${vm} does not run here`);
    const { pid } = resident.guest.identity;
    try {
      const { control } = await this.#options.driver.giveBack(resident.guest, () => { this.#disown(resident); });
      return `process ${String(pid)}, monitor ${control}, port ${await this.#giveBackPort(vm)}`;
    } catch (cause) {
      throw new CareofError("stop-failed", toCareofError(cause).message, { cause });
    }
  }

  /** Durable when it returns, and before anybody else can have the guest: a crash leaves it with one holder. @throws CareofError `record-write-failed`: it is still this host's */
  #disown(resident: Resident): void {
    try {
      this.bury(resident.spec, resident.epoch);
    } catch (thrown) {
      this.#residents.set(resident.spec.vm, resident);
      throw thrown;
    }
  }

  /** The guest is somebody else's by now, whatever becomes of the port. */
  async #giveBackPort(vm: VmId): Promise<string> {
    try {
      return await this.#options.network.giveBack(vm) ?? "none";
    } catch (thrown) {
      const error = toCareofError(thrown);
      this.#options.log.error({ vm, reason: error.code, err: error }, "the port of a guest that was let go of could not be");
      return `not let go of (${error.message})`;
    }
  }

  /** A migration brought it. It is this host's from now on; until `save` has returned, the migration's record speaks for it on disk. */
  arrived(spec: VmSpec, epoch: Epoch, guest: Guest): void {
    this.#keep({ spec, epoch, state: "runs", guest, adopted: null }, guest);
  }

  /** Durable when it returns; nothing happens if that guest is not this host's any more. @throws CareofError `record-write-failed` */
  save(vm: VmId, guest: Guest): void {
    const resident = this.#residents.get(vm);
    if (resident?.guest === guest) this.#write(resident, guest.identity);
  }

  /** The home agent calls this host the owner under that epoch. On disk before it counts: who calls again after a failure is not taken for one who says nothing new. @throws CareofError `record-write-failed` */
  rebase(vm: VmId, epoch: Epoch): void {
    const resident = this.#residents.get(vm);
    if (resident?.state !== "runs" || resident.guest === null || epoch <= resident.epoch) return;
    this.#write({ ...resident, epoch }, resident.guest.identity);
    resident.epoch = epoch;
  }

  /** The guest is not this host's any more (its process is gone): a tombstone stays, the network is the caller's. @throws CareofError `record-write-failed`: it is forgotten all the same, and the tombstone wanted still */
  bury(spec: VmSpec, epoch: Epoch): void {
    const last = Math.max(epoch, this.lastEpoch(spec.vm)) as Epoch;
    this.#residents.delete(spec.vm);
    this.#epochs.set(spec.vm, last);
    this.#options.records.write(spec.vm, { state: "ended", epoch: last, spec, identity: null, adopted: null });
  }

  /** As `bury`, and what the disk does not take now it is given again: until it has it, another life of this agent would say once more that the guest is gone. */
  buryInTime(spec: VmSpec, epoch: Epoch): void {
    try {
      this.bury(spec, epoch);
    } catch (thrown) {
      const { clock, log } = this.#options;
      const error = toCareofError(thrown);
      log.error({ vm: spec.vm, epoch, reason: error.code, err: error }, "the tombstone of a guest could not be written: it is tried again");
      this.#unburied.get(spec.vm)?.cancel();
      this.#unburied.set(spec.vm, clock.after("bury", BURY_AGAIN, () => {
        this.#unburied.delete(spec.vm);
        if (!this.#residents.has(spec.vm)) this.buryInTime(spec, epoch);
      }));
    }
  }

  /** A start or an arrival under an epoch up to this one is refused from now on. */
  forbid(vm: VmId, epoch: Epoch): void {
    if (!this.#residents.has(vm) && epoch > this.lastEpoch(vm)) this.#epochs.set(vm, epoch);
  }

  /** Lets go of all: the agent ends. */
  async release(): Promise<void> {
    for (const timer of this.#unburied.values()) timer.cancel();
    this.#unburied.clear();
    await Promise.all(this.all().map(async ({ guest }) => guest?.release()));
  }

  async #launch(spec: VmSpec, epoch: Epoch): Promise<Guest> {
    const port = await this.#options.network.attach(spec, []);
    return this.#options.driver.start(guestSpec(spec, epoch, port));
  }

  /** The guest is looked at first: its port is not touched for one that is not there. */
  async #takeOver(spec: VmSpec, epoch: Epoch, { control, port }: Adopt): Promise<Guest> {
    const { qemu } = guestSpec(spec, epoch, port);
    const guest = await this.#options.driver.takeOver(spec.vm, control, qemu.memoryBytes);
    try {
      const { pid, startTicks } = guest.identity;
      const other = this.all().find((each) => each.guest?.identity.pid === pid && each.guest.identity.startTicks === startTicks);
      if (other !== undefined) throw new CareofError("already-running", `process ${String(pid)} is the guest of ${other.spec.vm} already`);
      this.#requirePort(port, pid);
      await this.#options.network.attach(spec, [], port);
      return guest;
    } catch (thrown) {
      await guest.release();
      throw thrown;
    }
  }

  /** Another guest's would be taken away from that one, and this one would hear nothing. @throws CareofError `no-reader`, `no-link` */
  #requirePort(port: string, pid: number): void {
    try {
      this.#options.network.requireReader(port, pid);
    } catch (thrown) {
      const { code, message } = toCareofError(thrown);
      throw code === "no-reader" ? new CareofError(code, `${message}: vms[].qemu.adopt names the port of something else`, { cause: thrown }) : thrown;
    }
  }

  #keep(resident: Resident, guest: Guest): void {
    resident.guest = guest;
    const { vm } = resident.spec;
    this.#residents.set(vm, resident);
    this.#epochs.set(vm, resident.epoch);
    guest.subscribe((event) => {
      if (this.#residents.get(vm) !== resident || resident.state !== "runs") return;
      if (event.kind === "gone") this.#options.died(resident, event.detail);
      else if (event.kind === "monitor") this.#options.reached(resident);
    });
  }

  async #askToGo(guest: Guest, patience: Millis): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const timer = this.#options.clock.after("power-down", patience, done);
      const unsubscribe = guest.subscribe((event) => { if (event.kind === "gone") done(); });
      function done(): void {
        timer.cancel();
        unsubscribe();
        resolve();
      }
      guest.powerDown().catch((thrown: unknown) => {
        done();
        reject(toCareofError(thrown));
      });
    }).catch((thrown: unknown) => {
      // It cannot be asked: it is made to go.
      this.#options.log.warn({ vm: guest.vm, reason: toCareofError(thrown).code }, "the guest could not be asked to power down");
    });
  }

  async #leave(resident: Resident): Promise<void> {
    this.bury(resident.spec, resident.epoch);
    await this.#options.network.detach(resident.spec.vm);
  }

  /** Until it is gone nothing is answered: that is a start of which nobody knows how it went. */
  async #end(guest: Guest): Promise<void> {
    for (;;) {
      try {
        await guest.destroy();
        return;
      } catch (thrown) {
        const error = toCareofError(thrown);
        this.#options.log.error({ vm: guest.vm, pid: guest.identity.pid, reason: error.code, err: error }, "the guest of a failed start does not end");
        await this.#pause(END_AGAIN);
      }
    }
  }

  /** A disk that takes no tombstone has a record without a process: the next life calls that guest gone. */
  async #leaveAfter(resident: Resident): Promise<void> {
    try {
      await this.#leave(resident);
    } catch (thrown) {
      const error = toCareofError(thrown);
      this.#options.log.error({ vm: resident.spec.vm, reason: error.code, err: error }, "what a failed start left could not be removed");
      this.#residents.delete(resident.spec.vm);
      await this.#options.network.detach(resident.spec.vm);
    }
  }

  #write(resident: Resident, identity: GuestIdentity | null): void {
    this.#options.records.write(resident.spec.vm, { state: "owner", epoch: resident.epoch, spec: resident.spec, identity, adopted: resident.adopted });
  }

  #pause(delay: Millis): Promise<void> {
    return new Promise((resolve) => { this.#options.clock.after("again", delay, resolve); });
  }
}

/** @throws CareofError `unsupported` for a VM that this host's hypervisor does not start */
export function guestSpec(spec: VmSpec, epoch: Epoch, port: string | null): GuestSpec {
  if (spec.driver !== "qemu" || spec.qemu === null) throw new CareofError("unsupported", `${spec.vm} has driver ${spec.driver}: its guest is not started by careof`);
  return { vm: spec.vm, epoch, mac: spec.mac, port, qemu: spec.qemu };
}
