import type { Interval } from "../statistics.js";
import type { DataplaneResult } from "./main.js";
import type { RatioName, VariantResult } from "./outcome.js";
import type { TrafficTimes } from "./program-times.js";

/** The text of RESULTS.md. */
export function report(result: DataplaneResult): string {
  const measured = result.variants.filter((each) => each.notMeasured === undefined);
  const rows = (result.ipip === null ? measured : [...measured, result.ipip.device]).map((each) => [
    `${each.name}${each.measuredIn === undefined ? "" : " ¹"}`, `${number(each.tcpDownGbps, 1)} / ${number(each.tcpUpGbps, 1)}`, ratio(each, "tcpDownRatio"), ratio(each, "tcpUpRatio"),
    `${number(each.tcp8DownGbps, 1)} / ${number(each.tcp8UpGbps, 1)}`, ratio(each, "tcp8DownRatio"), ratio(each, "tcp8UpRatio"),
    `${thousands(each.pps)} / ${thousands(each.ppsUp)}`, ratio(each, "ppsRatio"), ratio(each, "ppsUpRatio"), number(each.cpuNsPerPacket === null ? null : each.cpuNsPerPacket / 1000, 1),
  ]);
  const head = ["variant", "TCP Gbit/s down / up", "ratio down", "ratio up", "8 streams", "ratio down", "ratio up", "64-byte packets/s", "ratio down", "ratio up", "µs of CPU per packet"];
  return [
    `${String(result.rounds)} rounds, one variant after the other. Ratios to plain forwarding: median of the rounds' ratios, in brackets its 95 % interval. Five namespaces on veth, MTU 1500, sender and receiver on one processor each.`,
    "", ...table(head, rows), "",
    ...result.variants.flatMap(({ name, notMeasured }) => (notMeasured === undefined ? [] : [`\`${name}\` is not measured: ${notMeasured}`, ""])),
    ...ipip(result), ...bindings(result), ...verdicts(result), ...programs(result),
  ].join("\n").trimEnd();
}

function ipip({ ipip }: DataplaneResult): string[] {
  if (ipip === null) return [];
  const { besideDevice: of } = ipip;
  return [
    `¹ In user-mode-linux (Linux ${ipip.kernel}, one processor), ${String(ipip.rounds)} rounds; the ratios are to plain forwarding there. \`ipip\` beside \`device\`, the bare kernel device: TCP down ${ratio(of, "tcpDownRatio")}, up ${ratio(of, "tcpUpRatio")}, ` +
      `eight streams down ${ratio(of, "tcp8DownRatio")}, up ${ratio(of, "tcp8UpRatio")}, packets down ${ratio(of, "ppsRatio")}, up ${ratio(of, "ppsUpRatio")}, CPU per packet ${ratio(of, "cpuPerPacketRatio")}.`,
    "",
  ];
}

function bindings({ bindings }: DataplaneResult): string[] {
  if (bindings === null) return [];
  const { all, one } = bindings;
  return [
    `${String(bindings.bindings)} bindings at both ends beside one, traffic to one of them: TCP down ${ratio(one, "tcpDownRatio")}, up ${ratio(one, "tcpUpRatio")}, packets down ${ratio(one, "ppsRatio")}, up ${ratio(one, "ppsUpRatio")}, CPU per packet ${ratio(one, "cpuPerPacketRatio")}. ` +
      `Packets to all of them in turn: ${thousands(all.pps)}/s, ${number(all.ppsRatio, 2)}${brackets(all.ci95)} of plain forwarding to as many addresses.`,
    "",
  ];
}

function verdicts({ targets }: DataplaneResult): string[] {
  const word = (met: boolean | null): string => (met === null ? "not measured" : met ? "yes" : "**no**");
  return [...table(["target", "measured", "met"], targets.map((each) => [each.target, `${number(each.measured, 3)}${brackets(each.ci95)}`, word(each.met)])), ""];
}

/** What the statistics of the programs do not see. */
const REST = "The rest is the kernel's because of them: calling them, a larger buffer where the sender left no room for the header, and, of large TCP segments, looking through headers that a program has touched, at each interface again. " +
  "A host whose program delivers spares its stack the routing, so that the programs may take more than the difference. How much each of that is, a profile says (ARCHITECTURE.md, \"What bpf costs\").";

