import type { Ipv4 } from "../model/address.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { hostId, parseMigrationId, type Epoch, type HostId, type VmId } from "../model/ids.js";
import type { Reason } from "../model/reasons.js";
import type { Body, BindingUpdate, MigrationRecord, VmReport, VmSpec } from "../proto/messages.js";
import { Arrival, type ArrivalContext } from "./arrival.js";
import { Departure, departureFile } from "./departure.js";
import { checkDisks, describeDisks, diskFiles } from "./disk-files.js";
import { guestSpec } from "./guests.js";
import { localDisks } from "./hypervisor/disks.js";
import type { Guest, GuestIdentity } from "./hypervisor/driver.js";

export interface MigrationsOptions extends ArrivalContext {
  readonly host: HostId;
  readonly careOf: Ipv4;
}

/** The migrations of this host, at most one per VM, from the home agent's first word until it has heard the last one. */
export class Migrations {
  readonly #options: MigrationsOptions;
  readonly #open = new Map<VmId, Departure | Arrival>();
  readonly #adopted: GuestIdentity[] = [];
  /** Migrations up to these epochs were aborted before this host had heard of them. A restart needs no record: what was not begun by then never is. */
  readonly #forbidden = new Map<VmId, Epoch>();

  constructor(options: MigrationsOptions) {
    this.#options = options;
  }

  has(vm: VmId): boolean {
    return this.#open.has(vm);
  }

