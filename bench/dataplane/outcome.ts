import { estimate, quantile, ratios, type Interval } from "../statistics.js";
import type { Metric, Round, Sample } from "./measure.js";

export const VARIANTS = ["plain", "bpf", "ipip", "vxlan", "wireguard-go"] as const;
/** `device`: the bare kernel ipip device, beside which our driver for it is measured. */
export type VariantName = (typeof VARIANTS)[number] | "device";

/** The ratios of one way to another, each the median of the rounds' ratios. */
export interface Ratios {
  readonly tcpDownRatio: number | null;
  readonly tcpUpRatio: number | null;
  readonly tcp8DownRatio: number | null;
  readonly tcp8UpRatio: number | null;
  readonly ppsRatio: number | null;
  readonly ppsUpRatio: number | null;
  /** More is worse. */
  readonly cpuPerPacketRatio: number | null;
}

export type RatioName = keyof Ratios;

/** `null` where a ratio was not measured, or in too few rounds for an interval. */
export type Intervals = Readonly<Record<RatioName, Interval | null>>;

export interface Compared extends Ratios {
  readonly ci95: Intervals;
}

/** One variant as the JSON has it: medians over the rounds, ratios to `plain`. One TCP stream unless the name says eight; packets of 64 bytes. */
export interface VariantResult extends Compared {
  readonly name: VariantName;
  readonly tcpDownGbps: number | null;
  readonly tcpUpGbps: number | null;
  readonly tcp8DownGbps: number | null;
  readonly tcp8UpGbps: number | null;
  readonly pps: number | null;
  readonly ppsUp: number | null;
  readonly cpuNsPerPacket: number | null;
  /** Why there are no figures. */
  readonly notMeasured?: string;
  /** Another machine than the other variants': only the ratios, which are to its own plain forwarding, can be compared. */
  readonly measuredIn?: string;
}

/** What ten thousand bindings cost: the same driver with so many at both ends beside one. */
export interface BindingsResult {
  readonly bindings: number;
  /** Traffic to one of them; ratios to the same with one binding. */
  readonly one: Compared;
  /** Packets to all of them in turn; ratio to plain forwarding of the same packets. */
  readonly all: { readonly pps: number | null; readonly ppsRatio: number | null; readonly ci95: Interval | null };
}

const OF: Readonly<Record<RatioName, (round: Round) => number | null>> = {
  tcpDownRatio: (round) => round.tcpDown.rate,
  tcpUpRatio: (round) => round.tcpUp.rate,
  tcp8DownRatio: (round) => round.tcp8Down.rate,
  tcp8UpRatio: (round) => round.tcp8Up.rate,
  ppsRatio: (round) => round.ppsDown.rate,
  ppsUpRatio: (round) => round.ppsUp.rate,
  cpuPerPacketRatio: (round) => round.ppsDown.cpuNs,
};

export const RATIOS: readonly RatioName[] = ["tcpDownRatio", "tcpUpRatio", "tcp8DownRatio", "tcp8UpRatio", "ppsRatio", "ppsUpRatio", "cpuPerPacketRatio"];

/** Round by round: the n-th of `rounds` stands beside the n-th of `base`. */
export function compare(rounds: readonly Round[], base: readonly Round[]): Compared {
  const estimates = RATIOS.map((name) => [name, estimate(ratios(rounds.map(OF[name]), base.map(OF[name])))] as const);
  const pick = (name: RatioName): number | null => rounded(estimates.find(([each]) => each === name)?.[1].median ?? null, 4);
  const interval = (name: RatioName): Interval | null => {
    const found = estimates.find(([each]) => each === name)?.[1].ci95 ?? null;
    return found === null ? null : [rounded(found[0], 4), rounded(found[1], 4)];
  };
  return { ...byName(pick), ci95: byName(interval) };
}

function byName<T>(pick: (name: RatioName) => T): Readonly<Record<RatioName, T>> {
  return {
    tcpDownRatio: pick("tcpDownRatio"), tcpUpRatio: pick("tcpUpRatio"), tcp8DownRatio: pick("tcp8DownRatio"), tcp8UpRatio: pick("tcp8UpRatio"),
    ppsRatio: pick("ppsRatio"), ppsUpRatio: pick("ppsUpRatio"), cpuPerPacketRatio: pick("cpuPerPacketRatio"),
  };
}

export function variantResult(name: VariantName, rounds: readonly Round[], plain: readonly Round[]): VariantResult {
  const median = (metric: Metric, digits: number): number | null => rounded(middle(rounds.map((round) => round[metric].rate)), digits);
  return {
    name,
    tcpDownGbps: median("tcpDown", 3), tcpUpGbps: median("tcpUp", 3), tcp8DownGbps: median("tcp8Down", 3), tcp8UpGbps: median("tcp8Up", 3),
    pps: median("ppsDown", 0), ppsUp: median("ppsUp", 0), cpuNsPerPacket: rounded(middle(rounds.map((round) => round.ppsDown.cpuNs)), 0),
    ...compare(rounds, plain),
  };
}

/** In the list with its reason: what is missing shall not look forgotten. */
export function notMeasured(name: VariantName, reason: string): VariantResult {
  return { ...variantResult(name, [], []), notMeasured: reason };
}

export function bindingsResult(bindings: number, rounds: readonly Round[], one: readonly Round[], all: readonly Sample[], plain: readonly Sample[]): BindingsResult {
  const { ci95, median } = estimate(ratios(all.map(({ rate }) => rate), plain.map(({ rate }) => rate)));
  return {
    bindings, one: compare(rounds, one),
    all: { pps: rounded(middle(all.map(({ rate }) => rate)), 0), ppsRatio: rounded(median, 4), ci95: ci95 === null ? null : [rounded(ci95[0], 4), rounded(ci95[1], 4)] },
  };
}

function middle(values: readonly (number | null)[]): number | null {
  return quantile(values.filter((value) => value !== null).sort((one, other) => one - other), 0.5);
}

function rounded(value: number, digits: number): number;
function rounded(value: number | null, digits: number): number | null;
function rounded(value: number | null, digits: number): number | null {
  return value === null ? null : Number(value.toFixed(digits));
}
