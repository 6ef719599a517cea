import type { Epoch, MigrationId, Millis, VmId } from "../../model/ids.js";
import { millis } from "../../model/ids.js";
import type { Reason } from "../../model/reasons.js";
import type { GuestStatus, StreamStatus } from "../hypervisor/driver.js";

/** The source's relay connects right after `prepared`; a target that nobody connects to was forgotten. */
const CONNECT_LIMIT = millis(60_000);
/** Everything has been sent when RELEASE comes: loading it takes milliseconds. */
const LOAD_LIMIT = millis(10_000);
const LOOK_AGAIN = millis(100);
/** The guest stands meanwhile. */
const LOOK_SOON = millis(5);
/** A hypervisor whose guest waits for memory that does not come may stand itself. One that is well answers. */
const LOOKS_FAILED = 3;

/*
 * The target's half of the right to run.
 *
 *               all ready               loaded + RELEASE + ready          disk has `continued`         guest runs
 *  preparing ─────────────▶ waiting ───────────────────────────▶ claiming ────────────────▶ starting ────────────▶ running (end)
 *      │                       │                                     │ (disk refused: again)    │ guest died
 *      │ abort, failure,       │ abort, relay lost before `loaded`,  │ guest died               ▼
 *      │ guest died            │ guest died, limits                  │                        died (end)
 *      ▼                       ▼                                     │
 *  destroying ◀────────────────┴─────────────────────────────────────┘
 *      │ destroyed             disk has `never-ran`
 *      └─────────▶ burying ────────────────────────▶ buried (end): tombstone
 *
 * Postcopy: the guest is loaded when all but its memory is there, and runs while that follows; RELEASE and `continued` are as ever.
 *
 *             guest runs, memory is missing            all has come
 *  starting ──────────────────────────────▶ fetching ───────────────▶ running (end)
 *                                              │ no more can come     destroyed
 *                                              └─────────▶ breaking ─────────────▶ died (end), `postcopy-broken`
 *
 * Such a guest cannot go on and cannot go back. That the relay is lost is not enough to know it: the last page may have come before.
 *
 * `continued` is written before the guest may run, `never-ran` after it is destroyed and before anybody hears of it. A crash between shows `prepared`,
 * of which the guest has never run: it is destroyed.
 */
export type TargetPhase = "preparing" | "waiting" | "claiming" | "starting" | "fetching" | "running" | "breaking" | "destroying" | "burying" | "buried" | "died";

export interface TargetPlan {
  readonly migration: MigrationId;
  readonly vm: VmId;
  readonly epoch: Epoch;
}

export interface TargetState {
  readonly plan: TargetPlan;
  readonly phase: TargetPhase;
  readonly loaded: boolean;
  readonly released: boolean;
  /** The source's clock; `null` when RELEASE came by the home agent. */
  readonly stopAt: Millis | null;
  readonly relay: "awaited" | "up" | "lost";
  readonly resumeAt: Millis | null;
  readonly postcopy: "no" | "begun" | "arrived";
  readonly looksFailed: number;
  readonly reason: Reason;
  readonly detail: string;
}

export type TargetEvent =
  | { readonly kind: "ready" }
  | { readonly kind: "failed"; readonly reason: Reason; readonly detail: string }
  | { readonly kind: "relay-up" }
  | { readonly kind: "relay-lost"; readonly detail: string }
  | { readonly kind: "release"; readonly epoch: Epoch; readonly stopAt: Millis | null }
  | { readonly kind: "stream"; readonly status: StreamStatus }
  | { readonly kind: "resumed"; readonly at: Millis }
  | { readonly kind: "guest"; readonly status: GuestStatus; readonly at: Millis }
  | { readonly kind: "recorded"; readonly state: "continued" | "never-ran" }
  | { readonly kind: "record-failed"; readonly detail: string }
  | { readonly kind: "destroyed" }
  | { readonly kind: "command-failed"; readonly command: string; readonly detail: string }
  | { readonly kind: "timer"; readonly name: TargetTimer }
  | { readonly kind: "abort"; readonly reason: Reason };

export type TargetTimer = "connect" | "load" | "look" | "claim" | "bury";