  records(): readonly MigrationRecord[] {
    return [...this.#open.values()].map(({ file }) => ({ migration: file.migration, side: file.side, state: file.state, peer: hostId(file.peer) }));
  }

  /** Guests that only a migration's record speaks for. */
  adopted(): readonly GuestIdentity[] {
    return this.#adopted;
  }

  /** What to report of a VM that is moving; `null` for one that is not. */
  reportState(vm: VmId): VmReport["state"] | null {
    return this.#open.get(vm)?.reported ?? null;
  }

  /** A guest's end in the middle of a migration is that migration's matter. */
  ownsDeathOf(vm: VmId): boolean {
    return this.#open.get(vm)?.ownsDeath ?? false;
  }

  /** The records of an earlier life, after the guests' own. The machines begin when what is returned is called. */
  async recover(): Promise<() => void> {
    const { records, guests, network } = this.#options;
    const begin: (() => void)[] = [];
    for (const file of records.all().values()) {
      const { vm } = file.spec;
      let guest: Guest | null = guests.get(vm)?.guest ?? null;
      // There is one control connection per guest: whom the VM's own record has adopted already is not asked again.
      if (guest === null && file.side === "target" && file.identity !== null && file.state !== "never-ran") {
        guest = await this.#adopt(vm, file.identity, file.fetching);
        if (guest !== null) {
          this.#adopted.push(guest.identity);
          network.expect(file.spec);
        }
      }
      const found = guest;
      begin.push(() => {
        const one: Departure | Arrival = file.side === "source"
          ? Departure.recover(this.#options, file, found, () => { this.#settled(vm, one); })
          : Arrival.recover(this.#options, file, found, () => { this.#settled(vm, one); });
        this.#open.set(vm, one);
      });
    }
    return () => { for (const one of begin) one(); };
  }

  /** A guest that waits for memory which died with this agent's relay may hold its whole hypervisor up: what does not answer then is of no use any more, and goes with what nobody speaks for. */
  async #adopt(vm: VmId, identity: GuestIdentity, fetching: boolean): Promise<Guest | null> {
    try {
      return await this.#options.guests.adopt(vm, identity);
    } catch (thrown) {
      if (!fetching) throw thrown;
      this.#options.log.error({ vm, pid: identity.pid, reason: "postcopy-broken", err: thrown }, "a guest whose memory was still at its source does not answer: it is ended");
      return null;
    }
  }

  /** @throws CareofError with the reason of the refusal; nothing has changed then */
  async prepare(body: Body<"prepare">): Promise<Body<"prepared">> {
    const { driver, careOf } = this.#options;
    const { vm } = body.spec;
    const { canLead } = await driver.facts();
    guestSpec(body.spec, body.epoch, null);
    await this.#clearWay(vm, body.epoch, true);
    const arrival = await this.#arrive(body, canLead);
    const relayPort = await arrival.prepare();
    return { kind: "prepared", decision: { reason: "accepted", epoch: body.epoch, detail: "" }, relayAddress: careOf, relayPort, canLead };
  }

  /** @throws CareofError with the reason of the refusal; a port that was kept for the guest goes then too */
  async #arrive(body: Body<"prepare">, canLead: boolean): Promise<Arrival> {
    const { guests, network, log } = this.#options;
    const { vm } = body.spec;
    try {
      if (guests.get(vm) !== undefined) throw new CareofError("already-here", `${vm} is here already`);
      if (body.epoch <= guests.lastEpoch(vm)) throw new CareofError("stale-epoch", `epoch ${String(body.epoch)} of ${vm} is over here`);
      checkDisks(body.spec, body.disks, [...this.#open.values()].flatMap((each) => (each.side === "target" ? each.coming : [])));
      const arrival = Arrival.begin(this.#options, body, canLead, () => { this.#settled(vm, arrival); });
      this.#open.set(vm, arrival);
      return arrival;
    } catch (thrown) {
      await network.tidy().catch((cause: unknown) => { log.warn({ vm, reason: toCareofError(cause).code, err: cause }, "a port that nothing comes to could not be removed: it is tried again"); });
      throw thrown;
    }
  }

  /** The disks that would move with the guest. @throws CareofError */
  async describeDisks(vm: VmId): Promise<Body<"disksDescribed">> {
    const resident = this.#options.guests.get(vm);
    if (resident?.state !== "runs" || resident.guest === null) throw new CareofError("not-running", `${vm} does not run here`);
    requireReachable(resident.guest);
    const sizes = await resident.guest.disks.sizes();
    diskFiles(resident.spec, sizes);
    return { kind: "disksDescribed", disks: describeDisks(resident.spec, sizes) };
  }

  /** @throws CareofError with the reason of the refusal; nothing has changed then */
  async migrate(body: Body<"migrate">): Promise<void> {
    const { driver } = this.#options;
    const { vm } = body;
    if (this.#open.get(vm)?.file.migration === body.migration) return;
    const { canLead } = await driver.facts();
    await this.#clearWay(vm, body.epoch);
    const resident = this.#leaver(body);
    const moved = localDisks(resident.spec.qemu).length === 0 ? [] : diskFiles(resident.spec, await resident.guest.disks.sizes());
    // The hypervisor was asked, and meanwhile the home agent may have been told that this move never began.
    if (this.#leaver(body).guest !== resident.guest) throw new CareofError("not-running", `${vm} does not run here any more`);
    const file = departureFile(body, resident.spec, resident.guest, moved);
    const departure = Departure.begin(this.#options, file, resident.guest, body, body.parameters.lead && canLead, () => { this.#settled(vm, departure); });
    this.#open.set(vm, departure);
  }

  /** The guest that this move may take away at this moment. @throws CareofError with the reason of the refusal */
  #leaver({ vm, migration, epoch }: Body<"migrate">): { readonly spec: VmSpec; readonly guest: Guest } {
    if (this.#open.has(vm)) throw new CareofError("already-moving", `${vm} is moving`);
    if (epoch <= (this.#forbidden.get(vm) ?? 0)) throw new CareofError("stale-epoch", `${migration} was aborted before it began`);
    const resident = this.#options.guests.get(vm);
    if (resident?.state !== "runs" || resident.guest === null) throw new CareofError("not-running", `${vm} does not run here`);
    requireReachable(resident.guest);
    if (epoch <= resident.epoch) throw new CareofError("stale-epoch", `${vm} runs here under epoch ${String(resident.epoch)}`);
    return { spec: resident.spec, guest: resident.guest };
  }

  lead(body: Body<"lead">): Reason {
    const { vm } = parseMigrationId(body.migration);
    const moving = this.#open.get(vm);
    return moving?.side === "source" && moving.file.migration === body.migration ? moving.lead(body.token) : "not-moving";
  }

  uplinkSeen(body: Body<"uplinkSeen">): void {
    const { vm } = parseMigrationId(body.migration);
    const moving = this.#open.get(vm);
    if (moving?.side === "target" && moving.file.migration === body.migration) moving.uplinkSeen(body.token);
  }

  abort(body: Body<"abort">): Reason {
    const moving = this.#open.get(body.vm);
    return moving?.file.migration === body.migration ? moving.abort(body.reason) : this.#abortUnknown(body);
  }

  resume(body: Body<"resume">): Reason {
    const moving = this.#open.get(body.vm);
    return moving?.side === "source" && moving.file.migration === body.migration ? moving.resume(body.epoch) : "not-moving";
  }

  /** The binding of this host is over. A guest that runs here is never ended by this. */
  revoke(body: Body<"revoke">): Reason {
    const moving = this.#open.get(body.vm);
    if (moving?.side === "source") return moving.revoke(body);
    return this.#options.guests.get(body.vm) === undefined ? "accepted" : "not-permitted";
  }

  /** The home agent's view: bound to this host under the migration's epoch or a later one means that the source released it. */
  binding(update: BindingUpdate): void {
    const moving = this.#open.get(update.vm);
    const bound = update.state === "bound" || update.state === "stale";
    if (moving?.side === "target" && bound && update.owner === this.#options.host && update.epoch >= moving.file.epoch) moving.grant(update.epoch);
  }

  /** The agent ends; everything is left for its next life. */
  async close(): Promise<void> {
    await Promise.all([...this.#open.values()].map((one) => one.abandon()));
  }

  /** Nothing is known of it here, and now never will be: a guest that runs here was never touched, and one that does not never ran. */
  #abortUnknown(body: Body<"abort">): Reason {
    const { guests, outbox } = this.#options;
    const { migration, vm, reason } = body;
    const { epoch } = parseMigrationId(migration);
    const resident = guests.get(vm);
    if (resident !== undefined) {
      if (resident.epoch >= epoch) return "not-permitted";
      // The home agent takes the answer for "never began": its Migrate may be waiting here, and must not begin any more.
      this.#forbidden.set(vm, epoch);
      return "not-moving";
    }
    guests.forbid(vm, epoch);
    const event: Body<"targetEnded"> = { kind: "targetEnded", migration, result: "target-never-ran", reason, detail: "unknown here", undelivered: null };
    outbox.put({ key: `${migration}/ended`, topic: migration, body: event, answered: () => undefined });
    return "accepted";
  }

  /** A newer epoch proves that what came before it is settled at the home agent, although its last word has not come here. */
  async #clearWay(vm: VmId, epoch: Epoch, comesBack = false): Promise<void> {
    const moving = this.#open.get(vm);
    if (moving === undefined) return;
    const { file } = moving;
    if (epoch <= file.epoch) throw new CareofError("already-moving", `${vm} is moving: ${file.migration}`);
    if (moving.side === "source" && moving.over) await moving.dismantle(comesBack);
    else if (moving.finished) this.#settled(vm, moving);
    else throw new CareofError("already-moving", `${vm} is moving: ${file.migration}`);
  }

  #settled(vm: VmId, moving: Departure | Arrival): void {
    moving.close();
    if (this.#open.get(vm) !== moving) return;
    // A record that stays is one that is still open: it would be taken up by the agent's next life.
    this.#options.records.remove(vm);
    this.#open.delete(vm);
    this.#options.outbox.drop(moving.file.migration);
  }
}

function requireReachable({ reachable, vm, identity }: Guest): void {
  if (!reachable) throw new CareofError("guest-unreachable", `${vm} runs in process ${String(identity.pid)}, and its monitor ${identity.control} does not answer: it cannot move until it does`, { retryable: true });
}
