import { randomBytes } from "node:crypto";
import { mkdtempSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Guests, type Resident } from "../../agent/guests.js";
import type { GuestEvent, HypervisorDriver } from "../../agent/hypervisor/driver.js";
import { RelayListener } from "../../agent/migration/relay-listener.js";
import { Urgency } from "../../agent/migration/urgency.js";
import { Migrations } from "../../agent/migrations.js";
import { Outbox } from "../../agent/outbox.js";
import { migrationFile, vmRecord } from "../../agent/record-shapes.js";
import { Records } from "../../agent/records.js";
import { VmNetwork } from "../../agent/vm-network.js";
import { ipv4, mac, type Ipv4 } from "../../model/address.js";
import { SystemClock, type Clock } from "../../model/clock.js";
import { toCareofError } from "../../model/errors.js";
import { epoch, hostId, migrationId, millis, NEVER_BOUND, vmId, type HostId } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import { createLogger } from "../../model/log.js";
import { FakeWire } from "../../net/tunnel-fake-wire.js";
import { FakeHostTunnel } from "../../net/tunnel-fake.js";
import { FakeVmPorts } from "../../net/vm-port-fake.js";
import { decision } from "../../proto/channel.js";
import type { Body, Kind, MigrationParameters, VmSpec } from "../../proto/messages.js";

export const VM = vmId("web1");
export const HOME = ipv4("198.51.100.7");
const HOME_AGENT = ipv4("192.0.2.1");
const busy = new SystemClock({ keepAlive: true });
const idle = new SystemClock();
/** What an agent waits for keeps the test's process alive; what it does much later, or for ever, does not. */
export const clock: Clock = {
  now: () => busy.now(),
  monotonic: () => busy.monotonic(),
  after: (name, delay, run) => (name === "stragglers" || name === "console-bound" ? idle : busy).after(name, delay, run),
};
export const log = createLogger("test", process.env["CAREOF_TEST_LOG"] === undefined ? "silent" : "debug");

export function specOf(qemu: Partial<NonNullable<VmSpec["qemu"]>> = {}): VmSpec {
  return {
    vm: VM, homeAddresses: [HOME], mac: mac("02:00:00:00:00:07"), driver: "qemu", externalPort: "", listsHost: true,
    qemu: { memoryBytes: 128 * 1024 * 1024, cpus: 1, kernel: "", initrd: "", append: "", disks: [], extraArgs: [], diskOptions: [], ...qemu },
  };
}

export const PARAMETERS: MigrationParameters = { maxBandwidth: 0, downtimeLimitMs: millis(300), lead: false, holdMaxMs: millis(1000), timeoutMs: millis(20_000), autoConverge: false, channels: 1, onTimeout: "abort", forceMs: millis(20_000), postcopy: false, clear: false };

/** A host without a kernel: real relay, real records, a driver of the test's choice; the home agent's side is what the test does. */
export class Host {
  readonly name: HostId;
  readonly careOf: Ipv4;
  readonly directory: string;
  readonly driver: HypervisorDriver;
  readonly ports = new FakeVmPorts();
  /** Towards this host. */
  readonly wire = new FakeWire();
  readonly told: Body[] = [];
  readonly relays = new RelayListener({ address: "127.0.0.1", port: 0 });
  readonly deaths: string[] = [];
  readonly reached: string[] = [];
  readonly passedOn: { readonly packet: Buffer; readonly to: Ipv4 }[] = [];
  network!: VmNetwork;
  guests!: Guests;
  migrations!: Migrations;
  outbox!: Outbox;
  /** What the home agent's decisions say. */
  epochAtHome = NEVER_BOUND;
  /** While false nothing reaches the home agent. */
  reachable = true;
  onTold: (body: Body) => void = () => undefined;

  constructor(name: string, careOf: string, makeDriver: (directory: string) => HypervisorDriver) {
    this.name = hostId(name);
    this.careOf = ipv4(careOf);
    this.directory = mkdtempSync(join(tmpdir(), "co-"));
    this.driver = makeDriver(join(this.directory, "guests"));
  }

