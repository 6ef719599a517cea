import type { Clock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import type { VmId } from "../../model/ids.js";
import { disksOf } from "./disks.js";
import type { DriverFacts, Guest, GuestIdentity, GuestSpec, HypervisorDriver } from "./driver.js";
import { FakeDisks } from "./qemu-fake-disks.js";
import { die, FakeGuest, type Machine } from "./qemu-fake-guest.js";

/**
 * QEMU's behaviour without a guest: the same states, events and streams (over real unix sockets), in milliseconds. Stream: passes of zeros, then one byte LAST;
 * the way back has ACK at its begin (switchover-ack) and LOADED at its end (return-path), and both are waited for as QEMU does.
 */
export class FakeHypervisor implements HypervisorDriver {
  readonly name = "fake";
  readonly #machines = new Map<number, Machine>();
  readonly #clock: Clock;
  readonly #canLead: boolean;
  #nextPid = 1;
  /** Given back: nobody's here. */
  readonly #foreign = new Set<number>();

  constructor(options: { readonly clock: Clock; readonly canLead?: boolean }) {
    this.#clock = options.clock;
    this.#canLead = options.canLead ?? true;
  }

  facts(): Promise<DriverFacts> {
    return Promise.resolve({ ownsTap: true, ownsStream: true, canLead: this.#canLead, canHoldTarget: true, version: "0.0.0", accelerator: "tcg", acceleratorReason: "a fake needs none" });
  }

  start(spec: GuestSpec): Promise<Guest> {
    return this.#make(spec, false);
  }

  incoming(spec: GuestSpec): Promise<Guest> {
    return this.#make(spec, true);
  }

  adopt(vm: VmId, identity: GuestIdentity): Promise<Guest | null> {
    const machine = this.#machines.get(identity.pid);
    return Promise.resolve(machine === undefined ? null : new FakeGuest(vm, machine, this.#clock, () => { this.kill(identity.pid); }));
  }

  takeOver(vm: VmId, control: string): Promise<Guest> {
    const found = [...this.#machines].find(([, machine]) => machine.identity.control === control && machine.status === "running");
    if (found === undefined) return Promise.reject(new CareofError("adopt-failed", `no process listens on ${control}`));
    const [pid, machine] = found;
    return Promise.resolve(new FakeGuest(vm, machine, this.#clock, () => { this.kill(pid); }));
  }

  async giveBack(guest: Guest, record: () => void): Promise<{ readonly control: string }> {
    record();
    this.#foreign.add(guest.identity.pid);
    await guest.release();
    return { control: guest.identity.control };
  }

  cleanUp(keep: readonly GuestIdentity[]): Promise<readonly string[]> {
    const kept = new Set([...keep.map(({ pid }) => pid), ...this.#foreign]);
    const ended = [...this.#machines.keys()].filter((pid) => !kept.has(pid));
    for (const pid of ended) this.kill(pid);
    return Promise.resolve(ended.map(String));
  }

  /** As SIGKILL does. */
  kill(pid: number): void {
    const machine = this.#machines.get(pid);
    if (machine === undefined) return;
    this.#machines.delete(pid);
    die(machine, "killed by SIGKILL");
  }

  /** Its monitor answers, or does not. */
  setReachable(pid: number, reachable: boolean): void {
    const machine = this.#machines.get(pid);
    if (machine === undefined) return;
    machine.reachable = reachable;
    for (const listener of [...machine.listeners]) listener({ kind: "monitor", reachable });
  }

  /** Numbers of the guests that execute at this moment. */
  running(): readonly number[] {
    return [...this.#machines].filter(([, { status }]) => status === "running" || status === "fetching" || status === "stranded").map(([pid]) => pid);
  }

  #make(spec: GuestSpec, incoming: boolean): Promise<Guest> {
    const pid = this.#nextPid++;
    if (spec.qemu.extraArgs.includes("-fail")) return Promise.reject(new CareofError("start-failed", "told to fail"));
    const disks = new FakeDisks({ disks: disksOf(spec.qemu), clock: this.#clock, emit: (event) => { if (machine.reachable) for (const listener of [...machine.listeners]) listener(event); }, status: () => machine.status });
    const machine: Machine = {
      identity: { pid, startTicks: String(pid), bootId: "fake", control: `fake-${String(pid)}`, console: "" }, incoming, status: incoming ? "incoming" : "running", stream: "none",
      passes: 0, transferred: 0, cancelled: false, postcopy: false, busy: false, told: false, continueSwitchover: null, socket: null, server: null, disks, listeners: new Set(), reachable: true,
    };
    this.#machines.set(pid, machine);
    return Promise.resolve(new FakeGuest(spec.vm, machine, this.#clock, () => { this.kill(pid); }));
  }
}
