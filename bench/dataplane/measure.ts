import { toCareofError } from "../../model/errors.js";
import { PLAN } from "../../deploy/lab/plan.js";
import { flood, type Flood, type FloodReport } from "./flood.js";
import { FIRST_HOME } from "./network.js";
import type { Path } from "./variants.js";

/** Down is towards the guest. */
type Direction = "down" | "up";

/** What is measured of every path in every round. */
export const METRICS = ["tcpDown", "tcpUp", "tcp8Down", "tcp8Up", "ppsDown", "ppsUp"] as const;
export type Metric = (typeof METRICS)[number];

const HOW: Readonly<Record<Metric, { readonly kind: Flood["kind"]; readonly streams: number; readonly direction: Direction }>> = {
  tcpDown: { kind: "tcp", streams: 1, direction: "down" },
  tcpUp: { kind: "tcp", streams: 1, direction: "up" },
  tcp8Down: { kind: "tcp", streams: 8, direction: "down" },
  tcp8Up: { kind: "tcp", streams: 8, direction: "up" },
  ppsDown: { kind: "udp", streams: 1, direction: "down" },
  ppsUp: { kind: "udp", streams: 1, direction: "up" },
};

/** TCP: Gbit/s of payload. UDP: packets/s that arrived, and the processors' time for one, in ns, sender and receiver included. `null`: nothing arrived. */
export interface Sample {
  readonly rate: number | null;
  readonly cpuNs: number | null;
}

export type Round = Readonly<Record<Metric, Sample>>;

export interface Times {
  readonly warmMs: number;
  readonly windowMs: number;
}

export async function sample(path: Path, metric: Metric, times: Times): Promise<Sample> {
  const { kind, streams, direction } = HOW[metric];
  return rated(kind, await attempt({ ...ends(path, direction), kind, width: streams, ...times }));
}

/** Packets to so many home addresses in turn, as a home agent has them; the guest answers to all. */
export async function spreadSample(path: Path, addresses: number, times: Times): Promise<Sample> {
  return rated("udp", await attempt({ ...ends(path, "down"), kind: "udp", width: addresses, ...times }));
}

export function ends({ network }: Path, direction: Direction): Pick<Flood, "from" | "to" | "address"> {
  const [correspondent, guest] = [network.name("c"), network.guest];
  return direction === "down" ? { from: correspondent, to: guest, address: FIRST_HOME } : { from: guest, to: correspondent, address: PLAN.correspondent };
}

/** A flood that does not arrive is a figure that is missing, not the end of all others. */
async function attempt(of: Flood): Promise<FloodReport | null> {
  try {
    return await flood(of);
  } catch (thrown) {
    process.stderr.write(`  not measured: ${toCareofError(thrown).message}\n`);
    return null;
  }
}

export function rated(kind: Flood["kind"], report: FloodReport | null): Sample {
  if (report === null) return { rate: null, cpuNs: null };
  if (kind === "tcp") return { rate: (report.bytes * 8) / report.ns, cpuNs: null };
  return { rate: (report.packets * 1e9) / report.ns, cpuNs: report.packets === 0 ? null : report.busyNs / report.packets };
}
