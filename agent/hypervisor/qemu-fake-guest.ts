import { connect, createServer, type Server, type Socket } from "node:net";
import { rmSync } from "node:fs";
import type { Clock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { millis, type VmId } from "../../model/ids.js";
import type { Guest, GuestEvent, GuestIdentity, GuestStatus, StreamOptions, StreamProgress, StreamStatus } from "./driver.js";
import type { FakeDisks } from "./qemu-fake-disks.js";

/** A whole pass over the fake guest's memory. */
const PASS_BYTES = 64 * 1024;
const PASS_MS = millis(2);
/** Passes before it stops, where nothing holds it. */
const PASSES = 5;
const ACK = 0x41;
const LAST = 0x4c;
const LOADED = 0x44;
/** All but memory. */
const POSTCOPY = 0x50;
/** How long the memory takes that follows: a test has to see it on its way, on a busy machine too. */
const FOLLOW_MS = millis(1500);

/** One fake guest process; lives in a map of the machine's and not in the driver, as a process lives on without its agent. */
export interface Machine {
  readonly identity: GuestIdentity;
  incoming: boolean;
  status: GuestStatus;
  stream: StreamStatus;
  passes: number;
  transferred: number;
  cancelled: boolean;
  postcopy: boolean;
  /** With a limited bandwidth it writes faster than is copied, until it is forced. */
  busy: boolean;
  /** Stopped by a command, not for the stream: it does not run by itself when that fails. */
  told: boolean;
  continueSwitchover: (() => void) | null;
  socket: Socket | null;
  server: Server | null;
  readonly disks: FakeDisks;
  readonly listeners: Set<(event: GuestEvent) => void>;
  reachable: boolean;
}

export function die(machine: Machine, detail: string): void {
  if (machine.status === "gone") return;
  machine.status = "gone";
  machine.socket?.destroy();
  machine.server?.close();
  machine.disks.die();
  for (const listener of [...machine.listeners]) listener({ kind: "gone", detail });
}

/** QEMU's states, events and streams of one guest: see FakeHypervisor. */
export class FakeGuest implements Guest {
  readonly vm: VmId;
  readonly identity: GuestIdentity;
  readonly disks: FakeDisks;
  readonly #machine: Machine;
  readonly #clock: Clock;
  readonly #kill: () => void;
  readonly #mine = new Set<(event: GuestEvent) => void>();

  constructor(vm: VmId, machine: Machine, clock: Clock, kill: () => void) {
    this.vm = vm;
    this.identity = machine.identity;
    this.disks = machine.disks;
    this.#machine = machine;
    this.#clock = clock;
    this.#kill = kill;
  }

  get reachable(): boolean {
    return this.#machine.reachable;
  }

  subscribe(listener: (event: GuestEvent) => void): () => void {
    this.#mine.add(listener);
    this.#machine.listeners.add(listener);
    return () => {
      this.#mine.delete(listener);
      this.#machine.listeners.delete(listener);
    };
  }

  status(): Promise<GuestStatus> {
    if (!this.#machine.reachable) return Promise.reject(new CareofError("guest-unreachable", `${this.vm} does not answer`, { retryable: true }));
    return Promise.resolve(this.#machine.status);
  }

  async progress(): Promise<StreamProgress> {
    this.#alive();
    const { stream, transferred, passes } = this.#machine;
    return Promise.resolve({ status: stream, transferred, remaining: 0, total: PASS_BYTES, passes, bytesPerSecond: 0, dirtyBytesPerSecond: 0, expectedDowntimeMs: null, throttlePercent: 0, error: "" });
  }

  async receive({ socket: path, lead }: StreamOptions): Promise<void> {
    this.#alive();
    const machine = this.#machine;
    if (!machine.incoming || machine.server !== null) throw new CareofError("qmp-refused", "'-incoming' was not specified on the command line");
    rmSync(path, { force: true });
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      server.close();
      machine.socket = socket;
      this.#stream("active");
      if (lead) socket.write(Uint8Array.of(ACK));
      socket.on("data", (chunk: Buffer) => {
        if (chunk.includes(POSTCOPY) && machine.status === "incoming") {
          this.#stream("postcopy-active");
          machine.status = "loaded";
        }
        if (chunk.includes(LAST) && machine.stream === "postcopy-active") {
          if (machine.status === "fetching") machine.status = "running";
          this.#stream("completed");
          socket.end(Uint8Array.of(LOADED));
        }
        if (!chunk.includes(LAST) || machine.status !== "incoming") return;
        machine.status = "loaded";
        this.#stream("completed");
        socket.end(Uint8Array.of(LOADED));
      });
      socket.on("error", () => undefined);
      socket.on("close", () => { this.#fail(); });
      socket.on("end", () => { this.#fail(); });
    });
    machine.server = server;
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(path, resolve);
    });
    this.#stream("setup");
  }

  async send({ socket: path, lead, maxBandwidth }: StreamOptions): Promise<void> {
    this.#alive();
    const machine = this.#machine;
    if (copying(machine)) throw new CareofError("qmp-refused", "There's a migration process in progress");
    Object.assign(machine, { cancelled: false, postcopy: false, told: false, busy: maxBandwidth > 0, passes: 0, transferred: 0, continueSwitchover: null });
    this.#stream("setup");
    const socket = connect({ path, allowHalfOpen: true });
    machine.socket = socket;
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", resolve);
      socket.once("error", (cause) => {
        this.#stream("failed");
        reject(new CareofError("qmp-refused", cause.message));
      });
    });
    socket.on("error", () => undefined);
    const seen = new Set<number>();
    socket.on("data", (chunk: Buffer) => { for (const byte of chunk) seen.add(byte); });
    socket.on("close", () => { this.#fail(); });
    socket.on("end", () => { if (!seen.has(LOADED)) this.#fail(); });
    this.#stream("active");
    this.#copy(socket, lead, seen);
    return Promise.resolve();
  }

  preferSwitchover(): Promise<void> {
    this.#alive();
    return Promise.resolve();
  }

  forceSwitchover(): Promise<void> {
    this.#alive();
    this.#machine.busy = false;
    return Promise.resolve();
  }

  halt(): Promise<void> {
    this.#alive();
    if (this.#machine.status === "running") {
      Object.assign(this.#machine, { status: "halted", told: true });
      this.#emit({ kind: "stopped", at: this.#clock.monotonic() });
    }
    return Promise.resolve();
  }

  startPostcopy(): Promise<void> {
    this.#machine.postcopy = true;
    return this.halt();
  }

  async continueSwitchover(): Promise<void> {
    this.#alive();
    if (this.#machine.stream !== "pre-switchover") throw new CareofError("qmp-refused", "Migration not in expected state: pre-switchover");
    this.#machine.continueSwitchover?.();
    return Promise.resolve();
  }

  async cancelSend(): Promise<void> {
    this.#alive();
    if (this.#machine.stream.startsWith("postcopy")) throw new CareofError("qmp-refused", "Postcopy migration in progress, cannot cancel.");
    if (copying(this.#machine)) {
      this.#machine.cancelled = true;
      this.#machine.socket?.destroy();
      this.#fail();
    }
    return Promise.resolve();
  }

  async resume(): Promise<void> {
    this.#alive();
    const machine = this.#machine;
    if (machine.status === "running") return Promise.resolve();
    if (machine.status === "incoming" || copying(machine) || (!machine.incoming && machine.stream.startsWith("postcopy"))) throw new CareofError("qmp-refused", "the guest's state is not here");
    this.#runs();
    return Promise.resolve();
  }

  powerDown(): Promise<void> {
    this.#alive();
    return Promise.resolve();
  }

  destroy(): Promise<void> {
    this.#kill();
    return Promise.resolve();
  }

  release(): Promise<void> {
    for (const listener of this.#mine) this.#machine.listeners.delete(listener);
    return Promise.resolve();
  }

  #copy(socket: Socket, lead: boolean, seen: ReadonlySet<number>): void {
    const machine = this.#machine;
    this.#clock.after("fake-pass", PASS_MS, () => {
      if (machine.stream !== "active") return;
      machine.passes++;
      this.#emit({ kind: "pass", passes: machine.passes, at: this.#clock.monotonic() });
      const held = lead && !seen.has(ACK);
      if (!held || machine.passes <= PASSES) {
        machine.transferred += PASS_BYTES;
        socket.write(new Uint8Array(PASS_BYTES));
      }
      if (((machine.passes < PASSES || machine.busy) && !machine.postcopy) || held) {
        this.#copy(socket, lead, seen);
        return;
      }
      if (machine.status === "running") {
        machine.status = "halted";
        this.#emit({ kind: "stopped", at: this.#clock.monotonic() });
      }
      this.#stream("pre-switchover");
      machine.continueSwitchover = () => {
        machine.continueSwitchover = null;
        // QEMU's permissions collide when a disk still has a second user.
        if (socket.destroyed || machine.disks.busy) {
          this.#fail();
          return;
        }
        this.#stream("device");
        socket.write(Uint8Array.of(machine.postcopy ? POSTCOPY : LAST));
        if (machine.postcopy) this.#follow(socket);
        this.#awaitLoaded(seen);
      };
    });
  }

  #follow(socket: Socket): void {
    this.#stream("postcopy-active");
    this.#clock.after("fake-follow", FOLLOW_MS, () => {
      if (this.#machine.stream === "postcopy-active") socket.write(Uint8Array.of(LAST));
    });
  }

  #awaitLoaded(seen: ReadonlySet<number>): void {
    const machine = this.#machine;
    this.#clock.after("fake-loaded", PASS_MS, () => {
      if (machine.stream !== "device" && machine.stream !== "postcopy-active") return;
      if (!seen.has(LOADED)) {
        this.#awaitLoaded(seen);
        return;
      }
      machine.status = "handed-over";
      this.#stream("completed");
      machine.socket?.end();
    });
  }

  /** The stream broke: an incoming guest ends, a sending one runs on or again. At pre-switchover nothing is noticed, as in QEMU, unless it was cancelled. */
  #fail(): void {
    const machine = this.#machine;
    if (machine.stream === "postcopy-active") {
      if (machine.status === "fetching") machine.status = "stranded";
      this.#stream("postcopy-paused");
      return;
    }
    if (machine.incoming && machine.status === "incoming") {
      this.#stream("failed");
      this.#kill();
      return;
    }
    if (!copying(machine) || (machine.stream === "pre-switchover" && machine.continueSwitchover !== null && !machine.cancelled)) return;
    this.#stream(machine.cancelled ? "cancelled" : "failed");
    if (machine.status === "halted" && !machine.told) this.#runs();
  }

  #runs(): void {
    this.#machine.status = this.#machine.stream === "postcopy-active" ? "fetching" : this.#machine.stream === "postcopy-paused" ? "stranded" : "running";
    this.#machine.incoming = false;
    this.#machine.told = false;
    this.#emit({ kind: "resumed", at: this.#clock.monotonic() });
  }

  #stream(status: StreamStatus): void {
    this.#machine.stream = status;
    this.#emit({ kind: "stream", status });
  }

  /** What nobody hears is not told later. */
  #emit(event: GuestEvent): void {
    if (!this.#machine.reachable) return;
    for (const listener of [...this.#machine.listeners]) listener(event);
  }

  #alive(): void {
    if (this.#machine.status === "gone") throw new CareofError("guest-gone", `${this.vm} has no process any more`);
    if (!this.#machine.reachable) throw new CareofError("guest-unreachable", `${this.vm} does not answer`, { retryable: true });
  }
}

function copying(machine: Machine): boolean {
  return ["setup", "active", "pre-switchover", "device"].includes(machine.stream) && !machine.incoming;
}
