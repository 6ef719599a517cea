import { rmSync } from "node:fs";
import { join } from "node:path";
import { addressFromBytes, isV4 } from "../model/address.js";
import type { Clock, Timer } from "../model/clock.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { millis, type Epoch, type Millis, type VmId } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import type { Reason } from "../model/reasons.js";
import type { StragglerSocket } from "../net/stragglers.js";
import type { PortQueue } from "../net/tap-queue.js";
import type { Body, MigrationParameters, VmReport } from "../proto/messages.js";
import { backoff, type Backoff } from "./backoff.js";
import { retireDisks } from "./disk-files.js";
import type { Guests } from "./guests.js";
import { NO_HOLD, type Hold } from "./hold.js";
import { localDisks } from "./hypervisor/disks.js";
import type { Guest, StreamOptions } from "./hypervisor/driver.js";
import type { PassedOn } from "./migration/left-behind.js";
import { openSourceRelay } from "./migration/relay-source.js";
import { SourceRun } from "./migration/run-source.js";
import { beginSource, recoverSource } from "./migration/source.js";
import { ended, wentByPostcopy } from "./migration/source-phases.js";
import type { SourcePlan, SourceStep } from "./migration/source-shapes.js";
import type { Urgency } from "./migration/urgency.js";
import type { Outbox } from "./outbox.js";
import type { DiskFile, MigrationFile } from "./record-shapes.js";
import type { Records } from "./records.js";
import type { VmNetwork } from "./vm-network.js";

/** Between attempts at removing what a guest that has moved away left here. */
const DISMANTLE_AGAIN: Backoff = { firstMs: 500, maxMs: 60_000, factor: 2 };

export interface MigrationContext {
  readonly runDir: string;
  readonly guests: Guests;
  readonly network: VmNetwork;
  readonly records: Records<MigrationFile>;
  readonly outbox: Outbox;
  readonly say: (body: Body) => void;
  readonly clock: Clock;
  readonly log: Logger;
  readonly hold?: Hold;
  readonly urgency: Urgency;
  readonly stragglers: Pick<StragglerSocket, "trySend">;
  /** Disks of a guest that has moved away are set aside instead of removed. */
  readonly keepMovedDisks: boolean;
}

/** A guest that leaves this host: the source machine with this host's disk, network and home agent around it. */
export class Departure {
  readonly side = "source";
  readonly #context: MigrationContext;
  readonly #settled: () => void;
  readonly #run: SourceRun;
  #file: MigrationFile;
  /** Given with Resume: the guest runs on under it. */
  #epochAfter: Epoch | null = null;
  readonly #guest: Guest | null;
  #grace: Timer | null = null;
  readonly #pauses = backoff(DISMANTLE_AGAIN, Math.random);
  #closed = false;
  #disksRetired: Promise<void> | null = null;

  /** `settled`: the home agent has heard the last word, or everything has been removed; the record may go. */
  constructor(context: MigrationContext, file: MigrationFile, first: SourceStep, guest: Guest | null, body: Body<"migrate"> | null, settled: () => void) {
    this.#context = context;
    this.#file = file;
    this.#settled = settled;
    this.#guest = guest;
    const { network, records, clock, log, runDir, say, urgency, hold = NO_HOLD } = context;
    const { vm } = file.spec;
    this.#run = new SourceRun(first, {
      clock, log, guest, say, hold, urgency,
      stream: streamOptions(body?.parameters ?? null, first.state.plan.lead),
      openRelay: async () => {
        if (body === null) throw new CareofError("relay-failed", "the source agent was restarted");
        return openSourceRelay({ migration: file.migration, address: body.relayAddress, port: body.relayPort, secret: body.secret, ...relaySockets(runDir, vm), clear: body.parameters.clear, clock });
      },
      record: (state, machine) => {
        const next = { ...this.#file, state, stopAt: machine.stopAt, markerAt: machine.markerAt, bytes: machine.bytes, postcopy: wentByPostcopy(machine) };
        records.write(vm, next);
        this.#file = next;
      },
      stamps: () => network.stamps(vm),
      queue: () => this.#queue(),
      sendUpMarker: (token) => { network.sendUpMarker(vm, token); },
      clearStamps: () => { network.clearStamps(vm); },
      forward: () => { network.forward(vm, file.peerLocator.address); },
      passOn: (packet) => this.#passOn(packet),
      deliver: () => { network.deliver(vm); },
      report: (event) => { this.#report(event); },
      destroyed: async () => {
        this.#bury();
        await this.#retireDisks();
      },
    });
  }

