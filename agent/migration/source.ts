import { millis, type Millis } from "../../model/ids.js";
import { leadToken } from "../../model/lead-token.js";
import type { Reason } from "../../model/reasons.js";
import type { GuestStatus, StreamStatus } from "../hypervisor/driver.js";
import { doesNotConverge, enoughByEstimate, enoughIsCopied, isAtRest, isBeyondThirdPass, MEASURED_PASSES } from "./lead-moment.js";
import { beforeRelease, ended, inPostcopy } from "./source-phases.js";
import type { SourceEffect, SourceEvent, SourcePhase, SourcePlan, SourceState, SourceStep, SourceTimer } from "./source-shapes.js";

/** Looks at a guest that is being got back are this far apart. */
const LOOK_AGAIN = millis(200);
/** No byte of the disks was copied for so long: it is not going to be. */
const DISKS_STILL = millis(60_000);
/** The guest stands meanwhile. */
const DISKS_HAND_OVER = millis(5_000);
/** Memory that follows by postcopy and of which nothing is sent for so long does not come any more. */
const SERVE_STILL = millis(30_000);
const SERVE_TIMER: SourceEffect = { kind: "timer", name: "serve", delay: SERVE_STILL };

/*
 * The source's half of the right to run.
 *
 *             recorded              little left, forced        lead granted            marker / hold limit (from leading too)
 *  starting ───────────▶ copying ───────────────▶ leading ─────────────────▶ awaiting ─────────────────▶ opened
 *     │                   │    ▲ no lead wanted      │                          │                         │
 *     │                   │ STOP (pre-switchover)    │ STOP: stopped early      │ STOP                    │ STOP
 *     │                   ▼                          ▼                          ▼                         ▼
 *     │                 stopped ◀───────────────────────────────────────────────────────────────────────────
 *     │                   │ stream completed
 *     │ abort, relay      ▼           disk has it                     revoke
 *     │ lost, failure   releasing ─────────────────▶ released ──────────────────▶ revoked (end)
 *     ▼ (from all to      │ disk refused              │ resume (proof)
 *  returning ◀── here)    └──────────▶ reclaiming ◀───┤
 *     │    ▲                             │ disk has "resumed"
 *     │    └─────────────────────────────┘
 *     ▼ guest runs
 *  runs (end)            guest died, not released: gone (end)
 *
 * Little: what is copied within the downtime limit. A guest for which this never comes stays in `copying` until the time is over; then it is given up, or *forced*: little is then
 * whatever is left. The guest still stops at the gate, and before RELEASE a forced move can be given up like any other.
 *
 * From the marker on the guest is deaf, so it is halted then (`halt-guest`) rather than by the hypervisor, some milliseconds behind the gate. A hypervisor lets nobody run by itself whom it was told to halt: `returning`
 * resumes it.
 *
 * A guest with disks of its own is `mirroring` between `starting` and `copying`: they are the same on both sides before the memory is begun, and stay so. At pre-switchover both
 * sides let go of the copy, and only then the stream goes on.
 *
 * Postcopy, where it is wanted and the copy does not converge: `opened` then stops the guest itself and has it go over with its memory behind it. `stopped` ends by the stream's postcopy-active as by its
 * completed, and RELEASE is the same, but the guest's memory is still wanted here:
 *
 *  releasing ── disk has it ──▶ serving ── completed, broken, still, guest gone, relay lost ──▶ released
 *
 * `serving` is not revoked, for that would end the guest at the target. From postcopy-active on the hypervisor can neither give up nor run the guest: whoever would get it back (`returning`, without
 * RELEASE or with a proof) finds it so, and it is `gone`.
 *
 * Between `releasing` and `reclaiming` nothing here lets the guest run. RELEASE leaves only from `released`, which is entered only by the disk's answer.
 */
export function beginSource(plan: SourcePlan): SourceStep {
  const state = initial(plan, "starting");
  // How long disks take is not known: they have a limit of another kind.
  return step(state, [{ kind: "record", state: "active" }, ...(plan.disks ? [] : [copyTimer(plan)])]);
}

