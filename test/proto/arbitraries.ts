import fc, { type Arbitrary } from "fast-check";
import { addressFromBytes, macFromBytes, type IpAddress, type Mac } from "../../model/address.js";
import { epoch, hostId, migrationId, millis, vmId, type Epoch, type HostId, type MigrationId, type Millis, type VmId } from "../../model/ids.js";
import type { Locator } from "../../model/locator.js";
import { REASONS, type Reason } from "../../model/reasons.js";
import type { BindingUpdate, Body, BodyByKind, Decision, Frame, Kind, MigrationParameters, MigrationRecord, QemuSpec, VmReport, VmSpec } from "../../proto/messages.js";

/** Plain objects, which are what decoding makes. */
function record<T extends object>(model: { [K in keyof T]: Arbitrary<T[K]> }): Arbitrary<T> {
  return fc.record<T>(model, { noNullPrototype: true });
}

const nameText = fc.stringMatching(/^[a-z0-9][a-z0-9._-]{0,62}$/);

export const vms: Arbitrary<VmId> = nameText.map(vmId);
export const hosts: Arbitrary<HostId> = nameText.map(hostId);
export const epochs: Arbitrary<Epoch> = fc.maxSafeNat().map(epoch);
export const migrations: Arbitrary<MigrationId> = fc.tuple(vms, fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER })).map(([vm, e]) => migrationId(vm, epoch(e)));
export const reasons: Arbitrary<Reason> = fc.constantFrom(...Object.keys(REASONS)).map((text) => text as Reason);
export const addresses: Arbitrary<IpAddress> = fc.oneof(fc.uint8Array({ minLength: 4, maxLength: 4 }), fc.uint8Array({ minLength: 16, maxLength: 16 })).map(addressFromBytes);
export const macs: Arbitrary<Mac> = fc.uint8Array({ minLength: 6, maxLength: 6 }).map((bytes) => {
  bytes[0] = (bytes[0] ?? 0) & 0xfe;
  return macFromBytes(bytes);
});

const uint32 = fc.nat({ max: 0xffff_ffff });
const ports = fc.nat({ max: 0xffff });
const counts = fc.maxSafeNat();
const text = fc.string({ unit: "binary", maxLength: 60 });
const amounts = fc.double({ min: 0, noNaN: true, noDefaultInfinity: true, maxExcluded: false }).map((value) => value + 0);
const stamps: Arbitrary<Millis> = amounts.map(millis);
const maybeStamp = fc.option(amounts.filter((value) => value > 0).map(millis));
const durations: Arbitrary<Millis> = uint32.map(millis);
const secrets = fc.uint8Array({ minLength: 32, maxLength: 32 });
const envelopes = fc.uint8Array({ minLength: 1, maxLength: 512 });

export const locators: Arbitrary<Locator> = record({ address: addresses, encapsulation: fc.constant("ip-in-ip" as const), port: ports, pathMtu: uint32 });
const decisions: Arbitrary<Decision> = record({ reason: reasons, epoch: epochs, detail: text });
const reports: Arbitrary<VmReport> = record({
  vm: vms,
  state: fc.constantFrom("absent", "runs", "paused", "incoming", "released"),
  basedOn: epochs,
  locator: fc.option(locators),
  evidence: fc.constantFrom("running", "stopped", "resync", "refresh", "guest-gone", "port-gone"),
  unreachable: fc.boolean(),
});
const diskFormats = fc.constantFrom("raw" as const, "qcow2" as const);
const paths = fc.string({ maxLength: 100 }).map((name) => `/${name.replaceAll("\0", "")}`);
const images = fc.array(record({ path: paths, format: diskFormats, virtualBytes: counts, allocatedBytes: counts }), { maxLength: 3 });
const qemuSpecs: Arbitrary<QemuSpec> = record({
  memoryBytes: counts, cpus: fc.integer({ min: 1, max: 4096 }), kernel: text, initrd: text, append: text,
  disks: fc.array(text, { maxLength: 3 }), extraArgs: fc.array(text, { maxLength: 3 }),
  diskOptions: fc.array(record({ path: text, shared: fc.boolean(), format: diskFormats }), { maxLength: 3 }),
});
const specs: Arbitrary<VmSpec> = record({
  vm: vms, homeAddresses: fc.array(addresses, { maxLength: 3 }), mac: macs, driver: fc.constantFrom("qemu", "external"), qemu: fc.option(qemuSpecs),
  externalPort: text, listsHost: fc.boolean(),
});
const bindings: Arbitrary<BindingUpdate> = record({
  vm: vms, epoch: epochs, state: fc.constantFrom("bound", "moving", "stale", "expired", "lost"), owner: fc.option(hosts), forwardTo: fc.option(locators),
  forwardMs: durations, spec: specs, peers: fc.array(record({ host: hosts, locator: locators }), { maxLength: 3 }),
});
const records: Arbitrary<MigrationRecord> = record({
  migration: migrations, side: fc.constantFrom("source", "target"),
  state: fc.constantFrom("active", "released", "resumed", "prepared", "continued", "never-ran"), peer: hosts,
});
const parameters: Arbitrary<MigrationParameters> = record({
  maxBandwidth: counts, downtimeLimitMs: durations, lead: fc.boolean(), holdMaxMs: durations, timeoutMs: durations,
  autoConverge: fc.boolean(), channels: fc.integer({ min: 1, max: 16 }), onTimeout: fc.constantFrom("abort", "force"), forceMs: durations, postcopy: fc.boolean(), clear: fc.boolean(),
});