  #queue(): PortQueue | null {
    const { network, log } = this.#context;
    const { migration, spec } = this.#file;
    try {
      return this.#guest === null ? null : network.queue(spec.vm, this.#guest.identity.pid);
    } catch (thrown) {
      log.warn({ migration, vm: spec.vm, reason: toCareofError(thrown).code, detail: toCareofError(thrown).message }, "cannot see whether the guest has taken what was in front of its port");
      return null;
    }
  }

  /** A broadcast, say, is not for anybody elsewhere. */
  #passOn(packet: Buffer): PassedOn {
    const { peerLocator: { address: to }, spec } = this.#file;
    const destination = addressFromBytes(packet.subarray(16, 20));
    if (!isV4(to) || !spec.homeAddresses.includes(destination)) return "not-meant";
    return this.#context.stragglers.trySend(packet, to) ? "sent" : "full";
  }

  static begin(context: MigrationContext, file: MigrationFile, guest: Guest, body: Body<"migrate">, lead: boolean, settled: () => void): Departure {
    const { holdMaxMs, timeoutMs, downtimeLimitMs, onTimeout, forceMs, postcopy } = body.parameters;
    const disks = localDisks(file.spec.qemu).length > 0;
    const first = beginSource({ migration: body.migration, vm: body.vm, epoch: body.epoch, lead, holdMaxMs, timeoutMs, downtimeLimitMs, onTimeout, forceMs, disks, postcopy });
    return new Departure(context, file, first, guest, body, settled);
  }

  static recover(context: MigrationContext, file: MigrationFile, guest: Guest | null, settled: () => void): Departure {
    const never = millis(0);
    const plan: SourcePlan = {
      migration: file.migration, vm: file.spec.vm, epoch: file.epoch, lead: false, holdMaxMs: never, timeoutMs: never, downtimeLimitMs: never, onTimeout: "abort", forceMs: never,
      disks: localDisks(file.spec.qemu).length > 0, postcopy: false,
    };
    const state = file.state === "released" || file.state === "resumed" ? file.state : "active";
    // The relay's, that died with the agent's earlier life.
    for (const path of Object.values(relaySockets(context.runDir, file.spec.vm))) rmSync(path, { force: true });
    const first = recoverSource(plan, state, { stopAt: file.stopAt, markerAt: file.markerAt, bytes: file.bytes }, file.postcopy);
    if (state === "released") {
      context.network.forward(file.spec.vm, file.peerLocator.address);
      context.log.warn({ migration: file.migration, vm: file.spec.vm }, "the guest was released before the restart: it stands until the home agent decides");
    }
    return new Departure(context, file, first, guest, null, settled);
  }

  get file(): MigrationFile {
    return this.#file;
  }

  /** How the guest looks from outside. */
  get reported(): VmReport["state"] {
    switch (this.#run.state.phase) {
      case "releasing": case "serving": case "released": case "reclaiming": return "released";
      case "stopped": return "paused";
      case "revoked": case "gone": return "absent";
      default: return "runs";
    }
  }

  /** A guest's end is the machine's matter until that has ended. */
  get ownsDeath(): boolean {
    return this.#run.state.phase !== "runs";
  }

  get finished(): boolean {
    return ended(this.#run.state);
  }

  lead(token: number): Reason {
    return this.#run.take({ kind: "lead", token });
  }

  abort(reason: Reason): Reason {
    return this.#run.take({ kind: "abort", reason });
  }

  resume(epoch: Epoch): Reason {
    const decision = this.#run.take({ kind: "resume" });
    if (decision === "accepted") this.#epochAfter = epoch;
    return decision;
  }

  /** The guest has gone for good: what is still here of it is only in the way of one that comes back. */
  get over(): boolean {
    return this.#run.state.phase === "released" || this.#run.state.phase === "revoked";
  }

  /** The guest is destroyed at once, its network after `grace`, in which stragglers go to the new host. */
  revoke(body: Body<"revoke">): Reason {
    if (body.epoch < this.#file.epoch) return "stale-epoch";
    const decision = this.#run.take({ kind: "revoke" });
    if (decision !== "accepted") return decision;
    const { network } = this.#context;
    if (body.forwardTo !== null) network.forward(body.vm, body.forwardTo.address);
    this.#dismantleAfter(body.graceMs);
    return decision;
  }

  /**
   * Everything of this migration's guest goes now; nothing of one that was started here since. `comesBack`: it moves here again, and its port may stay for it.
   * @throws CareofError what does not go; it is tried again until it does
   */
  async dismantle(comesBack = false): Promise<void> {
    this.#grace?.cancel();
    this.#run.take({ kind: "revoke" });
    if (this.#run.state.phase !== "revoked") return;
    try {
      await this.#guest?.destroy();
      this.#bury();
      await this.#retireDisks();
      await this.#detach(comesBack);
    } catch (thrown) {
      // A hypervisor that the kernel does not let go of, say: nobody asks for this again, since the home agent was told that it is done.
      if (!this.#closed) this.#dismantleAfter(this.#pauses.next().value);
      throw thrown;
    }
    this.#settled();
  }

  #dismantleAfter(delay: Millis): void {
    this.#grace?.cancel();
    this.#grace = this.#context.clock.after("revoked", delay, () => {
      this.dismantle().catch((thrown: unknown) => {
        const { migration, spec: { vm } } = this.#file;
        this.#context.log.error({ vm, migration, reason: toCareofError(thrown).code, err: thrown }, "what a VM left here could not be removed");
      });
    });
  }

  close(): void {
    this.#closed = true;
    this.#grace?.cancel();
    this.#run.close();
  }

  /** The guest is a resident: it is let go of with the others. */
  abandon(): Promise<void> {
    this.close();
    return Promise.resolve();
  }

  /** Whether the VM's place on this host is still this migration's, and not that of a guest that was started here since. */
  get #mine(): boolean {
    const resident = this.#context.guests.get(this.#file.spec.vm);
    return resident === undefined || resident.guest === this.#guest;
  }

  #bury(): void {
    if (this.#mine) this.#context.guests.bury(this.#file.spec, this.#file.epoch);
  }

  /**
   * The home agent has said that the binding of this host is over: the guest runs elsewhere, with the disks that it took along. Once: what has these names later may be the disks of the guest that came
   * back. Never rejects.
   */
  #retireDisks(): Promise<void> {
    if (this.#disksRetired === null && !this.#mine) return Promise.resolve();
    this.#disksRetired ??= this.#retire();
    return this.#disksRetired;
  }

  async #retire(): Promise<void> {
    const { keepMovedDisks, log } = this.#context;
    const { spec, epoch, movedDisks } = this.#file;
    try {
      const others = await retireDisks(movedDisks, epoch, keepMovedDisks);
      if (others.length > 0) log.error({ vm: spec.vm, files: others, reason: "disk-failed" }, "disks of a guest that has moved away are other files by now: they are left alone");
    } catch (thrown) {
      log.error({ vm: spec.vm, reason: "disk-failed", err: toCareofError(thrown) }, "a disk of a guest that has moved away could not be removed");
    }
  }

  async #detach(comesBack = false): Promise<void> {
    const { network } = this.#context;
    const { vm } = this.#file.spec;
    if (this.#mine) await (comesBack ? network.makeRoom(vm) : network.detach(vm));
  }

  #report(event: Body<"released"> | Body<"sourceEnded">): void {
    const { outbox } = this.#context;
    const topic = this.#file.migration;
    if (event.kind === "released") outbox.put({ key: `${topic}/released`, topic, body: event, answered: () => undefined });
    else outbox.put({ key: `${topic}/ended`, topic, body: event, answered: (decision) => { this.#endAnswered(event, decision.epoch); } });
  }

  #endAnswered(event: Body<"sourceEnded">, epoch: Epoch): void {
    const { guests, log } = this.#context;
    const { spec } = this.#file;
    if (event.result === "source-gone") {
      this.#bury();
      this.#detach().catch((thrown: unknown) => { log.error({ vm: spec.vm, err: thrown }, "what a VM left here could not be removed"); });
    } else {
      guests.rebase(spec.vm, Math.max(epoch, this.#epochAfter ?? 0) as Epoch);
    }
    this.#settled();
  }
}

/** `null`: after a restart, when nothing is sent any more. */
function streamOptions(wishes: MigrationParameters | null, lead: boolean): Omit<StreamOptions, "socket"> {
  const { maxBandwidth = 0, downtimeLimitMs = millis(0), autoConverge = false, channels = 1, postcopy = false } = wishes ?? {};
  return { lead, maxBandwidth, downtimeLimitMs, autoConverge, channels, postcopy };
}

function relaySockets(runDir: string, vm: VmId): { readonly socket: string; readonly diskSocket: string } {
  return { socket: join(runDir, `out-${vm}.sock`), diskSocket: join(runDir, `disks-${vm}.sock`) };
}

/** What `Migrate` says, as a record. */
export function departureFile(body: Body<"migrate">, spec: MigrationFile["spec"], guest: Guest, movedDisks: readonly DiskFile[]): MigrationFile {
  const unknown: Millis | null = null;
  return {
    migration: body.migration, side: "source", state: "active", epoch: body.epoch, peer: body.target, peerLocator: body.targetLocator, spec, identity: guest.identity,
    stopAt: unknown, markerAt: unknown, bytes: 0, madeDisks: [], movedDisks, fetching: false, postcopy: false,
  };
}
