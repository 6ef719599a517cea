import type { HostName, WireDelay } from "../../deploy/lab/plan.js";

/** One series of moves under the same circumstances. */
export interface HandoverCase {
  readonly name: string;
  /** Numbered packets per second and direction. */
  readonly pps: number;
  /** Delay in ms of one way between home agent and hosts; the larger where they differ. */
  readonly delayMs: number;
  readonly wires: Partial<Readonly<Record<HostName, WireDelay>>>;
  /** The target holds the guest for so long, in ms, before it lets it run. */
  readonly pauseMs: number;
  /** Mbit/s and direction. */
  readonly bulkMbit: number;
  /** Beside the same migration without any change of network, in turns. */
  readonly control: boolean;
  /** False: the guest is stopped without the gate. */
  readonly lead?: boolean;
}

const far: WireDelay = { thereUs: 20_000, backUs: 20_000 };

export const CASES: readonly HandoverCase[] = [
  { name: "udp-1k", pps: 1000, delayMs: 0, wires: {}, pauseMs: 0, bulkMbit: 20, control: true },
  // No bulk beside it: on two cores two emulated guests come to 9,800 of these packets a second as it is; a bulk stream would only lower that rate.
  { name: "udp-10k", pps: 10_000, delayMs: 0, wires: {}, pauseMs: 0, bulkMbit: 0, control: false },
  { name: "long-pause", pps: 1000, delayMs: 0, wires: {}, pauseMs: 2000, bulkMbit: 5, control: false },
  { name: "delay-20ms", pps: 1000, delayMs: 20, wires: { "host-a": far, "host-b": far }, pauseMs: 0, bulkMbit: 5, control: false },
  { name: "asymmetric", pps: 1000, delayMs: 20, wires: { "host-a": far }, pauseMs: 0, bulkMbit: 5, control: false },
];
