import { readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";

/**
 * Where the time of a move by careof goes, one behind the other, in milliseconds:
 *   request   `careof migrate` is started and has the home agent decide (not part of the total)
 *   prepare   the target makes everything ready; `qemu` of it until its QEMU answers
 *   begin     the source connects its relay, QEMU begins to send
 *   disks     the disks are copied
 *   copy      the memory is copied while the guest runs
 *   drain     what the relay has read goes on to the target, the guest still runs
 *   lead      the tunnel is re-pointed, the marker comes, the gate is opened
 *   stop      QEMU stops the guest
 *   state     the pause begins: the last state is sent, QEMU says completed
 *   resume    RELEASE is written and sent, the target writes and continues the guest: the pause ends
 *   settle    the home agent has the last word of both hosts: the total ends
 *   answer    `careof migrate` says so and ends (not part of the total)
 */
export const PHASES = ["request", "prepare", "qemu", "begin", "disks", "copy", "drain", "lead", "stop", "state", "resume", "settle", "answer"] as const;

export type Phase = (typeof PHASES)[number];

const entry = z.looseObject({
  time: z.string(), msg: z.string(), event: z.string().optional(), ask: z.string().optional(), to: z.string().optional(), stream: z.string().optional(),
});

interface Said extends z.infer<typeof entry> {
  readonly at: number;
}

const PARTS = ["home-agent", "host-a", "host-b"] as const;

/** The parts of the lab say in their logs when they enter a phase, and have one clock. */
export class PhaseReader {
  readonly #directory: string;
  readonly #read = new Map<string, number>();

  constructor(directory: string) {
    this.#directory = directory;
    this.#news();
  }

  /** Of the move that began (`careof migrate` was started) and ended (it had ended) at these times of the wall clock, since the last call. What no part has said is left out. */
  of(begun: number, ended: number): Partial<Record<Phase, number>> {
    const said = this.#news();
    const when = (wanted: (line: Said) => boolean): number | null => said.find(wanted)?.at ?? null;
    const enters = (side: "source" | "target", phase: string): number | null => when(({ msg, to }) => msg === side && to === phase);
    const decided = when(({ msg, event }) => msg === "decided" && event === "migrate");
    const prepared = when(({ msg, ask }) => msg === "answered" && ask === "prepare");
    const mirroring = enters("source", "mirroring");
    const active = when(({ msg, stream }) => msg === "stream" && stream === "active");
    const leading = enters("source", "leading");
    const ready = when(({ msg, event }) => msg === "decided" && event === "leadReady");
    const opened = enters("source", "opened");
    const stopped = enters("source", "stopped");
    const released = enters("source", "releasing");
    const running = enters("target", "running");
    const completed = when(({ msg }) => msg === "migration completed");
    const between = (from: number | null, to: number | null): number | null => (from === null || to === null ? null : Math.max(0, to - from));
    const spans: Readonly<Record<Phase, number | null>> = {
      request: between(begun, decided), prepare: between(decided, prepared), qemu: between(decided, when(({ msg }) => msg === "guest process started")), begin: between(prepared, mirroring ?? active),
      disks: between(mirroring, active), copy: between(active, leading ?? stopped), drain: between(leading, ready), lead: between(ready, opened), stop: between(opened, stopped),
      state: between(stopped, released), resume: between(released, running), settle: between(running, completed), answer: between(completed, ended),
    };
    return Object.fromEntries(Object.entries(spans).filter(([, value]) => value !== null));
  }

  #news(): readonly Said[] {
    return PARTS.flatMap((part) => {
      const text = readFileSync(join(this.#directory, `${part}.log`), "utf8");
      const whole = text.lastIndexOf("\n") + 1;
      const fresh = text.slice(this.#read.get(part) ?? 0, whole);
      this.#read.set(part, whole);
      return fresh.split("\n").filter((line) => line.startsWith("{")).map((line) => entry.parse(JSON.parse(line)));
    }).map((line) => ({ ...line, at: Date.parse(line.time) })).sort((one, other) => one.at - other.at);
  }
}
