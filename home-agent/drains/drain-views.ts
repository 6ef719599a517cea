import type { DrainSummary, DrainView } from "../api/drain-operations.js";
import { wordsOf } from "../api/move-wishes.js";
import { iso } from "../views.js";
import type { Drain, Stay, StayPhase } from "./drain.js";

/** The JSON of `careof drain`. */
export function viewDrain(drain: Drain): DrainView {
  return { ...summarize(drain), vms: drain.stays.map(viewStay) };
}

export function summarize(drain: Drain): DrainSummary {
  const count = (...phases: readonly StayPhase[]): number => drain.stays.filter((stay) => phases.includes(stay.phase)).length;
  const moving = count("asked", "moving");
  const waiting = count("waiting");
  const left = count("left");
  const { host, to, limit, order, wishes, actor, startedAt } = drain;
  return { host, state: stateOf(drain, moving, waiting + left), to: [...to], limit, order, wishes: wordsOf(wishes), actor, startedAt: iso(startedAt), total: drain.stays.length, moved: count("moved", "stopped"), moving, waiting, left };
}

function stateOf({ phase }: Drain, moving: number, rest: number): DrainSummary["state"] {
  if (phase === "running") return "running";
  if (moving > 0) return "stopping";
  if (rest === 0) return "completed";
  return phase === "interrupted" ? "interrupted" : "incomplete";
}

function viewStay({ vm, phase, to, migration, reason, detail }: Stay): DrainView["vms"][number] {
  return { vm, state: phase === "asked" ? "moving" : phase, to, migration, reason, detail };
}
