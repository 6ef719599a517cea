import { z } from "zod";
import type { HostId, VmId } from "../../model/ids.js";
import type { DrainOperations, DrainSummary } from "./drain-operations.js";
import type { MoveWishes } from "../handover/move-plan.js";

/** Times are ISO 8601 in UTC with milliseconds; durations are milliseconds; what was not measured is `null`, never 0. */
const time = z.iso.datetime();
const measured = z.number().nullable();

export const vmView = z.object({
  vm: z.string(),
  homeAddresses: z.array(z.string()),
  host: z.string().nullable(),
  careOf: z.string().nullable(),
  state: z.enum(["bound", "moving", "stale", "expired", "lost"]),
  epoch: z.number(),
  since: time.nullable(),
  lastHeartbeat: time.nullable(),
  evidence: z.string(),
  /** `false`: its host cannot ask it (somebody else's QEMU, whose monitor does not answer), and it cannot be moved. Else not there. */
  reachable: z.boolean().optional(),
});
export type VmView = z.infer<typeof vmView>;

export const historyView = z.object({
  epoch: z.number(),
  host: z.string(),
  careOf: z.string().nullable(),
  from: time,
  until: time.nullable(),
  cause: z.string(),
  actor: z.string(),
  pauseMs: measured,
  gapDownMs: measured,
  gapUpMs: measured,
});
export type HistoryView = z.infer<typeof historyView>;

export const hostView = z.object({
  name: z.string(),
  careOf: z.array(z.string()),
  state: z.enum(["connected", "gone"]),
  since: time.nullable(),
  /** It takes no VMs. */
  draining: z.boolean(),
  capabilities: z.object({
    ownsTap: z.boolean(), ownsStream: z.boolean(), canLead: z.boolean(), canHoldTarget: z.boolean(),
    qemuVersion: z.string(), accelerator: z.enum(["kvm", "tcg", "none"]), dataPlane: z.string(), memoryBytes: z.number(), localDisks: z.boolean(), adopts: z.boolean(), postcopy: z.boolean(),
  }).nullable(),
  software: z.string().nullable(),
  vms: z.array(z.string()),
  /** Bytes that a drain would still place there; `null` while that is not known. Left out where hosts are told of in events. */
  memoryFreeBytes: z.number().nullable().optional(),
});
export type HostView = z.infer<typeof hostView>;

export const migrationView = z.object({
  migration: z.string(),
  vm: z.string(),
  from: z.string(),
  to: z.string(),
  phase: z.string(),
  /** `null` while it lasts. */
  result: z.enum(["completed", "failed", "cancelled", "lost"]).nullable(),
  reason: z.string().nullable(),
  startedAt: time,
  totalMs: measured,
  pauseMs: measured,
  gapDownMs: measured,
  gapUpMs: measured,
  bytes: measured,
  /** Packets that found the queue of the new port full while the VM stood, and are lost. */
  overflowed: measured,
  /** `led`: nothing was on its way to the old host when the VM stopped there. Else why that is not so: `no-gate`, `hold-expired`, `stopped-early`. */
  hold: z.enum(["led", "hold-expired", "no-gate", "stopped-early"]).nullable(),
  /** Packets that waited at the new port when the move was given up, and are lost. The target says so, as a rule after the end. */
  undelivered: measured,
  progress: z.object({
    transferred: z.number(), remaining: z.number(), total: z.number(), passes: z.number(), bytesPerSecond: z.number(), dirtyBytesPerSecond: z.number(),
    /** How long the guest would stand if it were stopped now. */
    expectedDowntimeMs: measured, throttlePercent: z.number(),
    diskCopied: z.number(), diskTotal: z.number(), diskBytesPerSecond: z.number(),
  }).nullable(),
  /** For people: while it lasts, why it does not converge and what would help; at the end, why it failed, or that it was forced. */
  detail: z.string().nullable(),
});
export type MigrationView = z.infer<typeof migrationView>;

export const givenBackView = z.object({
  vm: z.string(),
  host: z.string().nullable(),
  /** Where the guest runs on: process, monitor and port. */
  detail: z.string(),
});
export type GivenBackView = z.infer<typeof givenBackView>;

export const reloadView = z.object({
  hosts: z.number(),
  vms: z.number(),
  /** Keys of the file whose change takes a restart. */
  needRestart: z.array(z.string()),
  /** VMs that run, and keys of theirs whose change counts from their next start. */
  nextStart: z.array(z.object({ vm: z.string(), keys: z.array(z.string()) })),
});
export type ReloadView = z.infer<typeof reloadView>;

export const alarmView = z.object({ alarm: z.string(), vm: z.string(), hosts: z.array(z.string()), detail: z.string(), at: time });
export type AlarmView = z.infer<typeof alarmView>;

export type ApiEvent =
  | { readonly event: "vm"; readonly data: VmView }
  | { readonly event: "host"; readonly data: HostView }
  | { readonly event: "migration"; readonly data: MigrationView }
  | { readonly event: "drain"; readonly data: DrainSummary }
  | { readonly event: "alarm"; readonly data: AlarmView };

/**
 * What the API may ask of the home agent. Every refusal is a CareofError whose code is the reason (`unknown-vm`, `already-moving`, …) and has changed nothing.
 * Reads are answered from memory.
 */
export interface Operations extends DrainOperations {
  vms(): readonly VmView[];
  /** @throws CareofError `unknown-vm` */
  vm(vm: VmId): VmView;
  /** Newest first. @throws CareofError `unknown-vm` */
  history(vm: VmId): readonly HistoryView[];
  hosts(): readonly HostView[];
  /** Those under way and the latest that ended, newest first. */
  migrations(): readonly MigrationView[];
  /** @throws CareofError `unknown-migration` */
  migration(id: string): MigrationView;
  /** Resolves when the move is on disk and has begun. */
  migrate(vm: VmId, host: HostId, actor: string, wishes?: MoveWishes): Promise<MigrationView>;
  /** Resolves when that migration has a result. @throws CareofError `unknown-migration` */
  migrationEnd(id: string): Promise<MigrationView>;
  /** Resolves when the wish was taken; how it ends is the migration's result. @throws CareofError `not-permitted` when it is too late */
  cancel(id: string): Promise<MigrationView>;
  start(vm: VmId, host: HostId, actor: string): Promise<VmView>;
  stop(vm: VmId, options: { readonly force: boolean }, actor: string): Promise<VmView>;
  /** As `start`, of a guest that runs already in a QEMU that somebody else has started. @throws CareofError `not-permitted` unless the configuration says where */
  adopt(vm: VmId, host: HostId, actor: string): Promise<VmView>;
  /** The guest runs on, and is not careof's any more. */
  giveBack(vm: VmId): Promise<GivenBackView>;
  /** A person decides where a lost VM is; `force`: also against his earlier word, by which the other host may run it. */
  resolve(vm: VmId, host: HostId, options: { readonly force: boolean }, actor: string): Promise<VmView>;
  /** Reads the configuration again. @throws CareofError `config-…`, having changed nothing */
  reload(): Promise<ReloadView>;
  /** Returns the function that ends the subscription. The listener must not throw. */
  subscribe(listener: (event: ApiEvent) => void): () => void;
  /** Why the home agent cannot take requests now, `null` when it can. */
  notReady(): string | null;
}