/** After the agent's restart. The relay died with it, so an `active` migration can only be taken back; a released one waits for a proof, and memory that was to follow (`postcopy`) does not any more. */
export function recoverSource(plan: SourcePlan, record: "active" | "released" | "resumed", stamps: Pick<SourceState, "stopAt" | "markerAt" | "bytes">, postcopy = false): SourceStep {
  const state: SourceState = { ...initial(plan, "returning"), ...stamps, postcopy: postcopy ? "over" : "no", sending: true, disks: plan.disks && record === "active" ? "copying" : "none" };
  if (record === "released") return step({ ...state, phase: "released" }, [{ kind: "report-released" }]);
  if (record === "resumed") return step(state, [{ kind: "look" }]);
  return step({ ...state, reason: "relay-failed", detail: "the source agent was restarted" }, [{ kind: "cancel-send" }, ...dropDisks(state), { kind: "look" }]);
}

function initial(plan: SourcePlan, phase: SourcePhase): SourceState {
  return {
    plan, phase, hold: "no-gate", stopAt: null, markerAt: null, bytes: 0, passes: 0, reason: "accepted", detail: "", sending: false, stalled: false, pass: 0, stalledAt: millis(0), stillFrom: null, leftBefore: Infinity,
    forced: false, disks: "none", diskCopied: 0, postcopy: "no",
  };
}

export function stepSource(state: SourceState, event: SourceEvent): SourceStep {
  switch (event.kind) {
    case "recorded": return recorded(state, event.state);
    case "record-failed": return recordFailed(state, event.detail);
    case "relay-ready": return relayReady(state);
    case "relay-lost": return beforeRelease(state) ? giveUp(state, "relay-failed", event.detail) : served(state);
    case "stream": return streamChanged(state, event.status);
    case "pass": return passed(state, event);
    case "progress": return progressed(state, event);
    case "disk-progress": return diskProgressed(state, event.copied);
    case "disks": return disksChanged(state, event.what);
    case "disks-failed": return beforeRelease(state) && state.disks !== "closed" ? giveUp(state, "disk-failed", event.detail) : step(state);
    case "stopped": return stopped(state, event.at);
    case "resumed": return guestResumed(state);
    case "guest": return guestSeen(state, event);
    case "command-failed": return commandFailed(state, event.command, event.detail);
    case "lead": return leadGranted(state, event.token);
    case "marker": return markerSeen(state, event.at);
    case "timer": return timerFired(state, event.name);
    case "abort": return abort(state, event.reason);
    case "resume": return resumeByProof(state);
    case "revoke": return revoke(state);
  }
}

function recorded(state: SourceState, what: "active" | "released" | "resumed"): SourceStep {
  if (what === "active" && state.phase === "starting") return changeState(state, state.plan.disks ? "mirroring" : "copying", [{ kind: "connect" }]);
  if (what === "released" && state.phase === "releasing" && state.postcopy === "begun") return changeState({ ...state, leftBefore: Infinity }, "serving", [{ kind: "send-release" }, { kind: "report-released" }, SERVE_TIMER]);
  if (what === "released" && state.phase === "releasing") return changeState(state, "released", [{ kind: "send-release" }, { kind: "report-released" }]);
  if (what === "resumed" && state.phase === "reclaiming") return changeState(state, "returning", [{ kind: "look" }]);
  return step(state);
}

function relayReady(state: SourceState): SourceStep {
  if (state.phase === "mirroring") return step({ ...state, disks: "copying" }, [{ kind: "mirror-disks" }, { kind: "timer", name: "disks", delay: DISKS_STILL }]);
  return state.phase === "copying" ? step({ ...state, sending: true }, [{ kind: "send" }]) : step(state);
}

function diskProgressed(state: SourceState, copied: number): SourceStep {
  if (state.phase !== "mirroring" || copied <= state.diskCopied) return step(state);
  return step({ ...state, diskCopied: copied }, [{ kind: "timer", name: "disks", delay: DISKS_STILL }]);
}

