import type { IpipResult } from "./ipip.js";
import type { Interval } from "../statistics.js";
import type { BindingsResult, RatioName, VariantName, VariantResult } from "./outcome.js";

/** What was aimed at. `met` is `null` where it was not measured. */
export interface Target {
  readonly target: string;
  readonly measured: number | null;
  readonly ci95: Interval | null;
  readonly met: boolean | null;
}

/** TCP in both directions, one stream and eight, beside plain forwarding. */
const TCP = 0.95;
const PPS = 0.9;
const TCP_RATIOS: readonly RatioName[] = ["tcpDownRatio", "tcpUpRatio", "tcp8DownRatio", "tcp8UpRatio"];
const PPS_RATIOS: readonly RatioName[] = ["ppsRatio", "ppsUpRatio"];

/** A target is met when the measured median is not below it; the interval stands beside it for those who want to know how sure that is. */
export function targets(variants: readonly VariantResult[], bindings: BindingsResult | null, ipip: IpipResult | null): Target[] {
  const of = (name: VariantName): VariantResult | undefined => variants.find((each) => each.name === name);
  const [bpf, vxlan] = [of("bpf"), of("vxlan")];
  const found: Target[] = [];
  if (bpf !== undefined) {
    for (const name of TCP_RATIOS) found.push(atLeast(`bpf ${name} ≥ ${String(TCP)}`, bpf[name], bpf.ci95[name], TCP));
    for (const name of PPS_RATIOS) found.push(atLeast(`bpf ${name} ≥ ${String(PPS)}`, bpf[name], bpf.ci95[name], PPS));
    for (const name of [...TCP_RATIOS, ...PPS_RATIOS]) {
      const floor = vxlan?.[name] ?? null;
      found.push(atLeast(`bpf ${name} not below VXLAN's ${floor === null ? "(not measured)" : String(floor)}`, bpf[name], bpf.ci95[name], floor));
    }
  }
  if (ipip !== null) {
    for (const name of [...TCP_RATIOS, ...PPS_RATIOS]) {
      const interval = ipip.besideDevice.ci95[name];
      found.push({ target: `ipip beside the bare device: ${name} not below 1 within the interval`, measured: ipip.besideDevice[name], ci95: interval, met: interval === null ? null : interval[1] >= 1 });
    }
  }
  if (bindings !== null) {
    // Nothing measurable: a difference in either direction that the interval does not exclude.
    for (const name of [...TCP_RATIOS, ...PPS_RATIOS]) {
      const interval = bindings.one.ci95[name];
      found.push({ target: `${String(bindings.bindings)} bindings beside 1: ${name} not below 1 within the interval`, measured: bindings.one[name], ci95: interval, met: interval === null ? null : interval[1] >= 1 });
    }
  }
  return found;
}

function atLeast(target: string, measured: number | null, ci95: Interval | null, floor: number | null): Target {
  return { target, measured, ci95, met: measured === null || floor === null ? null : measured >= floor };
}
