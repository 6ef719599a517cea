import { rmSync } from "node:fs";
import { join } from "node:path";
import { CareofError, toCareofError } from "../model/errors.js";
import { millis, type Epoch } from "../model/ids.js";
import type { Reason } from "../model/reasons.js";
import type { Body, DiskImage, VmReport } from "../proto/messages.js";
import type { MigrationContext } from "./departure.js";
import { removeDisks, resolved } from "./disk-files.js";
import { guestSpec } from "./guests.js";
import { NO_HOLD } from "./hold.js";
import type { Guest, GuestIdentity, HypervisorDriver } from "./hypervisor/driver.js";
import { makeImage } from "./hypervisor/image.js";
import { fileAt } from "./hypervisor/open-files.js";
import type { RelayListener } from "./migration/relay-listener.js";
import { openTargetRelay } from "./migration/relay-target.js";
import type { TargetRelay } from "./migration/relay.js";
import { TargetRun } from "./migration/run-target.js";
import { beginTarget, recoverTarget, type TargetStep } from "./migration/target.js";
import type { MigrationFile } from "./record-shapes.js";

/** The old host's stragglers are let in for so long; it forwards for a shorter time. */
const STRAGGLERS_MS = millis(5000);

export interface ArrivalContext extends MigrationContext {
  readonly driver: HypervisorDriver;
  readonly relays: RelayListener;
}

interface Owned {
  readonly guest?: Guest;
  readonly relay?: TargetRelay;
}

/** A guest that comes to this host: the target machine with this host's disk, network and home agent around it. */
export class Arrival {
  readonly side = "target";
  readonly #context: ArrivalContext;
  readonly #settled: () => void;
  readonly #run: TargetRun;
  readonly #described: readonly DiskImage[];
  #file: MigrationFile;
  #relayPort = 0;
  #overflowedBefore = 0;
  /** `null`: prepared by an earlier life of the agent, or not that far. */
  #deliveredBefore: number | null = null;
  #undelivered: number | null = null;
  /** The home agent has the last word of this migration. */
  #heard = false;
  /** The guest is one of this host's, */
  #known = false;
  /** and its own record is on disk. */
  #saved = false;