function disksChanged(state: SourceState, what: "ready" | "closed" | "dropped"): SourceStep {
  if (what === "dropped") return step(state.disks === "closed" ? state : { ...state, disks: "none" });
  if (what === "ready" && state.phase === "mirroring") {
    return changeState({ ...state, disks: "ready", sending: true }, "copying", [{ kind: "stop-timer", name: "disks" }, copyTimer(state.plan), { kind: "send" }]);
  }
  if (what === "closed" && state.disks === "ready" && beforeRelease(state)) return step({ ...state, disks: "closed" }, [{ kind: "stop-timer", name: "disks" }, { kind: "continue-switchover" }]);
  return step(state);
}

function recordFailed(state: SourceState, detail: string): SourceStep {
  if (state.phase === "starting") return giveUp(state, "store-unavailable", detail);
  // RELEASE was not sent, and now never will be. But the disk may have it, and would speak of it after a restart: the guest stands until the disk has the contrary.
  if (state.phase === "releasing") return changeState({ ...state, reason: "store-unavailable", detail }, "reclaiming", [{ kind: "cut" }, { kind: "record", state: "resumed" }]);
  if (state.phase === "reclaiming") return step(state, [{ kind: "timer", name: "look", delay: LOOK_AGAIN }]);
  return step(state);
}

function streamChanged(state: SourceState, status: StreamStatus): SourceStep {
  if (state.phase === "returning") return status === "failed" || status === "cancelled" || status === "completed" || inPostcopy(status) ? step(state, [{ kind: "look" }]) : step(state);
  if (status === "postcopy-paused") return served(state, [{ kind: "cut" }]);
  if (status === "completed" && !beforeRelease(state)) return served(state);
  if (!beforeRelease(state)) return step(state);
  if (status === "failed" || status === "cancelled") return giveUp(state, "migrate-failed", `the hypervisor says ${status}`);
  if (status === "pre-switchover" && state.plan.disks) return step(state, [{ kind: "close-disks" }, { kind: "timer", name: "disks", delay: DISKS_HAND_OVER }]);
  if (status === "pre-switchover") return step(state, [{ kind: "continue-switchover" }]);
  if (status === "completed" && state.plan.disks && state.disks !== "closed") return giveUp(state, "disk-failed", "the memory was handed over before the disks");
  if (status === "postcopy-active") return changeState({ ...state, postcopy: "begun" }, "releasing", [{ kind: "stop-timer", name: "copy" }, { kind: "stop-timer", name: "hold" }, { kind: "record", state: "released" }]);
  // Events of one QMP connection are in order: STOP came before. Should it be lost, the completed stream still proves that the guest stands.
  if (status === "completed") return changeState(state, "releasing", [{ kind: "stop-timer", name: "copy" }, { kind: "stop-timer", name: "hold" }, { kind: "record", state: "released" }]);
  return step(state);
}

/** No more of the memory is sent from here. It is said once more: who wanted to revoke it meanwhile was refused, and may have given that up. */
function served(state: SourceState, effects: readonly SourceEffect[] = []): SourceStep {
  if (state.phase === "serving") return changeState({ ...state, postcopy: "over" }, "released", [...effects, { kind: "report-released" }]);
  return state.phase === "releasing" && state.postcopy === "begun" ? step({ ...state, postcopy: "over" }, effects) : step(state);
}

/**
 * With the gate shut and nothing left to copy, QEMU looks through the memory thousands of times a second, which costs a core and, emulating, has broken
 * guests. So the stream stands still from the first pass that may be enough until it is known how much is left.
 */
function passed(state: SourceState, { passes, at, heardAt }: SourceEvent & { readonly kind: "pass" }): SourceStep {
  if (state.phase !== "copying" || !state.plan.lead || passes < MEASURED_PASSES) return step(state);
  if (!state.stalled) return step({ ...state, stalled: true, pass: passes, stalledAt: heardAt, stillFrom: null }, [{ kind: "stall" }, { kind: "measure" }]);
  const next: SourceState = { ...state, pass: passes, stillFrom: state.stillFrom ?? (at > state.stalledAt ? passes : null) };
  return isAtRest(passes, next.stillFrom) ? askForLead(next) : step(next);
}