export type TargetEffect =
  | { readonly kind: "record"; readonly state: "continued" | "never-ran" }
  | { readonly kind: "continue-guest" }
  /** For the next life of this agent: nothing is missing any more. */
  | { readonly kind: "record-arrived" }
  | { readonly kind: "look" }
  | { readonly kind: "cut" }
  | { readonly kind: "destroy-guest" }
  | { readonly kind: "report-running" }
  | { readonly kind: "report-ended"; readonly result: "target-never-ran" | "target-died" }
  | { readonly kind: "timer"; readonly name: TargetTimer; readonly delay: Millis }
  | { readonly kind: "stop-timer"; readonly name: TargetTimer };

export interface TargetStep {
  readonly state: TargetState;
  readonly effects: readonly TargetEffect[];
  readonly decision: Reason;
}

export function beginTarget(plan: TargetPlan): TargetStep {
  return step({ plan, phase: "preparing", loaded: false, released: false, stopAt: null, relay: "awaited", resumeAt: null, postcopy: "no", looksFailed: 0, reason: "accepted", detail: "" });
}

/** After the agent's restart. */
export function recoverTarget(plan: TargetPlan, record: "prepared" | "continued" | "never-ran", fetching = false): TargetStep {
  const { state } = beginTarget(plan);
  if (record === "never-ran") return step({ ...state, phase: "buried", reason: "target-gone" }, [{ kind: "report-ended", result: "target-never-ran" }]);
  if (record === "continued") return step({ ...state, phase: "starting", loaded: true, released: true, relay: "lost", postcopy: fetching ? "begun" : "no" }, [{ kind: "look" }]);
  return step({ ...state, phase: "destroying", relay: "lost", reason: "target-gone", detail: "the target agent was restarted" }, [{ kind: "destroy-guest" }]);
}

/** Whether this host has given the guest the word to run: at every other time it does not. */
export function targetMayRun(phase: TargetPhase): boolean {
  return phase === "starting" || phase === "fetching" || phase === "running" || phase === "breaking";
}

export function stepTarget(state: TargetState, event: TargetEvent): TargetStep {
  switch (event.kind) {
    case "ready": return state.phase === "preparing" ? claim(changeState(state, "waiting", [{ kind: "timer", name: "connect", delay: CONNECT_LIMIT }])) : step(state);
    case "failed": return state.phase === "preparing" ? giveUp(state, event.reason, event.detail) : step(state);
    case "relay-up": return step({ ...state, relay: "up" }, [{ kind: "stop-timer", name: "connect" }]);
    case "relay-lost": return relayLost(state, event.detail);
    case "release": return released(state, event.epoch, event.stopAt);
    case "stream": return streamChanged(state, event.status);
    case "resumed": return guestRuns(state, event.at);
    case "guest": return guestSeen(state, event.status, event.at);
    case "recorded": return recorded(state, event.state);
    case "record-failed": return recordFailed(state, event.detail);
    case "destroyed": return state.phase === "breaking" ? changeState(state, "died", [{ kind: "report-ended", result: "target-died" }]) : state.phase === "destroying" ? changeState(state, "burying", [{ kind: "record", state: "never-ran" }]) : step(state);
    case "command-failed": return commandFailed(state, event.command, event.detail);
    case "timer": return timerFired(state, event.name);
    case "abort": return abort(state, event.reason);
  }
}

function relayLost(state: TargetState, detail: string): TargetStep {
  const next: TargetState = { ...state, relay: "lost" };
  if (state.phase === "preparing") return giveUp(next, "relay-failed", detail);
  if (state.phase === "fetching") return step(next, [{ kind: "look" }]);
  if (state.phase === "waiting" && state.postcopy === "begun") return giveUp(next, "relay-failed", detail);
  if (state.phase !== "waiting" || state.loaded) return step(next); // loaded: the home agent knows, or will, whether the source released
  // The end of the stream may have overtaken the hypervisor's last word.
  return step({ ...next, detail }, [{ kind: "stop-timer", name: "connect" }, { kind: "look" }]);
}

function released(state: TargetState, epoch: Epoch, stopAt: Millis | null): TargetStep {
  if (epoch !== state.plan.epoch && stopAt !== null) return step(state, [], "stale-epoch");
  // The home agent's word may overtake the relay's, which alone knows when the guest stopped.
  if (state.released) return step({ ...state, stopAt: state.stopAt ?? stopAt });
  if (state.phase !== "waiting" && state.phase !== "preparing") return step(state);
  return claim(step({ ...state, released: true, stopAt }, state.loaded ? [] : [{ kind: "timer", name: "load", delay: LOAD_LIMIT }, { kind: "look" }]));
}