  /** The agent's (next) life. */
  async boot(): Promise<void> {
    this.network = new VmNetwork({ ports: this.ports, queueLength: 1000, guestMtu: 1480 });
    const asker = { ask: (body: Body) => this.#ask(body), registered: true };
    this.outbox = new Outbox(asker, clock, log);
    this.guests = new Guests({ driver: this.driver, network: this.network, records: new Records(join(this.directory, "vms"), vmRecord), clock, log, died: (resident, detail) => { this.#died(resident, detail); }, reached: ({ spec, guest }) => { this.reached.push(`${spec.vm} ${String(guest?.reachable)}`); } });
    this.migrations = new Migrations({
      host: this.name, careOf: this.careOf, relays: this.relays, runDir: this.directory, keepMovedDisks: false, driver: this.driver, guests: this.guests, network: this.network,
      records: new Records(join(this.directory, "migrations"), migrationFile), outbox: this.outbox, say: (body) => { this.#tell(body); }, clock, log, urgency: new Urgency(log),
      stragglers: { trySend: (packet, to) => this.passedOn.push({ packet, to }) > 0 },
    });
    const gone = await this.guests.recover();
    const begin = await this.migrations.recover();
    await this.driver.cleanUp([...this.guests.all().map(({ guest }) => guest?.identity), ...this.migrations.adopted()].filter((identity) => identity !== undefined));
    await this.network.apply();
    await this.network.useTunnel(new FakeHostTunnel({ careOf: this.careOf, homeAgents: [HOME_AGENT], clock, wire: this.wire }));
    begin();
    for (const resident of gone) if (!this.migrations.has(resident.spec.vm)) this.#died(resident, "gone");
  }

  /** From now on no record of a VM (of a migration) can be written or removed, as on a disk that fails; until `findRecords`. */
  loseRecords(of: "vms" | "migrations" = "vms"): void {
    renameSync(join(this.directory, of), join(this.directory, `lost-${of}`));
  }

  findRecords(of: "vms" | "migrations" = "vms"): void {
    renameSync(join(this.directory, `lost-${of}`), join(this.directory, of));
  }

  /** What the disk has of the VM. */
  recorded(): { readonly state: string; readonly epoch: number } | null {
    return new Records(join(this.directory, "vms"), vmRecord).all().get(VM) ?? null;
  }

  /** The agent's process dies; guests live on. */
  async crash(): Promise<void> {
    await this.migrations.close();
    await this.guests.release();
    this.outbox = new Outbox({ ask: () => Promise.reject(toCareofError("crashed")), registered: false }, clock, log);
  }

  async end(): Promise<void> {
    await this.migrations.close();
    await this.guests.release();
    await this.driver.cleanUp([]);
    rmSync(this.directory, { recursive: true, force: true });
  }

  /** The first thing told of that kind, now or later. */
  async heard<K extends Kind>(kind: K, wanted: (body: Body<K>) => boolean = () => true, limitMs = 60_000): Promise<Body<K>> {
    const end = clock.monotonic() + limitMs;
    for (;;) {
      for (const body of this.told) if (isKind(body, kind) && wanted(body)) return body;
      if (clock.monotonic() > end) throw new Error(`${this.name} did not say ${kind} but ${this.told.map((body) => body.kind).join()}`);
      await sleep(2);
    }
  }

  /** Packets of a correspondent's come by the tunnel. */
  comes(packets: number): void {
    for (let i = 0; i < packets; i++) this.wire.carry(this.careOf, { from: HOME_AGENT, source: ipv4("192.0.2.200"), destination: HOME, bytes: 100, marker: 0 });
  }

  async runs(): Promise<boolean> {
    const guest = this.guests.get(VM)?.guest;
    return guest !== null && guest !== undefined && (await guest.status()) === "running";
  }

  entries(): string {
    return this.network.tunnel?.entries().map((entry) => entry.role === "deliver" ? "deliver" : `forward ${entry.to}`).join() ?? "none";
  }

  async #ask(body: Body): Promise<Body<"decision">> {
    if (!this.reachable) throw toCareofError("unreachable");
    this.#tell(body);
    return Promise.resolve(decision("accepted", "", this.epochAtHome));
  }

  #tell(body: Body): void {
    this.told.push(body);
    this.onTold(body);
  }

  #died(resident: Resident, detail: string): void {
    const { spec, epoch: under } = resident;
    if (this.migrations.ownsDeathOf(spec.vm)) return;
    this.deaths.push(detail);
    this.guests.buryInTime(spec, under);
  }
}

/** A migration as the home agent orders it, up to the moment at which the copy has begun. */
export async function begin(a: Host, b: Host, number: number, parameters: Partial<MigrationParameters> = {}): Promise<Body<"prepare">> {
  const all = { ...PARAMETERS, ...parameters };
  const spec = a.guests.get(VM)?.spec;
  if (spec === undefined) throw new Error(`${VM} is not at ${a.name}`);
  const secret = randomBytes(32);
  const migration = migrationId(VM, epoch(number));
  const prepare: Body<"prepare"> = { kind: "prepare", migration, spec, epoch: epoch(number), source: a.name, sourceLocator: ipInIp(a.careOf), secret, parameters: all, disks: (await a.migrations.describeDisks(VM)).disks };
  const prepared = await b.migrations.prepare(prepare);
  await a.migrations.migrate({
    kind: "migrate", migration, vm: VM, epoch: epoch(number), target: b.name, targetLocator: ipInIp(b.careOf), relayAddress: "127.0.0.1", relayPort: prepared.relayPort, secret, parameters: all,
  });
  return prepare;
}

/** What the home agent does when both have said how it went. */
export async function settle(a: Host, b: Host, number: number): Promise<void> {
  await b.heard("running", ({ final, epoch: under }) => final && under === number);
  a.migrations.revoke({ kind: "revoke", vm: VM, epoch: epoch(number), forwardTo: ipInIp(b.careOf), graceMs: millis(50) });
  for (let tries = 0; a.migrations.has(VM) && tries < 12_000; tries++) await sleep(5);
}

export function recorder(): { readonly words: string[]; readonly take: (event: GuestEvent) => void } {
  const words: string[] = [];
  return { words, take: (event) => { words.push(event.kind === "stream" ? event.status : event.kind); } };
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => { setTimeout(resolve, ms); });
}

export async function until(what: string, condition: () => boolean | Promise<boolean>, limitMs = 60_000): Promise<void> {
  const end = clock.monotonic() + limitMs;
  while (!(await condition())) {
    if (clock.monotonic() > end) throw new Error(`${what}: not within ${String(limitMs)} ms`);
    await sleep(3);
  }
}

function isKind<K extends Kind>(body: Body, kind: K): body is Body & Body<K> {
  return body.kind === kind;
}