function progressed(state: SourceState, event: SourceEvent & { readonly kind: "progress" }): SourceStep {
  const { passes, remaining } = event;
  const { downtimeLimitMs } = state.plan;
  const next = { ...state, passes, bytes: Math.max(state.bytes, event.transferred) };
  // The hypervisor pushes what is missing whether it is asked for or not.
  if (state.phase === "serving" && remaining !== state.leftBefore) return step({ ...next, leftBefore: remaining }, [SERVE_TIMER]);
  if (state.phase !== "copying") return step(next);
  const postcopy = state.plan.postcopy && state.postcopy === "no";
  if (!state.plan.lead) return postcopy && isBeyondThirdPass(event) ? beginPostcopy(next) : step(next);
  if (!state.stalled) return enoughByEstimate(event, downtimeLimitMs) ? askForLead(next) : step(next);
  // Asked before that pass.
  if (passes < state.pass) return step(next, [{ kind: "measure" }]);
  if (enoughIsCopied(event, state.leftBefore, downtimeLimitMs)) return askForLead(next);
  if (postcopy && doesNotConverge(event, downtimeLimitMs)) return beginPostcopy(next);
  return step({ ...next, stalled: false, leftBefore: remaining }, [{ kind: "flow" }]);
}

/** From here on packets go to the target, so the guest must stop soon: what was told of the stream's rate, which stands still now, must not keep it from stopping. */
function askForLead(state: SourceState, prefer: readonly SourceEffect[] = [{ kind: "prefer-switchover" }]): SourceStep {
  return changeState({ ...state, stalled: true }, "leading", [
    { kind: "stall" }, ...prefer,
    { kind: "tell-lead-ready" }, { kind: "watch-marker", token: leadToken(state.plan.epoch) }, { kind: "timer", name: "hold", delay: state.plan.holdMaxMs },
  ]);
}

/** The time is over and the guest shall move all the same. Nothing is lost by that but time: it stands for as long as the rest takes. */
function force(state: SourceState): SourceStep {
  const forced: SourceState = { ...state, forced: true };
  const limit: SourceEffect = { kind: "timer", name: "copy", delay: state.plan.forceMs };
  if (state.phase !== "copying" || !state.plan.lead) return step(forced, [limit, { kind: "force-switchover" }]);
  const asked = askForLead(forced, [{ kind: "force-switchover" }]);
  return { ...asked, effects: [limit, ...asked.effects] };
}

/** By the same gate as ever; behind it the guest is stopped and goes over whatever is left (`open`). A guest that the hypervisor has stopped already goes its way. */
function beginPostcopy(state: SourceState): SourceStep {
  const next: SourceState = state.phase === "stopped" ? { ...state, forced: true } : { ...state, postcopy: "asked" };
  const limit: SourceEffect = { kind: "timer", name: "copy", delay: state.plan.forceMs };
  if (state.phase === "stopped" || state.phase === "leading" || state.phase === "awaiting") return step(next, [limit]);
  if (state.phase !== "copying" || !state.plan.lead) return step(next, [limit, { kind: "start-postcopy" }]);
  const asked = askForLead(next, []);
  return { ...asked, effects: [limit, ...asked.effects] };
}

function leadGranted(state: SourceState, token: number): SourceStep {
  if (state.phase === "awaiting" || state.phase === "opened" || state.phase === "stopped") return step(state); // the marker has overtaken it
  if (state.phase !== "leading") return step(state, [], "not-moving");
  // The marker must come any moment now, so it is looked for more often again.
  return changeState(state, "awaiting", [{ kind: "watch-marker", token }]);
}

function markerSeen(state: SourceState, at: Millis): SourceStep {
  const next = { ...state, markerAt: state.markerAt ?? at };
  // It may be here before the home agent's answer, and says as much.
  if (state.phase !== "awaiting" && state.phase !== "leading") return step(next);
  return open({ ...next, hold: "led" }, state.postcopy === "asked" ? [] : [{ kind: "halt-guest" }]);
}

function open(state: SourceState, halt: readonly SourceEffect[] = []): SourceStep {
  return changeState(state, "opened", [...halt, ...(state.postcopy === "asked" ? [{ kind: "start-postcopy" } as const] : []), { kind: "open-gate" }, { kind: "timer", name: "hold", delay: state.plan.holdMaxMs }]);
}