function streamChanged(state: TargetState, status: StreamStatus): TargetStep {
  if (state.phase === "fetching" && status === "completed") return arrived(state);
  if (state.phase === "fetching" && status === "postcopy-paused") return broken(state);
  if ((state.phase === "claiming" || state.phase === "starting") && state.postcopy === "begun") return status === "completed" ? step({ ...state, postcopy: "arrived" }) : step(state);
  if (state.phase !== "waiting") return step(state);
  // Said when the guest's state begins to be loaded.
  if (status === "postcopy-active") return step({ ...state, postcopy: "begun" }, [{ kind: "look" }]);
  if (status === "postcopy-paused") return giveUp(state, "relay-failed", "the stream broke before the guest was continued");
  if (status === "completed" && state.postcopy === "begun") return step({ ...state, postcopy: "arrived" }, [{ kind: "look" }]);
  if (status === "completed") return claim(step({ ...state, loaded: true }));
  if (status === "failed" || status === "cancelled") return giveUp(state, "migrate-failed", `the hypervisor says ${status}`);
  return step(state);
}

/** The three conditions of the right to run, checked in one place. */
function claim(from: TargetStep): TargetStep {
  const { state, effects } = from;
  if (state.phase !== "waiting" || !state.loaded || !state.released) return from;
  const next = changeState(state, "claiming", [{ kind: "stop-timer", name: "connect" }, { kind: "stop-timer", name: "load" }, { kind: "record", state: "continued" }]);
  return { ...next, effects: [...effects, ...next.effects] };
}

function recorded(state: TargetState, what: "continued" | "never-ran"): TargetStep {
  if (what === "continued" && state.phase === "claiming") return changeState(state, "starting", [{ kind: "continue-guest" }]);
  if (what === "never-ran" && state.phase === "burying") return changeState(state, "buried", [{ kind: "report-ended", result: "target-never-ran" }]);
  return step(state);
}

function recordFailed(state: TargetState, detail: string): TargetStep {
  // The disk may have it all the same. Were the guest given up now, an agent that crashed before `never-ran` is on disk would find `continued` and no guest, and take
  // it for one that has run and died. Nothing could be given back before the disk writes again either: so the guest stays, and is continued then.
  if (state.phase === "claiming") return step({ ...state, detail }, [{ kind: "timer", name: "claim", delay: LOOK_AGAIN }]);
  if (state.phase === "burying") return step(state, [{ kind: "timer", name: "bury", delay: LOOK_AGAIN }]);
  return step(state);
}

function guestRuns(state: TargetState, at: Millis): TargetStep {
  if (state.phase !== "starting") return step(state);
  const runs: TargetState = { ...state, resumeAt: at };
  if (state.postcopy === "begun") return changeState(runs, "fetching", [{ kind: "report-running" }, ...(state.relay === "lost" ? [{ kind: "look" } as const] : [])]);
  return changeState(runs, "running", [{ kind: "cut" }, ...(state.postcopy === "arrived" ? [{ kind: "record-arrived" } as const] : []), { kind: "report-running" }]);
}

/** The relay is left to the source, whose hypervisor may not have read its last word yet. */
function arrived(state: TargetState): TargetStep {
  return changeState({ ...state, postcopy: "arrived" }, "running", [{ kind: "stop-timer", name: "look" }, { kind: "record-arrived" }, { kind: "report-running" }]);
}

/** It is destroyed before anybody hears of it: whoever starts the VM again then, starts the only one. */
function broken(state: TargetState): TargetStep {
  return changeState({ ...state, reason: "postcopy-broken", detail: state.detail === "" ? "the rest of its memory cannot come any more" : state.detail }, "breaking", [{ kind: "stop-timer", name: "look" }, { kind: "cut" }, { kind: "destroy-guest" }]);
}