/** Every kind of body, in every form that the types allow. */
export const bodiesByKind: { readonly [K in Kind]: Arbitrary<BodyByKind[K]> } = {
  decision: decisions,
  register: record({
    version: uint32, host: hosts, instance: text, restartCounter: counts, locators: fc.array(locators, { maxLength: 3 }),
    capabilities: record({
      ownsTap: fc.boolean(), ownsStream: fc.boolean(), canLead: fc.boolean(), canHoldTarget: fc.boolean(), qemuVersion: text,
      accelerator: fc.constantFrom("kvm", "tcg", "none"), dataPlane: text, memoryBytes: counts, localDisks: fc.boolean(), adopts: fc.boolean(), postcopy: fc.boolean(),
    }),
    software: text, vms: fc.array(reports, { maxLength: 3 }), migrations: fc.array(records, { maxLength: 3 }), known: fc.array(vms, { maxLength: 3 }),
  }),
  vmReport: reports,
  relayedHeartbeat: record({ envelope: envelopes, port: ports, address: addresses }),
  progress: record({
    migration: migrations, phase: fc.constantFrom("prepare", "setup", "disks", "copy", "lead", "stop", "released", "settle"), transferred: counts, remaining: counts,
    total: counts, passes: uint32, bytesPerSecond: amounts, dirtyBytesPerSecond: amounts, expectedDowntimeMs: maybeStamp, throttlePercent: fc.nat({ max: 100 }),
    diskCopied: counts, diskTotal: counts, diskBytesPerSecond: amounts,
  }),
  leadReady: record({ migration: migrations }),
  switchOver: record({
    migration: migrations, stopAt: stamps, markerAt: maybeStamp, hold: fc.constantFrom("led", "hold-expired", "no-gate", "stopped-early"),
  }),
  released: record({ migration: migrations, epoch: epochs, stopAt: stamps, markerAt: maybeStamp, bytes: counts, postcopy: fc.boolean(), forced: fc.boolean() }),
  running: record({
    migration: migrations, epoch: epochs, resumeAt: stamps, firstDeliverableAt: maybeStamp, uplinkOpenAt: maybeStamp, pauseMs: fc.option(stamps),
    pauseErrorMs: stamps, final: fc.boolean(), overflowed: counts, postcopy: fc.boolean(), resumedAtSource: maybeStamp,
  }),
  sourceEnded: record({ migration: migrations, result: fc.constantFrom("source-runs", "source-released", "source-gone"), reason: reasons, detail: text }),
  targetEnded: record({ migration: migrations, result: fc.constantFrom("target-runs", "target-never-ran", "target-died"), reason: reasons, detail: text, undelivered: fc.option(counts) }),
  registered: record({
    decision: decisions, restartCounter: counts, tunnelAddresses: fc.array(addresses, { maxLength: 3 }), keepAliveMs: durations, lifetimeMs: durations,
    bindings: fc.array(bindings, { maxLength: 3 }), heartbeatPort: ports,
  }),
  bindingUpdate: bindings,
  announcement: record({ vm: vms, basedOn: epochs, locator: locators, what: fc.constantFrom("rarp", "gratuitous-arp", "packet", "port", "arrive"), at: stamps }),
  leaving: record({ vm: vms, basedOn: epochs, to: fc.option(hosts) }),
  drained: record({ vm: vms, token: uint32, overflowed: uint32, expired: uint32 }),
  startVm: record({ spec: specs, epoch: epochs, adopt: fc.option(record({ control: paths, port: fc.stringMatching(/^[a-z][a-z0-9@-]{0,14}$/) })) }),
  stopVm: record({ vm: vms, epoch: epochs, force: fc.boolean(), patienceMs: durations, giveBack: fc.boolean() }),
  prepare: record({
    migration: migrations, spec: specs, epoch: epochs, source: hosts, sourceLocator: locators, secret: secrets, parameters, disks: images,
  }),
  describeDisks: record({ vm: vms }),
  disksDescribed: record({ disks: images }),
  migrate: record({
    migration: migrations, vm: vms, epoch: epochs, target: hosts, targetLocator: locators, relayAddress: text, relayPort: ports, secret: secrets, parameters,
  }),
  lead: record({ migration: migrations, token: uint32 }),
  abort: record({ migration: migrations, vm: vms, reason: reasons }),
  resume: record({ migration: migrations, vm: vms, epoch: epochs, evidence: fc.constantFrom("target-never-ran", "resolved-by-operator") }),
  revoke: record({ vm: vms, epoch: epochs, forwardTo: fc.option(locators), graceMs: durations }),
  uplinkSeen: record({ migration: migrations, token: uint32 }),
  heartbeatAnswer: record({ envelope: envelopes, port: ports, address: addresses, vm: vms }),
  prepared: record({ decision: decisions, relayAddress: text, relayPort: ports, canLead: fc.boolean() }),
  keepAlive: record({ at: stamps }),
};

export const kinds: readonly Kind[] = Object.keys(bodiesByKind).map((kind) => kind as Kind);

function bodiesOf<K extends Kind>(kind: K): Arbitrary<Body<K>> {
  return (bodiesByKind[kind] as Arbitrary<BodyByKind[K]>).map((body) => ({ kind, ...body }));
}

export function framesOf(kind: Kind): Arbitrary<Frame> {
  return record({ id: counts, inReplyTo: counts, body: bodiesOf(kind) });
}

export const frames: Arbitrary<Frame> = fc.oneof(...kinds.map(framesOf));
