import type { Locator } from "../../model/locator.js";
import { replyCode } from "../../model/reasons.js";
import {
  address, bytes, detail, duration, enumeration, epochField, flag, host, instant, integer, interfaceName, list, macAddress, message, migration, optional, orEmpty, port,
  reason, socketPath, text, uint32, uint53, vm, word, type Field,
} from "../fields.js";
import { careof } from "../gen/careof.js";
import type { Adopt, BindingUpdate, BodyByKind, Capabilities, Decision, DiskOptions, MigrationRecord, Peer, QemuSpec, VmReport, VmSpec } from "../messages.js";
import v1 = careof.v1;

/** A frame's size is the limit that matters; these only keep nonsense out. */
const MANY = 65536;

export const locator: Field<Locator, v1.Locator.$Properties> = message<Locator, v1.Locator.$Properties>({
  address,
  encapsulation: enumeration({ "ip-in-ip": v1.Encapsulation.IP_IN_IP }),
  port,
  pathMtu: uint32,
});

const decisionFields = message<Decision, v1.Decision.$Properties>({ reason, epoch: epochField, detail });

/** RFC 5944 §3.4's code goes along for other implementations; ours goes by the word alone. */
export const decision: Field<Decision, v1.Decision.$Properties> = {
  read: decisionFields.read,
  write: (value, at) => ({ ...decisionFields.write(value, at), code: replyCode(value.reason) }),
};

const capabilities = message<Capabilities, v1.Capabilities.$Properties>({
  ownsTap: flag,
  ownsStream: flag,
  canLead: flag,
  canHoldTarget: flag,
  qemuVersion: text(256),
  accelerator: word("kvm", "tcg", "none"),
  dataPlane: text(64),
  memoryBytes: uint53,
  localDisks: flag,
  adopts: flag,
  postcopy: flag,
});

export const vmReport: Field<VmReport, v1.VmReport.$Properties> = message<VmReport, v1.VmReport.$Properties>({
  vm,
  state: enumeration({
    absent: v1.VmState.ABSENT,
    runs: v1.VmState.RUNS,
    paused: v1.VmState.PAUSED,
    incoming: v1.VmState.INCOMING,
    released: v1.VmState.RELEASED,
  }),
  basedOn: epochField,
  locator: optional(locator),
  evidence: word("running", "stopped", "resync", "refresh", "guest-gone", "port-gone"),
  unreachable: flag,
});

const migrationRecord = message<MigrationRecord, v1.MigrationRecord.$Properties>({
  migration,
  side: word("source", "target"),
  state: word("active", "released", "resumed", "prepared", "continued", "never-ran"),
  peer: host,
});

export const register = message<BodyByKind["register"], v1.Register.$Properties>({
  version: uint32,
  host,
  instance: text(128),
  restartCounter: uint53,
  locators: list(locator, 64),
  capabilities,
  software: text(256),
  vms: list(vmReport, MANY),
  migrations: list(migrationRecord, MANY),
  known: list(vm, MANY),
});

export const diskFormat = word("raw", "qcow2");

const qemuSpec = message<QemuSpec, v1.QemuSpec.$Properties>({
  memoryBytes: uint53,
  cpus: integer(1, 4096),
  kernel: text(4096),
  initrd: text(4096),
  append: text(4096),
  disks: list(text(4096), 64),
  extraArgs: list(text(4096), 256),
  diskOptions: list(message<DiskOptions, v1.DiskOptions.$Properties>({ path: text(4096), shared: flag, format: diskFormat }), 64),
});

export const vmSpec = message<VmSpec, v1.VmSpec.$Properties>({
  vm,
  homeAddresses: list(address, 64),
  mac: macAddress,
  driver: word("qemu", "external"),
  qemu: optional(qemuSpec),
  externalPort: text(256),
  listsHost: flag,
});

const peer = message<Peer, v1.Peer.$Properties>({ host, locator });

export const bindingUpdate: Field<BindingUpdate, v1.BindingUpdate.$Properties> = message<BindingUpdate, v1.BindingUpdate.$Properties>({
  vm,
  epoch: epochField,
  state: word("bound", "moving", "stale", "expired", "lost"),
  owner: orEmpty(host),
  forwardTo: optional(locator),
  forwardMs: duration,
  spec: vmSpec,
  peers: list(peer, 256),
});

export const announcement = message<BodyByKind["announcement"], v1.Announcement.$Properties>({
  vm,
  basedOn: epochField,
  locator,
  what: word("rarp", "gratuitous-arp", "packet", "port", "arrive"),
  at: instant,
});
export const leaving = message<BodyByKind["leaving"], v1.Leaving.$Properties>({ vm, basedOn: epochField, to: orEmpty(host) });
export const drained = message<BodyByKind["drained"], v1.Drained.$Properties>({ vm, token: uint32, overflowed: uint32, expired: uint32 });

export const registered = message<BodyByKind["registered"], v1.Registered.$Properties>({
  decision,
  restartCounter: uint53,
  tunnelAddresses: list(address, 64),
  keepAliveMs: duration,
  lifetimeMs: duration,
  bindings: list(bindingUpdate, MANY),
  heartbeatPort: port,
});

const adopt = message<Adopt, v1.Adopt.$Properties>({ control: socketPath, port: interfaceName });
export const startVm = message<BodyByKind["startVm"], v1.StartVm.$Properties>({ spec: vmSpec, epoch: epochField, adopt: optional(adopt) });
export const stopVm = message<BodyByKind["stopVm"], v1.StopVm.$Properties>({ vm, epoch: epochField, force: flag, patienceMs: duration, giveBack: flag });
export const keepAlive = message<BodyByKind["keepAlive"], v1.KeepAlive.$Properties>({ at: instant });

/** Larger than any heartbeat (proto/heartbeat.ts), so that what is wrong with one is said there. */
const envelope = bytes(1, 512);

export const relayedHeartbeat = message<BodyByKind["relayedHeartbeat"], v1.RelayedHeartbeat.$Properties>({ envelope, port, address });
export const heartbeatAnswer = message<BodyByKind["heartbeatAnswer"], v1.HeartbeatAnswer.$Properties>({ envelope, port, address, vm });