function guestSeen(state: TargetState, status: GuestStatus, at: Millis): TargetStep {
  if (state.phase === "starting") {
    if (status === "running") return guestRuns(state.postcopy === "begun" ? { ...state, postcopy: "arrived" } : state, at);
    if (status === "fetching") return guestRuns({ ...state, postcopy: "begun" }, at);
    if (status === "stranded") return broken(state);
    // Its process is gone; what was made for it is not.
    if (status === "gone") return changeState({ ...state, reason: state.postcopy === "begun" && state.relay === "lost" ? "postcopy-broken" : "target-gone" }, "died", [{ kind: "cut" }, { kind: "report-ended", result: "target-died" }, { kind: "destroy-guest" }]);
    return step(state, [{ kind: "continue-guest" }, { kind: "timer", name: "look", delay: LOOK_AGAIN }]);
  }
  if (state.phase === "fetching") {
    if (status === "running") return arrived(state);
    if (status === "stranded") return broken(state);
    if (status === "gone") return changeState({ ...state, reason: "target-gone" }, "died", [{ kind: "cut" }, { kind: "report-ended", result: "target-died" }, { kind: "destroy-guest" }]);
    return step({ ...state, looksFailed: 0 }, state.relay === "lost" ? [{ kind: "timer", name: "look", delay: LOOK_AGAIN }] : []);
  }
  if (status === "gone") return state.phase === "preparing" || state.phase === "waiting" || state.phase === "claiming" ? giveUp(state, "target-gone", "the target's guest process ended") : step(state);
  if (state.phase !== "waiting") return step(state);
  if (status === "loaded") return claim(step({ ...state, loaded: true }));
  if (status === "incoming" && state.postcopy !== "no") return step(state, [{ kind: "timer", name: "look", delay: LOOK_SOON }]);
  if (status === "stranded") return giveUp(state, "relay-failed", "the stream broke before the guest was continued");
  return state.relay === "lost" && !state.released ? giveUp(state, "relay-failed", state.detail) : step(state);
}

function commandFailed(state: TargetState, command: string, detail: string): TargetStep {
  if ((state.phase === "fetching" || (state.phase === "starting" && state.postcopy === "begun" && state.relay === "lost")) && command === "look") {
    const looksFailed = state.looksFailed + 1;
    return looksFailed < LOOKS_FAILED ? step({ ...state, looksFailed }, [{ kind: "timer", name: "look", delay: LOOK_AGAIN }]) : broken({ ...state, detail: `${detail}: it stands for memory that cannot come any more` });
  }
  if (state.phase === "starting") return step({ ...state, detail }, [{ kind: "timer", name: "look", delay: LOOK_AGAIN }]);
  if ((state.phase === "destroying" || state.phase === "breaking") && command === "destroy-guest") return step({ ...state, detail }, [{ kind: "timer", name: "bury", delay: LOOK_AGAIN }]);
  if (state.phase === "waiting" && command === "look") return step(state, [{ kind: "timer", name: "look", delay: LOOK_AGAIN }]);
  return step(state);
}

function timerFired(state: TargetState, name: TargetTimer): TargetStep {
  if (name === "connect" && state.phase === "waiting" && state.relay === "awaited") return giveUp(state, "timed-out", "no source has connected");
  if (name === "load" && state.phase === "waiting" && !state.loaded) return giveUp(state, "migrate-failed", "the hypervisor did not load what was sent");
  if (name === "look" && (state.phase === "starting" || state.phase === "fetching" || state.phase === "waiting")) return step(state, [{ kind: "look" }]);
  if (name === "claim" && state.phase === "claiming") return step(state, [{ kind: "record", state: "continued" }]);
  if (name === "bury" && state.phase === "burying") return step(state, [{ kind: "record", state: "never-ran" }]);
  if (name === "bury" && (state.phase === "destroying" || state.phase === "breaking")) return step(state, [{ kind: "destroy-guest" }]);
  return step(state);
}

function abort(state: TargetState, reason: Reason): TargetStep {
  switch (state.phase) {
    case "preparing": case "waiting": return giveUp(state, reason, "told to give up");
    case "destroying": case "burying": return step(state);
    case "buried": return step(state, [{ kind: "report-ended", result: "target-never-ran" }]);
    case "died": return step(state, [{ kind: "report-ended", result: "target-died" }]);
    case "breaking": return step(state, [], "not-permitted");
    case "fetching": case "running": return step(state, [{ kind: "report-running" }], "not-permitted");
    case "claiming": case "starting": return step(state, [], "not-permitted");
  }
}

/** Only what has not been given the word to run. */
function giveUp(state: TargetState, reason: Reason, detail: string): TargetStep {
  const stop: TargetEffect[] = (["connect", "load", "look", "claim"] as const).map((name) => ({ kind: "stop-timer", name }));
  return changeState({ ...state, reason, detail }, "destroying", [...stop, { kind: "cut" }, { kind: "destroy-guest" }]);
}

/** Every change of phase, of the diagram above. */
function changeState(state: TargetState, phase: TargetPhase, effects: readonly TargetEffect[]): TargetStep {
  return step({ ...state, phase }, effects);
}

function step(state: TargetState, effects: readonly TargetEffect[] = [], decision: Reason = "accepted"): TargetStep {
  return { state, effects, decision };
}
