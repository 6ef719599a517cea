import { z } from "zod";

/**
 * What the home agent's HTTP API answers, checked before it is used. Fields that are not known here are dropped, so that an older `careof` understands a newer home
 * agent. Times are ISO 8601, durations are milliseconds, unmeasured is `null`.
 */
const time = z.iso.datetime({ offset: true });
const measured = z.number().nullable();

export const vmReply = z.object({
  vm: z.string(),
  homeAddresses: z.array(z.string()),
  host: z.string().nullable(),
  careOf: z.string().nullable(),
  state: z.enum(["bound", "moving", "stale", "expired", "lost"]),
  epoch: z.number(),
  since: time.nullable(),
  lastHeartbeat: time.nullable(),
  evidence: z.string().nullable(),
  /** False: its host cannot ask it. */
  reachable: z.boolean().optional(),
});
export type VmReply = z.infer<typeof vmReply>;

export const stayReply = z.object({
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
export type StayReply = z.infer<typeof stayReply>;

export const hostReply = z.object({
  name: z.string(),
  careOf: z.array(z.string()),
  state: z.enum(["connected", "gone"]),
  since: time.nullable(),
  /** It takes no VMs. */
  draining: z.boolean().default(false),
  capabilities: z.looseObject({ qemuVersion: z.string(), accelerator: z.string(), dataPlane: z.string(), memoryBytes: z.number(), canLead: z.boolean() }).nullable(),
  software: z.string().nullable().optional(),
  vms: z.array(z.string()),
  /** What a drain would still place there. */
  memoryFreeBytes: z.number().nullable().optional(),
});
export type HostReply = z.infer<typeof hostReply>;

export const migrationReply = z.object({
  migration: z.string(),
  vm: z.string(),
  from: z.string(),
  to: z.string(),
  phase: z.string(),
  /** `null` while it lasts. */
  result: z.enum(["completed", "failed", "cancelled", "lost"]).nullable(),
  reason: z.string().nullable(),
  totalMs: measured,
  pauseMs: measured,
  gapDownMs: measured,
  gapUpMs: measured,
  bytes: measured,
  overflowed: measured.optional(),
  hold: z.string().nullable().optional(),
  undelivered: measured.optional(),
  progress: z.object({
    transferred: z.number(), remaining: z.number(), total: z.number(), passes: z.number(), bytesPerSecond: z.number(),
    dirtyBytesPerSecond: z.number().default(0), throttlePercent: z.number().default(0),
    diskCopied: z.number().default(0), diskTotal: z.number().default(0), diskBytesPerSecond: z.number().default(0),
  }).nullable(),
  /** While it lasts: why it does not converge and what would help. At the end: why it failed. */
  detail: z.string().nullable().default(null),
});
export type MigrationReply = z.infer<typeof migrationReply>;

/** In the words of `POST /v1/migrations`. */
const moveWishes = z.object({
  bandwidth: z.number().optional(), downtimeLimitMs: z.number().optional(), autoConverge: z.boolean().optional(), channels: z.number().optional(), timeoutMs: z.number().optional(), onTimeout: z.string().optional(),
  postcopy: z.boolean().optional(), encrypt: z.boolean().optional(),
});

const drainSummary = {
  host: z.string(),
  state: z.enum(["running", "stopping", "interrupted", "completed", "incomplete", "undrained"]),
  to: z.array(z.string()),
  limit: z.number(),
  order: z.string(),
  wishes: moveWishes.default({}),
  actor: z.string(),
  startedAt: time,
  total: z.number(),
  moved: z.number(),
  moving: z.number(),
  waiting: z.number(),
  left: z.number(),
};
export const drainSummaryReply = z.object(drainSummary);
export type DrainSummaryReply = z.infer<typeof drainSummaryReply>;

export const drainReply = z.object({
  ...drainSummary,
  vms: z.array(z.object({ vm: z.string(), state: z.enum(["waiting", "moving", "moved", "stopped", "left"]), to: z.string().nullable(), migration: z.string().nullable(), reason: z.string().nullable(), detail: z.string() })),
});
export type DrainReply = z.infer<typeof drainReply>;

export const alarmReply = z.object({ alarm: z.string(), vm: z.string(), hosts: z.array(z.string()), detail: z.string(), at: time });
export type AlarmReply = z.infer<typeof alarmReply>;

export const givenBackReply = z.object({ vm: z.string(), host: z.string().nullable(), detail: z.string() });

export const reloadReply = z.object({ hosts: z.number(), vms: z.number(), needRestart: z.array(z.string()), nextStart: z.array(z.object({ vm: z.string(), keys: z.array(z.string()) })).default([]) });

export const errorReply = z.object({ code: z.string().min(1), message: z.string(), retryable: z.boolean() });

export type Happening =
  | { readonly event: "vm"; readonly data: VmReply }
  | { readonly event: "host"; readonly data: HostReply }
  | { readonly event: "migration"; readonly data: MigrationReply }
  | { readonly event: "drain"; readonly data: DrainSummaryReply }
  | { readonly event: "alarm"; readonly data: AlarmReply };

/** The event of that name, checked; null for a name that is not known here. @throws ZodError */
export function happening(event: string, data: unknown): Happening | null {
  switch (event) {
    case "vm":
      return { event, data: vmReply.parse(data) };
    case "host":
      return { event, data: hostReply.parse(data) };
    case "migration":
      return { event, data: migrationReply.parse(data) };
    case "drain":
      return { event, data: drainSummaryReply.parse(data) };
    case "alarm":
      return { event, data: alarmReply.parse(data) };
    default:
      return null;
  }
}