function timerFired(state: SourceState, name: SourceTimer): SourceStep {
  if (name === "hold" && (state.phase === "leading" || state.phase === "awaiting")) return open({ ...state, hold: "hold-expired" });
  // It has begun to write more than it may: it is deaf since the marker, and has to stop now.
  if (name === "hold" && state.phase === "opened" && state.postcopy === "no") return step(state, [{ kind: "force-switchover" }]);
  if (name === "copy" && beforeRelease(state)) {
    if (state.plan.postcopy && state.postcopy === "no" && !state.forced && state.sending) return beginPostcopy(state);
    if (state.plan.onTimeout === "force" && state.postcopy === "no" && !state.forced && state.sending) return force(state);
    const { plan } = state;
    return giveUp(state, "timed-out", state.forced ? `not completed within ${String(plan.forceMs)} ms after it was forced` : state.postcopy === "asked" ? `did not go over by postcopy within ${String(plan.forceMs)} ms` : `not completed within ${String(plan.timeoutMs)} ms`);
  }
  if (name === "disks" && beforeRelease(state) && state.disks !== "closed") return giveUp(state, "timed-out", state.phase === "mirroring" ? `no byte of the disks was copied for ${String(DISKS_STILL)} ms` : `the disks were not handed over within ${String(DISKS_HAND_OVER)} ms`);
  // A hypervisor that stands, say. The relay lives as long as the agents do, and the target would wait for ever for what does not come.
  if (name === "serve" && state.phase === "serving") return served({ ...state, detail: `nothing of its memory was sent for ${String(SERVE_STILL)} ms` }, [{ kind: "cut" }]);
  if (name === "look" && state.phase === "returning") return step(state, [{ kind: "look" }]);
  if (name === "look" && state.phase === "reclaiming") return step(state, [{ kind: "record", state: "resumed" }]);
  return step(state);
}

function stopped(state: SourceState, at: Millis): SourceStep {
  if (!beforeRelease(state)) return step(state);
  const early = state.plan.lead && (state.phase === "copying" || state.phase === "leading" || state.phase === "awaiting");
  const next: SourceState = { ...state, stopAt: at, hold: early ? "stopped-early" : state.hold };
  // Without the gate nothing may hold the way back now: the stream could never complete.
  const gate: SourceEffect[] = early ? [{ kind: "open-gate" }] : [];
  return changeState(next, "stopped", [{ kind: "forward" }, { kind: "tell-switch-over" }, ...(state.plan.lead ? [{ kind: "stop-timer", name: "hold" } as const] : []), ...gate]);
}

function guestResumed(state: SourceState): SourceStep {
  if (state.phase === "returning") return step(state, [{ kind: "look" }]);
  // It resumed by itself, so its migration has failed; the reason follows in a stream event or is asked for.
  if (state.phase === "stopped") return giveUp(state, "migrate-failed", "the hypervisor resumed the guest");
  return step(state);
}

function guestSeen(state: SourceState, seen: { readonly status: GuestStatus; readonly stream: StreamStatus }): SourceStep {
  if (seen.status === "gone") return guestGone(state);
  if (state.phase !== "returning") return step(state);
  // The hypervisor neither cancels nor continues it any more. Nobody has run it elsewhere: without RELEASE, or with the proof that was given for `resume`.
  if (inPostcopy(seen.stream)) {
    return changeState({ ...state, reason: "postcopy-broken", detail: "its memory was to follow it, and it never ran at the target" }, "gone", [{ kind: "cut" }, ...stopTimers(), { kind: "end-guest" }, { kind: "report-ended", result: "source-gone" }]);
  }
  const copying = seen.stream === "setup" || seen.stream === "active" || seen.stream === "pre-switchover" || seen.stream === "device" || seen.stream === "cancelling";
  if (copying) return step(state, [{ kind: "cancel-send" }, { kind: "timer", name: "look", delay: LOOK_AGAIN }]);
  // What writes to the target as well must be gone before the guest is one like any other.
  if (seen.status === "running" && dropDisks(state).length > 0) return step(state, [...dropDisks(state), { kind: "timer", name: "look", delay: LOOK_AGAIN }]);
  if (seen.status === "running") return changeState(state, "runs", [{ kind: "deliver" }, { kind: "report-ended", result: "source-runs" }]);
  return step(state, [{ kind: "resume-guest" }, { kind: "timer", name: "look", delay: LOOK_AGAIN }]);
}