  constructor(context: ArrivalContext, file: MigrationFile, first: TargetStep, guest: Guest | null, body: Body<"prepare"> | null, canLead: boolean, settled: () => void) {
    this.#context = context;
    this.#file = file;
    this.#settled = settled;
    this.#described = body?.disks ?? [];
    const { network, guests, clock, log, hold = NO_HOLD } = context;
    const { vm } = file.spec;
    this.#run = new TargetRun(first, {
      clock, log, hold,
      prepare: async (owned) => { if (body !== null) await this.#ready(body, canLead, owned); },
      record: (state, fetching) => { this.#write({ state, fetching }); },
      recordArrived: () => { this.#write({ fetching: false }); },
      stamps: () => network.stamps(vm),
      overflowed: () => network.overflowed(vm) - this.#overflowedBefore,
      undelivered: () => this.#undelivered,
      sendUpMarker: (token) => { network.sendUpMarker(vm, token); },
      report: (report) => { this.#report(report); },
      runs: (arrived) => {
        if (!this.#known && guests.get(vm) === undefined) guests.arrived(file.spec, file.epoch, arrived);
        this.#known = true;
        guests.save(vm, arrived);
        this.#saved = true;
        this.#mayEnd();
      },
      undo: async () => {
        this.#countUndelivered();
        // A file that cannot be removed keeps nothing of the network, and the other way round. The whole is tried again.
        try {
          await network.detach(vm);
        } finally {
          await this.#removeFiles();
        }
      },
    }, guest);
  }

  /** The record is on disk when this returns; nothing else has happened. */
  static begin(context: ArrivalContext, body: Body<"prepare">, canLead: boolean, settled: () => void): Arrival {
    const file: MigrationFile = {
      migration: body.migration, side: "target", state: "prepared", epoch: body.epoch, peer: body.source, peerLocator: body.sourceLocator, spec: body.spec,
      identity: null, stopAt: null, markerAt: null, bytes: 0, madeDisks: [], movedDisks: [], fetching: false, postcopy: false,
    };
    context.records.write(body.spec.vm, file);
    return new Arrival(context, file, beginTarget({ migration: body.migration, vm: body.spec.vm, epoch: body.epoch }), null, body, canLead, settled);
  }

  static recover(context: ArrivalContext, file: MigrationFile, guest: Guest | null, settled: () => void): Arrival {
    const state = file.state === "continued" || file.state === "never-ran" ? file.state : "prepared";
    return new Arrival(context, file, recoverTarget({ migration: file.migration, vm: file.spec.vm, epoch: file.epoch }, state, file.fetching), guest, null, false, settled);
  }

  get file(): MigrationFile {
    return this.#file;
  }

  get reported(): VmReport["state"] {
    switch (this.#run.state.phase) {
      case "fetching": case "breaking": case "running": return "runs";
      case "burying": case "buried": case "died": return "absent";
      default: return "incoming";
    }
  }

  /** Disks that are being copied to this host, or will be. */
  get coming(): readonly DiskImage[] {
    return this.reported === "incoming" ? this.#described : [];
  }

  get ownsDeath(): boolean {
    return this.#run.state.phase !== "running";
  }

  get finished(): boolean {
    const { phase } = this.#run.state;
    return (phase === "running" && this.#saved) || phase === "buried" || phase === "died";
  }

  /** Everything that has to be there before anything moves. Resolves with the relay's port. @throws CareofError why it could not be made; it is undone then */
  async prepare(): Promise<number> {
    await this.#run.prepare();
    const { phase, reason, detail } = this.#run.state;
    if (phase === "waiting") return this.#relayPort;
    throw new CareofError(reason === "accepted" ? "prepare-failed" : reason, detail);
  }

  abort(reason: Reason): Reason {
    return this.#run.take({ kind: "abort", reason });
  }

  /** The home agent passes the source's RELEASE on (or a person decided so). */
  grant(epoch: Epoch): void {
    this.#run.granted(epoch);
  }

  uplinkSeen(token: number): void {
    this.#run.uplinkSeen(token);
  }

  close(): void {
    this.#run.close();
  }

  abandon(): Promise<void> {
    return this.#run.abandon();
  }

  /** Of the hypervisor's NBD server. */
  get #diskSocket(): string {
    return join(this.#context.runDir, `nbd-${this.#file.spec.vm}.sock`);
  }

  get #socket(): string {
    return join(this.#context.runDir, `in-${this.#file.spec.vm}.sock`);
  }

  async #ready(body: Body<"prepare">, canLead: boolean, owned: (part: Owned) => void): Promise<void> {
    const { network, driver, clock, log, relays } = this.#context;
    const { vm } = body.spec;
    const port = await network.attach(body.spec, [body.sourceLocator.address]);
    network.clearStamps(vm);
    this.#overflowedBefore = network.overflowed(vm);
    this.#deliveredBefore = network.delivered(vm);
    if (body.disks.length > 0) await this.#makeDisks(body);
    const guest = await driver.incoming(guestSpec(body.spec, body.epoch, port));
    owned({ guest });
    this.#write({ identity: guest.identity });
    const socket = this.#socket;
    const diskSocket = this.#diskSocket;
    if (body.disks.length > 0) await guest.disks.exportTo(diskSocket);
    const { lead, downtimeLimitMs, channels, postcopy, clear } = body.parameters;
    await guest.receive({ socket, lead: lead && canLead, maxBandwidth: 0, downtimeLimitMs, autoConverge: false, channels, postcopy });
    network.prime(vm);
    const relay = await openTargetRelay({
      migration: body.migration, secret: body.secret, listener: relays, socket, channels: (channels > 1 ? channels : 0) + body.disks.length, ...(body.disks.length > 0 ? { diskSocket } : {}), clear, clock,
      onIntruder: (detail) => { log.warn({ migration: body.migration, reason: "bad-token", detail }, "somebody who is not the move's source came to the relay"); },
    });
    this.#relayPort = relay.port;
    owned({ relay });
  }

  /** I7: what waits in the port of a guest that never ran goes with the port, and is counted. A guest that stands has taken none of it. Before `detach`, which forgets the figures; never throws. */
  #countUndelivered(): void {
    const { network, log } = this.#context;
    const { migration, spec, state } = this.#file;
    if (this.#undelivered !== null || this.#deliveredBefore === null || state !== "prepared") return;
    try {
      this.#undelivered = Math.max(0, network.delivered(spec.vm) - this.#deliveredBefore);
    } catch (thrown) {
      log.warn({ migration, vm: spec.vm, reason: toCareofError(thrown).code, detail: toCareofError(thrown).message }, "it is not known what waited in the port");
      return;
    }
    if (this.#undelivered > 0) log.warn({ migration, vm: spec.vm, undelivered: this.#undelivered }, "packets that waited in the port are lost: the move was given up");
  }

  async #removeFiles(): Promise<void> {
    // A hypervisor that was killed while it listened leaves its socket.
    rmSync(this.#socket, { force: true });
    rmSync(this.#diskSocket, { force: true });
    // One that has run here has the only true ones.
    if (this.#file.state === "prepared") await removeDisks(this.#file.madeDisks);
  }

  /** What is about to be made is on disk before, so that it goes with a guest that never ran, whatever is killed. */
  async #makeDisks({ disks: described }: Body<"prepare">): Promise<void> {
    rmSync(this.#diskSocket, { force: true });
    // Where links on the way lead now: what is removed later is what was made.
    const disks = described.map((image) => ({ ...image, path: resolved(image.path) }));
    for (const [index, image] of disks.entries()) {
      if (fileAt(image.path) !== null) throw new CareofError("disk-exists", `${image.path} is there already`);
      this.#write({ madeDisks: disks.slice(0, index + 1).map(({ path }) => path) });
      try {
        await makeImage(image);
      } catch (thrown) {
        // It has left nothing behind, and what is there now is somebody else's.
        this.#write({ madeDisks: disks.slice(0, index).map(({ path }) => path) });
        throw thrown;
      }
    }
  }

  #write(change: { readonly state?: "continued" | "never-ran"; readonly identity?: GuestIdentity; readonly fetching?: boolean; readonly madeDisks?: readonly string[] }): void {
    const next = { ...this.#file, ...change };
    this.#context.records.write(this.#file.spec.vm, next);
    this.#file = next;
  }

  #report(body: Body<"running"> | Body<"targetEnded">): void {
    const topic = this.#file.migration;
    const key = body.kind === "targetEnded" ? "ended" : body.final ? "running-final" : "running";
    this.#context.outbox.put({ key: `${topic}/${key}`, topic, body, answered: () => { this.#answered(body); } });
  }

  #answered(body: Body<"running"> | Body<"targetEnded">): void {
    const { guests, network, clock } = this.#context;
    const { spec, epoch } = this.#file;
    if (body.kind === "targetEnded") {
      if (guests.get(spec.vm) === undefined) guests.bury(spec, epoch);
      this.#settled();
    } else if (body.final) {
      this.#heard = true;
      this.#mayEnd();
      clock.after("stragglers", STRAGGLERS_MS, () => {
        if (guests.get(spec.vm)?.epoch !== epoch) return;
        network.settle(spec.vm);
        this.#sayWhatItLeft(body.overflowed);
      });
    }
  }

  /** The move is over and its result told; but a guest that is slow to catch up with what has waited may have left its port's queue full since. */
  #sayWhatItLeft(told: number): void {
    const { spec: { vm }, migration } = this.#file;
    const packets = this.#context.network.overflowed(vm) - this.#overflowedBefore - told;
    if (packets > 0) this.#context.log.warn({ migration, vm, packets }, "packets for the guest found its port's queue full after it had moved (ports.queueLength): it takes less than it is sent");
  }

  /** Without the VM's own record the migration's still speaks for the guest. */
  #mayEnd(): void {
    if (this.#heard && this.#saved) this.#settled();
  }
}
