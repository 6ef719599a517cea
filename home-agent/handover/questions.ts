import { CareofError } from "../../model/errors.js";
import type { HostId } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import type { Effect, Question } from "../outcome.js";
import type { Permission } from "./given-back.js";
import type { Migration } from "./migration.js";

export function ask(host: HostId, what: Question): Effect {
  return { do: "ask", host, what };
}

export function askAbort(migration: Migration, host: HostId, reason: Reason): Effect {
  return ask(host, { ask: "abort", migration: migration.id, reason });
}

export function askResume(migration: Migration, evidence: Permission): Effect {
  if (migration.resumeEpoch === null) throw new CareofError("internal", `${migration.id}: a resume needs an epoch that is on disk`);
  return ask(migration.from, { ask: "resume", migration: migration.id, epoch: migration.resumeEpoch, evidence });
}
