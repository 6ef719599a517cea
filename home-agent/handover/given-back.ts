import { millis, parseMigrationId, type Epoch, type HostId, type MigrationId, type Millis } from "../../model/ids.js";
import { changeState, type Now } from "../bindings/binding.js";
import { decide, write, type Effect, type Outcome } from "../outcome.js";
import type { Migration, VmState } from "./migration.js";
import type { MovePlan } from "./move-plan.js";
import { ask } from "./questions.js";
import { lose, type Moving } from "./steps.js";

/** So many of one VM are remembered; one with a proof longer than one without. */
const REMEMBERED = 8;

export type Permission = "target-never-ran" | "resolved-by-operator";

/**
 * A migration that ended at its source, remembered (durably) until the VM goes elsewhere. The source may say only now, or again, that it gave the right to run away: then
 * `resume` is what lets it run again. `null`: it rests on nothing but the source's own word that it runs on, which a RELEASE contradicts.
 */
export interface GivenBack {
  readonly id: MigrationId;
  readonly from: HostId;
  readonly to: HostId;
  readonly epoch: Epoch;
  readonly actor: string;
  readonly startedAt: Millis;
  readonly resume: Permission | null;
  /** The target has said since that it runs the guest. */
  readonly ran: boolean;
}

export function remember(known: readonly GivenBack[], { id, from, to, epoch, actor, startedAt, neverRan, resumeEpoch }: Migration): readonly GivenBack[] {
  const resume = neverRan ? "target-never-ran" : resumeEpoch !== null ? "resolved-by-operator" : null;
  const all = [...known.filter((each) => each.id !== id), { id, from, to, epoch, actor, startedAt, resume, ran: false } as const];
  if (all.length <= REMEMBERED) return all;
  const dispensable = all.find((each) => each.resume === null) ?? all[0];
  return all.filter((each) => each !== dispensable);
}

/** What the target of a migration that was given back says too late to decide it: it is kept for what the source may say. `null`: nobody waits for it. */
export function onLateTarget(state: VmState, host: HostId, migration: MigrationId, said: "never-ran" | "runs"): Outcome<VmState> | null {
  const given = state.givenBack.find((each) => each.id === migration && each.to === host);
  if (given === undefined || state.binding.owner !== given.from) return null;
  const contradiction = (why: string): readonly Effect[] => [broken(host, `${host} says that ${state.binding.vm} ${why}`)];
  const keep = (known: Partial<GivenBack>, effects: readonly Effect[]): Outcome<VmState> =>
    write({ ...state, givenBack: state.givenBack.map((each) => (each === given ? { ...each, ...known } : each)) }, [], effects);
  if (said === "runs") {
    const effects = contradiction(`runs there by ${migration}, but ${given.from} said that it runs on`);
    return given.ran ? decide(state, "accepted", "", effects) : keep({ ran: true }, effects);
  }
  if (given.ran) return decide(state, "accepted", "", contradiction(`never ran there by ${migration}, after it said that it does`));
  return given.resume === null ? keep({ resume: "target-never-ran" }, []) : decide(state, "accepted");
}

/**
 * The source of a migration that is over has a guest that it released. It lets go when another host owns the VM; it runs again only with the proof that the target
 * never did. Without one it contradicts itself: either the target had the right (`ran` is its word), or nobody knows, and a person decides.
 */
export function afterRelease(state: VmState, host: HostId, migration: MigrationId, now: Now, whenRan: (reopened: Moving) => Outcome<VmState>): Outcome<VmState> {
  const { binding } = state;
  const { epoch: reserved } = parseMigrationId(migration);
  // Late word of an older one: a revocation names the VM only, and would end the guest that stands at the source of the present one.
  if (binding.owner !== host && state.migration?.from === host) return decide(state, "accepted", `${host} is the source of ${state.migration.id}`);
  if (binding.owner !== host) {
    // A store that is older than the move does not know what became of it: the halted guest may be the only one.
    if (isUnknown(state, migration)) return decide(state, "accepted", "", [unknownHere(host, `has released ${migration}`)]);
    // A guest that died before its move was committed leaves the binding at an older epoch than that of the move: such a revocation the host would refuse.
    return decide(state, "accepted", "", [ask(host, { ask: "revoke", epoch: reserved > binding.epoch ? reserved : binding.epoch, forwardTo: binding.owner })]);
  }
  const given = state.givenBack.find((each) => each.id === migration && each.from === host);
  if (given === undefined) {
    // By a migration or a start since then: what it released is long past. Unless this store is older than the migration.
    if (binding.epoch > reserved) return decide(state, "accepted", `${host} has ${binding.vm} by other ways since`);
    return decide(state, "accepted", "", [unknownHere(host, `has released ${migration}`)]);
  }
  if (given.resume !== null && !given.ran) return decide(state, "accepted", "", [ask(host, { ask: "resume", migration, epoch: binding.epoch, evidence: given.resume })]);
  const detail = `${host} has released ${migration} after it said that it runs on`;
  if (state.migration !== null) return decide(state, "accepted", "", [broken(host, detail)]);
  const reopened: Moving = { ...state, migration: again(given, now) };
  if (given.ran && given.resume === null) return whenRan(reopened);
  // A binding that is silent cannot be lost, by the diagram; its owner has just spoken.
  const heard = binding.phase === "bound" ? binding : changeState(binding, "bound", { owner: binding.owner, epoch: binding.epoch, evidence: binding.evidence }, now);
  const lost = lose({ ...reopened, binding: heard }, now, `${detail}, and nobody knows whether ${given.to} took it`);
  return { ...lost, effects: [broken(host, detail), ...lost.effects] };
}

const NOTHING_LEFT_TO_COPY: MovePlan = { maxBandwidth: 0, downtimeLimitMs: millis(0), timeoutMs: millis(0), onTimeout: "abort", forceMs: millis(0), autoConverge: false, channels: 1, postcopy: false, encrypt: true };

/** The migration as it stands when its RELEASE turns up after all. */
function again({ id, from, to, epoch, actor, startedAt }: GivenBack, now: Now): Migration {
  return {
    id, from, to, epoch, actor, startedAt, plan: NOTHING_LEFT_TO_COPY, targetLife: null, phase: "released", released: true, postcopy: false, forced: false, neverRan: false, resumeEpoch: null, reason: null, detail: "", cancelled: false,
    startedMono: null, pointed: "target", lead: false, token: 0, sourceGone: null, targetGone: null, phaseAt: now.mono, tries: 0, hold: null, undelivered: null, stopAt: null, markerAt: null, bytes: null, running: null,
  };
}

/** Every epoch is on disk before a host hears of it: one that was never issued here was issued by a store that is lost, or newer than this one. */
export function isUnknown({ binding }: VmState, migration: MigrationId): boolean {
  return parseMigrationId(migration).epoch > binding.issued;
}

export function unknownHere(host: HostId, what: string): Effect {
  return broken(host, `${host} ${what}, which this home agent knows nothing of (was its store lost, or put back from an older copy?): nothing of it is touched`);
}

export function broken(host: HostId, detail: string): Effect {
  return { do: "alarm", alarm: "rule-broken", hosts: [host], detail };
}
