import {
  absolutePath, amount, bytes, detail, duration, enumeration, epochField, flag, host, instant, integer, list, maybeDuration, maybeInstant, message, migration, port, reason, text, uint32,
  uint53, vm, word, optional, type Field,
} from "../fields.js";
import { careof } from "../gen/careof.js";
import { MAX_CHANNELS, type BodyByKind, type DiskImage, type MigrationParameters, type OnTimeout } from "../messages.js";
import { decision, diskFormat, locator, vmSpec } from "./registration.js";
import v1 = careof.v1;

/** Of the relay's TLS-PSK. */
const secret = bytes(32, 32);

/** Unset, by a home agent that does not know them: what was before them. */
const channels: Field<number, number> = {
  read: (wire, at) => Math.max(1, integer(0, MAX_CHANNELS).read(wire, at)),
  write: integer(1, MAX_CHANNELS).write,
};
const onTimeoutWord = word<OnTimeout>("abort", "force");
const onTimeout: Field<OnTimeout, string> = { read: (wire, at) => (wire === "" ? "abort" : onTimeoutWord.read(wire, at)), write: onTimeoutWord.write };

const parameters = message<MigrationParameters, v1.MigrationParameters.$Properties>({
  maxBandwidth: uint53,
  downtimeLimitMs: duration,
  lead: flag,
  holdMaxMs: duration,
  timeoutMs: duration,
  autoConverge: flag,
  channels,
  onTimeout,
  forceMs: duration,
  postcopy: flag,
  clear: flag,
});

const disks = list(message<DiskImage, v1.DiskImage.$Properties>({ path: absolutePath(4096), format: diskFormat, virtualBytes: uint53, allocatedBytes: uint53 }), 64);

export const prepare = message<BodyByKind["prepare"], v1.Prepare.$Properties>({
  migration,
  spec: vmSpec,
  epoch: epochField,
  source: host,
  sourceLocator: locator,
  secret,
  parameters,
  disks,
});

export const describeDisks = message<BodyByKind["describeDisks"], v1.DescribeDisks.$Properties>({ vm });
export const disksDescribed = message<BodyByKind["disksDescribed"], v1.DisksDescribed.$Properties>({ disks });
export const prepared = message<BodyByKind["prepared"], v1.Prepared.$Properties>({ decision, relayAddress: text(255), relayPort: port, canLead: flag });

export const migrate = message<BodyByKind["migrate"], v1.Migrate.$Properties>({
  migration,
  vm,
  epoch: epochField,
  target: host,
  targetLocator: locator,
  relayAddress: text(255),
  relayPort: port,
  secret,
  parameters,
});

export const progress = message<BodyByKind["progress"], v1.MigrationProgress.$Properties>({
  migration,
  phase: word("prepare", "setup", "disks", "copy", "lead", "stop", "released", "postcopy", "settle"),
  transferred: uint53,
  remaining: uint53,
  total: uint53,
  passes: uint32,
  bytesPerSecond: amount,
  dirtyBytesPerSecond: amount,
  expectedDowntimeMs: maybeInstant,
  throttlePercent: integer(0, 100),
  diskCopied: uint53,
  diskTotal: uint53,
  diskBytesPerSecond: amount,
});

export const leadReady = message<BodyByKind["leadReady"], v1.LeadReady.$Properties>({ migration });
export const lead = message<BodyByKind["lead"], v1.Lead.$Properties>({ migration, token: uint32 });
export const uplinkSeen = message<BodyByKind["uplinkSeen"], v1.UplinkSeen.$Properties>({ migration, token: uint32 });

export const switchOver = message<BodyByKind["switchOver"], v1.SwitchOver.$Properties>({
  migration,
  stopAt: instant,
  markerAt: maybeInstant,
  hold: word("led", "hold-expired", "no-gate", "stopped-early"),
});

export const released = message<BodyByKind["released"], v1.Released.$Properties>({
  migration,
  epoch: epochField,
  stopAt: instant,
  markerAt: maybeInstant,
  bytes: uint53,
  postcopy: flag,
  forced: flag,
});

export const running = message<BodyByKind["running"], v1.Running.$Properties>({
  migration,
  epoch: epochField,
  resumeAt: instant,
  firstDeliverableAt: maybeInstant,
  uplinkOpenAt: maybeInstant,
  pauseMs: maybeDuration,
  pauseErrorMs: instant,
  final: flag,
  overflowed: uint53,
  postcopy: flag,
  resumedAtSource: maybeInstant,
});

export const sourceEnded = message<BodyByKind["sourceEnded"], v1.SourceEnded.$Properties>({
  migration,
  result: enumeration({
    "source-runs": v1.SourceResult.SOURCE_RUNS,
    "source-released": v1.SourceResult.SOURCE_RELEASED,
    "source-gone": v1.SourceResult.SOURCE_GONE,
  }),
  reason,
  detail,
});

export const targetEnded = message<BodyByKind["targetEnded"], v1.TargetEnded.$Properties>({
  migration,
  result: enumeration({
    "target-runs": v1.TargetResult.TARGET_RUNS,
    "target-never-ran": v1.TargetResult.TARGET_NEVER_RAN,
    "target-died": v1.TargetResult.TARGET_DIED,
  }),
  reason,
  detail,
  undelivered: optional(uint53),
});

export const abort = message<BodyByKind["abort"], v1.Abort.$Properties>({ migration, vm, reason });

export const resume = message<BodyByKind["resume"], v1.Resume.$Properties>({
  migration,
  vm,
  epoch: epochField,
  evidence: word("target-never-ran", "resolved-by-operator"),
});

export const revoke = message<BodyByKind["revoke"], v1.Revoke.$Properties>({ vm, epoch: epochField, forwardTo: optional(locator), graceMs: duration });