/** Where the time goes, said whether or not a target was missed; nothing where bpf was not measured. */
function programs({ ipip, programTimes, variants }: DataplaneResult): string[] {
  const found: string[] = [];
  if (programTimes.length > 0) {
    const of = (name: string): VariantResult | undefined => variants.find((each) => each.name === name);
    const own = programTimes.filter(({ bindings, traffic }) => bindings === 1 && traffic !== "ppsAll");
    found.push(
      "Where bpf's time goes (the kernel's statistics of our programs, which add some 50 ns a run):", "", ...timesTable(programTimes), "",
      ...[...packets(of("plain"), of("bpf"), own, "plain forwarding"), ...streams(of("bpf"), own), ...manyBindings(programTimes), REST].flatMap((sentence) => [sentence, ""]),
    );
  }
  if (ipip !== null && ipip.programTimes.length > 0) {
    found.push(
      "Where ipip's time goes, beside the bare device, in user-mode-linux. That kernel has no compiler for BPF and interprets the check of the outer and the inner source; the bare device checks neither.", "", ...timesTable(ipip.programTimes), "",
      ...packets(ipip.device, ipip.ipip, ipip.programTimes, "the bare device").flatMap((sentence) => [sentence, ""]),
    );
  }
  return found;
}

function timesTable(times: readonly TrafficTimes[]): string[] {
  const rows = times.map(({ bindings, traffic, share, programs }) => [
    traffic, String(bindings), `${(share * 100).toFixed(0)} %`, programs.map((each) => `${each.program} ${String(each.nsPerRun)} ns × ${thousands(each.runs)}`).join(", "),
  ]);
  return table(["traffic", "bindings", "of one processor", "programs"], rows);
}

/** What a packet costs more than without us, and what of it is our programs'. */
function packets(without: VariantResult | undefined, ours: VariantResult | undefined, times: readonly TrafficTimes[], name: string): string[] {
  return ([["ppsDown", "pps"], ["ppsUp", "ppsUp"]] as const).flatMap(([traffic, rate]) => {
    const [before, after] = [without?.[rate] ?? 0, ours?.[rate] ?? 0];
    const own = perPacket(times.find((each) => each.traffic === traffic));
    if (before === 0 || after === 0 || own === null) return [];
    return [`${traffic}: a packet takes ${String(Math.round(1e9 / after - 1e9 / before))} ns more of the processor that sends and forwards than with ${name}; our programs take ${String(Math.round(own))} ns.`];
  });
}

function streams(ours: VariantResult | undefined, times: readonly TrafficTimes[]): string[] {
  return (["tcpDown", "tcpUp", "tcp8Down", "tcp8Up"] as const).flatMap((traffic) => {
    const [ratio, of] = [ours?.[`${traffic}Ratio`] ?? null, times.find((each) => each.traffic === traffic)];
    if (ratio === null || of === undefined) return [];
    const own = `our programs, for data one way and acknowledgements the other, take ${(of.share * 100).toFixed(0)} %`;
    if (ratio >= 1) return [`${traffic}: not slower than plain forwarding; ${own} of a processor.`];
    return [`${traffic}: ${((1 - ratio) * 100).toFixed(0)} % of the time of the processor that sends and forwards is more than plain forwarding takes; ${own}.`];
  });
}

/** The programs' part with many bindings beside one: what is more than that is not theirs. */
function manyBindings(times: readonly TrafficTimes[]): string[] {
  const many = times.filter(({ bindings, traffic }) => bindings > 1 && traffic !== "ppsAll");
  const shares = many.flatMap(({ share, traffic }) => {
    const one = times.find((each) => each.bindings === 1 && each.traffic === traffic);
    return one === undefined ? [] : [`${traffic} ${(share * 100).toFixed(1)} % beside ${(one.share * 100).toFixed(1)} %`];
  });
  return shares.length === 0 ? [] : [`With ${String(many[0]?.bindings ?? 0)} bindings beside one our programs take, of one processor: ${shares.join(", ")}. What a stream loses beyond that is not lost in a look-up.`];
}

/** Time in all programs for one packet: the one that runs most often sees each packet once. `null` when none ran. */
function perPacket(times: TrafficTimes | undefined): number | null {
  const packets = Math.max(0, ...(times?.programs ?? []).map((each) => each.runs));
  return times === undefined || packets === 0 ? null : times.programs.reduce((sum, each) => sum + each.runs * each.nsPerRun, 0) / packets;
}

function ratio(of: Pick<VariantResult, RatioName | "ci95">, name: RatioName): string {
  return `${number(of[name], 2)}${brackets(of.ci95[name])}`;
}

function brackets(interval: Interval | null): string {
  return interval === null ? "" : ` (${interval.map((end) => end.toFixed(2)).join("–")})`;
}

function number(value: number | null, digits: number): string {
  return value === null ? "–" : value.toFixed(digits);
}

function thousands(value: number | null): string {
  return value === null ? "–" : `${(value / 1000).toFixed(0)} k`;
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  return [head, head.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |`);
}
