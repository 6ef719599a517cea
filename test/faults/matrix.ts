import type { HoldPoint } from "../../agent/hold.js";

/** What is broken, each at every phase. */
export const FAULTS = {
  "target-agent": "target's agent killed (-9), restarted after it was given up",
  "target-qemu": "target's QEMU killed (-9)",
  "source-agent": "source's agent killed (-9) and restarted",
  "source-qemu": "source's QEMU killed (-9)",
  "home-agent": "home agent killed (-9) and restarted",
  "cut-hosts": "link cut between the hosts",
  "cut-source": "link cut between home agent and source",
  "cut-target": "link cut between home agent and target",
  "cut-both": "links cut between home agent and both hosts",
  cancel: "`careof migrate` interrupted (Ctrl-C)",
} as const;
export type Fault = keyof typeof FAULTS;

/** When it is broken. All but `copy` and `postcopy`, which are made slow instead, are points at which the agents stand still for the test (agent/hold.ts). */
export const PHASES = {
  prepare: "the target is ready and has not said so",
  copy: "a third of the memory is copied",
  lead: "re-pointed and drained, the gate is shut",
  stop: "the guest stands, before RELEASE",
  completed: "all is sent, RELEASE is not written",
  release: "RELEASE is on the source's disk and not sent",
  grant: "the target has RELEASE and has not continued",
  settle: "it runs at the target, nobody knows",
  postcopy: "`--postcopy`: it runs at the target, four fifths of its memory are still at the source",
} as const satisfies Record<HoldPoint | "copy" | "postcopy", string>;
export type Phase = keyof typeof PHASES;

/** `stays` on its old host, `moves` to the new one, `dies` with its only QEMU. LOST on the way is seen apart from where it ends. */
export type Ending = "stays" | "moves" | "dies";

const S = ["stays"] as const;
const M = ["moves"] as const;
const D = ["dies"] as const;
/** Both are right: the fault races with the migration, which goes on meanwhile. */
const B = ["stays", "moves"] as const;

const PHASE_NAMES = ["prepare", "copy", "lead", "stop", "completed", "release", "grant", "settle", "postcopy"] as const satisfies readonly Phase[];
/** Where it may end, in the order of PHASE_NAMES. What neither follows from the right to run nor from the home agent's rules is no pass. */
const ENDINGS: Readonly<Record<Fault, readonly (readonly Ending[])[]>> = {
  "target-agent": [S, S, S, S, S, S, S, M, D],
  "target-qemu": [S, S, S, S, S, S, S, D, D],
  "source-agent": [B, S, S, S, S, M, M, M, D],
  "source-qemu": [D, D, D, D, D, M, M, M, D],
  "home-agent": [S, M, M, M, M, M, M, M, M],
  "cut-hosts": [S, S, S, S, B, M, M, M, D],
  "cut-source": [S, B, M, M, M, M, M, M, M],
  "cut-target": [S, S, B, M, M, M, M, M, M],
  "cut-both": [S, B, B, M, M, M, M, M, M],
  cancel: [S, S, S, S, S, M, M, M, M],
};

export interface Cell {
  readonly fault: Fault;
  readonly phase: Phase;
  readonly endings: readonly Ending[];
}

/** What CI runs: each fault at least twice, each phase, and every cell in which something else decides. */
const HALF: Readonly<Record<Fault, readonly Phase[]>> = {
  "target-agent": ["copy", "stop", "grant", "settle", "postcopy"],
  "target-qemu": ["prepare", "stop", "release", "settle"],
  "source-agent": ["copy", "completed", "release", "settle", "postcopy"],
  "source-qemu": ["copy", "release"],
  "home-agent": ["prepare", "lead", "release", "settle", "postcopy"],
  "cut-hosts": ["copy", "stop", "release"],
  "cut-source": ["copy", "grant"],
  "cut-target": ["lead", "grant"],
  "cut-both": ["stop", "settle"],
  cancel: ["copy", "lead", "release"],
};

export function isFault(name: string): name is Fault {
  return name in FAULTS;
}

export function isPhase(name: string): name is Phase {
  return name in PHASES;
}

export function cells(choice: { readonly half: boolean; readonly fault: Fault | null; readonly phase: Phase | null }): Cell[] {
  return Object.keys(FAULTS).filter(isFault).flatMap((fault) => PHASE_NAMES
    .map((phase, index) => ({ fault, phase, endings: ENDINGS[fault][index] ?? [] }))
    .filter(({ phase }) => (choice.fault === null || choice.fault === fault) && (choice.phase === null || choice.phase === phase) && (!choice.half || HALF[fault].includes(phase))));
}

/** A moment that is long because little bandwidth makes it so. */
export function isSlow(phase: Phase): boolean {
  return phase === "copy" || phase === "postcopy";
}

export function phaseNames(): readonly Phase[] {
  return PHASE_NAMES;
}
