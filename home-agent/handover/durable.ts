import { z } from "zod";
import { parsed } from "../../model/config.js";
import { CareofError } from "../../model/errors.js";
import { epoch, hostId, migrationId, millis, type VmId } from "../../model/ids.js";
import { leadToken } from "../../model/lead-token.js";
import { isReason } from "../../model/reasons.js";
import { changeState, unbound, type Now } from "../bindings/binding.js";
import type { Migration, VmState } from "./migration.js";

/** Host agents try to connect again at least every 5 s: until then their absence says nothing about them, only about this process's own. */
const RETURN_MS = 6000;

const epochField = z.number().transform((value) => epoch(value));
const timeField = z.number().transform((value) => millis(value));
const hostField = parsed(hostId);

/** A journal of before there were plans: of all this only the times still matter to a migration that is restored. */
const planField = z.object({
  maxBandwidth: z.number().default(0),
  downtimeLimitMs: timeField.default(millis(20)),
  timeoutMs: timeField.default(millis(600_000)),
  onTimeout: z.enum(["abort", "force"]).default("abort"),
  forceMs: timeField.default(millis(60_000)),
  autoConverge: z.boolean().default(false),
  channels: z.number().default(1),
  postcopy: z.boolean().default(false),
  encrypt: z.boolean().default(true),
});

const record = z.object({
  phase: z.enum(["none", "bound", "moving", "expired", "lost"]),
  owner: hostField.nullable(),
  epoch: epochField,
  issued: epochField,
  since: timeField,
  starting: z.object({ host: hostField, epoch: epochField, actor: z.string() }).nullable(),
  migration: z.object({
    from: hostField,
    to: hostField,
    epoch: epochField,
    actor: z.string(),
    startedAt: timeField,
    plan: planField.prefault({}),
    released: z.boolean(),
    neverRan: z.boolean(),
    resumeEpoch: epochField.nullable(),
    reason: z.string().nullable(),
    cancelled: z.boolean(),
    lost: z.boolean(),
    settling: z.boolean(),
    postcopy: z.boolean().default(false),
    fetching: z.boolean().default(false),
    targetLife: z.object({ instance: z.string(), restartCounter: z.number() }).nullable().default(null),
  }).nullable(),
  givenBack: z.array(z.object({
    from: hostField,
    to: hostField,
    epoch: epochField,
    actor: z.string(),
    startedAt: timeField,
    resume: z.enum(["target-never-ran", "resolved-by-operator"]).nullable(),
    ran: z.boolean(),
  })).default([]),
});

export type DurableVm = z.input<typeof record>;

/** What of a VM survives this process. Signs of life, stamps and deadlines begin anew. */
export function durable(state: VmState): DurableVm {
  const { binding, migration, givenBack } = state;
  const { phase, owner, epoch: current, issued, since, starting } = binding;
  return {
    phase: phase === "stale" ? "bound" : phase,
    owner, epoch: current, issued, since,
    starting: starting === null ? null : { host: starting.host, epoch: starting.epoch, actor: starting.actor },
    migration: migration === null ? null : {
      from: migration.from, to: migration.to, epoch: migration.epoch, actor: migration.actor, startedAt: migration.startedAt,
      plan: migration.plan, released: migration.released, neverRan: migration.neverRan, resumeEpoch: migration.resumeEpoch, reason: migration.reason, cancelled: migration.cancelled,
      lost: migration.phase === "lost", settling: migration.phase === "settle", postcopy: migration.postcopy, fetching: migration.phase === "postcopy", targetLife: migration.targetLife,
    },
    ...(givenBack.length === 0 ? {} : { givenBack: givenBack.map(({ from, to, epoch: reserved, actor, startedAt, resume, ran }) => ({ from, to, epoch: reserved, actor, startedAt, resume, ran })) }),
  };
}

/**
 * A VM as it was when the process ended. Hosts of an open migration count as gone when they had the time to register, and have not; the tunnel points where
 * the guest may run: to the source until RELEASE (which passes stragglers on), then to the target.
 * @throws CareofError `store-corrupt` for what this version cannot have written
 */
export function restore(vm: VmId, value: unknown, now: Now): VmState {
  const read = record.safeParse(value);
  if (!read.success) throw new CareofError("store-corrupt", `the record of ${vm} cannot be read: ${read.error.issues[0]?.path.map(String).join(".") ?? ""} ${read.error.issues[0]?.message ?? ""}`);
  const data = read.data;
  const binding = {
    ...unbound(vm, data.epoch),
    phase: data.phase, owner: data.owner, issued: data.issued, since: data.since,
    starting: data.starting === null ? null : { ...data.starting, asked: false },
    evidence: "restored" as const, seenAt: data.phase === "none" ? null : now.mono, ownerSees: true,
  };
  const open = data.migration;
  const givenBack = data.givenBack.map((each) => ({ ...each, id: migrationId(vm, each.epoch) }));
  if (open === null) {
    const stuck = binding.phase === "moving" || binding.phase === "lost";
    return { binding: stuck ? changeState(binding, "bound", { owner: binding.owner, epoch: binding.epoch, evidence: "restored" }, now) : binding, migration: null, givenBack };
  }
  const awaited = millis(now.mono + RETURN_MS);
  const migration: Migration = {
    id: migrationId(vm, open.epoch), from: open.from, to: open.to, epoch: open.epoch, actor: open.actor, startedAt: open.startedAt, plan: open.plan, targetLife: open.targetLife,
    phase: open.lost ? "lost" : open.settling ? "settle" : open.fetching ? "postcopy" : open.resumeEpoch !== null ? "reclaim" : open.released ? "released" : open.neverRan || open.reason !== null ? "aborting" : "copy",
    released: open.released, postcopy: open.postcopy, forced: false, neverRan: open.neverRan, resumeEpoch: open.resumeEpoch,
    reason: open.reason !== null && isReason(open.reason) ? open.reason : null, detail: "", cancelled: open.cancelled,
    startedMono: null, pointed: (open.released && open.resumeEpoch === null) || open.settling || open.fetching ? "target" : "source", lead: false, token: leadToken(open.epoch),
    sourceGone: awaited, targetGone: awaited, phaseAt: now.mono, tries: 0, hold: null, undelivered: null, stopAt: null, markerAt: null, bytes: null, running: null,
  };
  return { binding, migration, givenBack };
}
