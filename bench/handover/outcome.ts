import type { CountedWindow } from "../../deploy/lab/flips.js";
import type { Move } from "../../deploy/lab/lab.js";
import { spread, type Spread } from "../statistics.js";
import type { HandoverCase } from "./cases.js";

/** One move: what careof says of it, and what the correspondent counted from 2 s before to 2 s after it. */
export interface Counted {
  readonly move: Pick<Move, "result" | "pauseMs" | "gapDownMs" | "gapUpMs" | "overflowed" | "hold">;
  readonly window: CountedWindow;
  /** What the guest's port has dropped in the window, at either host; `null` where nobody looked. */
  readonly portDropped: number | null;
}

export interface ControlCounted {
  readonly serviceGapDownMs: number | null;
  readonly serviceGapUpMs: number | null;
}

/** One case as the JSON has it. */
export interface CaseResult {
  readonly name: string;
  readonly pps: number;
  readonly delayMs: number;
  readonly moves: number;
  readonly completed: number;
  readonly sentDown: number;
  readonly receivedDown: number;
  readonly sentUp: number;
  readonly receivedUp: number;
  /** Of the slower direction: what the sender managed to send. */
  readonly achievedPps: number | null;
  readonly lostDown: number;
  readonly lostUp: number;
  readonly duplicated: number;
  readonly reordered: number;
  /** Part of `lostDown`: what found the queue of the guest's port full, as careof says it; `null` where it said nothing. */
  readonly overflowed: number | null;
  /** Part of `lostDown`: what found that queue full at any time in the windows, as the kernel counts it: `overflowed`, and what a guest that is too slow has left to lie. */
  readonly portDropped: number | null;
  /** Part of `lostDown`: what arrived in the guest and found the buffer of its socket full. */
  readonly guestRefused: number;
  readonly tcpSurvived: boolean | null;
  /** Of an external case: the time in which the VM had no cable. */
  readonly pauseMs: Spread;
  readonly gapDownMs: Spread;
  /** Part of `gapDownMs`: until the agent opened the gate. The rest of it is the hypervisor's, until the guest stood. */
  readonly gateMs: Spread;
  readonly gapUpMs: Spread;
  readonly serviceGapDownMs: Spread;
  readonly serviceGapUpMs: Spread;
  readonly controlServiceGapDownMs: Spread;
  readonly controlServiceGapUpMs: Spread;
  readonly tcpStallMs: Spread;
}

/** `tcpSurvived` is `null` where there were no sessions. A direction without a packet has no rate. */
export function caseResult(of: Pick<HandoverCase, "name" | "pps" | "delayMs">, counted: readonly Counted[], control: readonly ControlCounted[], tcpSurvived: boolean | null, gates: readonly (number | null)[] = []): CaseResult {
  const sum = (pick: (window: CountedWindow) => number): number => counted.reduce((total, { window }) => total + pick(window), 0);
  const seconds = sum((window) => window.t1 - window.t0) / 1000;
  const sentDown = sum((window) => window.sentDown);
  const sentUp = sum((window) => window.sentUp);
  const receivedDown = sum((window) => window.receivedDown);
  const receivedUp = sum((window) => window.receivedUp);
  return {
    name: of.name, pps: of.pps, delayMs: of.delayMs, moves: counted.length,
    completed: counted.filter(({ move }) => move.result === "completed").length,
    sentDown, receivedDown, sentUp, receivedUp,
    achievedPps: seconds === 0 ? null : Math.round(Math.min(...[sentDown, sentUp].filter((sent) => sent > 0)) / seconds),
    lostDown: sentDown - receivedDown, lostUp: sentUp - receivedUp,
    duplicated: sum((window) => window.duplicatedDown + window.duplicatedUp),
    reordered: sum((window) => window.reorderedDown + window.reorderedUp),
    overflowed: counted.every(({ move }) => move.overflowed === null) ? null : counted.reduce((total, { move }) => total + (move.overflowed ?? 0), 0),
    portDropped: counted.every(({ portDropped }) => portDropped === null) ? null : counted.reduce((total, { portDropped }) => total + (portDropped ?? 0), 0),
    guestRefused: sum((window) => window.guestRefused),
    tcpSurvived,
    pauseMs: spread(counted.map(({ move }) => move.pauseMs)),
    gapDownMs: spread(counted.map(({ move }) => move.gapDownMs)),
    gateMs: spread(gates),
    gapUpMs: spread(counted.map(({ move }) => move.gapUpMs)),
    serviceGapDownMs: spread(counted.map(({ window }) => window.serviceGapDownMs)),
    serviceGapUpMs: spread(counted.map(({ window }) => window.serviceGapUpMs)),
    controlServiceGapDownMs: spread(control.map((each) => each.serviceGapDownMs)),
    controlServiceGapUpMs: spread(control.map((each) => each.serviceGapUpMs)),
    tcpStallMs: spread(counted.map(({ window }) => longer(window.tcpStallDownMs, window.tcpStallUpMs))),
  };
}

function longer(one: number | null, other: number | null): number | null {
  return one === null || other === null ? null : Math.max(one, other);
}

/** The table of RESULTS.md. */
export function caseTable(results: readonly CaseResult[]): string {
  const ms = ({ median, p90, max }: Spread): string => [median, p90, max].map((value) => (value === null ? "–" : value.toFixed(1))).join(" / ");
  const rows = results.map((result) => [
    result.name, `${String(result.completed)} of ${String(result.moves)}`, String(result.achievedPps ?? "–"),
    `${String(result.lostDown)} of ${String(result.sentDown)}`, `${String(result.portDropped ?? "–")} (${String(result.overflowed ?? "–")}) / ${String(result.guestRefused)}`, `${String(result.lostUp)} of ${String(result.sentUp)}`, `${String(result.duplicated)} / ${String(result.reordered)}`,
    ms(result.pauseMs), ms(result.gapDownMs), ms(result.gateMs), ms(result.gapUpMs), ms(result.serviceGapDownMs), ms(result.serviceGapUpMs), ms(result.controlServiceGapDownMs), ms(result.controlServiceGapUpMs), ms(result.tcpStallMs),
    result.tcpSurvived === null ? "–" : result.tcpSurvived ? "yes" : "NO",
  ]);
  const head = ["case", "moves", "packets/s", "lost down", "of these full queue (while it stood) / full socket", "lost up", "dup. / reord.", "pause", "gap down", "of it to the gate", "gap up", "service gap down", "up", "control down", "up", "TCP stall", "TCP lives"];
  return ["Milliseconds are median / 90 % / longest. The pause of an external case is the time in which the VM had no cable.", "", ...[head, head.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |`)].join("\n");
}