function guestGone(state: SourceState): SourceStep {
  if (state.phase === "serving" || (state.phase === "releasing" && state.postcopy === "begun")) return served(state, [{ kind: "cut" }]);
  // A released guest is dead weight: its end changes nothing, unless somebody counts on its coming back.
  if (state.phase === "released" || state.phase === "releasing" || ended(state)) return step(state);
  return changeState({ ...state, reason: "source-gone" }, "gone", [{ kind: "cut" }, ...stopTimers(), { kind: "report-ended", result: "source-gone" }]);
}

function commandFailed(state: SourceState, command: string, detail: string): SourceStep {
  if (state.phase === "returning") return step(state, [{ kind: "timer", name: "look", delay: LOOK_AGAIN }]);
  // A poll that was late is no reason to give up; the relay, the stream's own events and the time limit decide.
  if (command === "progress" || command === "look" || command === "cancel-send" || command === "prefer-switchover" || command === "force-switchover" || command === "halt-guest") return step(state);
  return beforeRelease(state) ? giveUp(state, "migrate-failed", `${command}: ${detail}`) : step(state);
}

function abort(state: SourceState, reason: Reason): SourceStep {
  if (beforeRelease(state)) return giveUp(state, reason, "told to give up");
  if (state.phase === "returning" || state.phase === "reclaiming") return step(state);
  if (ended(state)) return step(state, state.phase === "revoked" ? [] : [{ kind: "report-ended", result: state.phase === "gone" ? "source-gone" : "source-runs" }]);
  return step(state, [], "not-permitted");
}

function resumeByProof(state: SourceState): SourceStep {
  if (state.phase === "released" || state.phase === "serving") return changeState(state, "reclaiming", [{ kind: "record", state: "resumed" }]);
  if (state.phase === "runs") return step(state, [{ kind: "report-ended", result: "source-runs" }]);
  if (state.phase === "reclaiming" || state.phase === "returning") return step(state);
  return step(state, [], "not-permitted");
}

function revoke(state: SourceState): SourceStep {
  if (state.phase === "released") return changeState(state, "revoked", [{ kind: "cut" }, { kind: "destroy-guest" }]);
  return step(state, [], state.phase === "revoked" ? "accepted" : "not-permitted");
}

/** Takes the guest back: cut the stream, cancel, and look until it runs. Only before RELEASE. */
function giveUp(state: SourceState, reason: Reason, detail: string): SourceStep {
  return changeState({ ...state, reason, detail }, "returning", [
    ...stopTimers(), ...(state.plan.disks ? [{ kind: "stop-timer", name: "disks" } as const] : []), { kind: "cut" }, ...(state.sending ? [{ kind: "cancel-send" } as const] : []), ...dropDisks(state), { kind: "look" },
  ]);
}

function dropDisks({ disks }: SourceState): SourceEffect[] {
  return disks === "copying" || disks === "ready" ? [{ kind: "drop-disks" }] : [];
}

function copyTimer(plan: SourcePlan): SourceEffect {
  return { kind: "timer", name: "copy", delay: plan.timeoutMs };
}

function stopTimers(): SourceEffect[] {
  return [{ kind: "stop-timer", name: "copy" }, { kind: "stop-timer", name: "hold" }, { kind: "stop-timer", name: "look" }];
}

/** Every change of phase, of the diagram above. */
function changeState(state: SourceState, phase: SourcePhase, effects: readonly SourceEffect[]): SourceStep {
  return step({ ...state, phase }, effects);
}

function step(state: SourceState, effects: readonly SourceEffect[] = [], decision: Reason = "accepted"): SourceStep {
  return { state, effects, decision };
}
