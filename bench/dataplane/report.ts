import type { Interval } from "../statistics.js";
import type { DataplaneResult, TrafficTimes } from "./main.js";
import type { RatioName, VariantResult } from "./outcome.js";

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
function programs({ programTimes, variants }: DataplaneResult): string[] {
  if (programTimes.length === 0) return [];
  const rows = programTimes.map(({ traffic, share, programs }) => [
    traffic, `${(share * 100).toFixed(0)} %`, programs.map((each) => `${each.program} ${String(each.nsPerRun)} ns × ${thousands(each.runs)}`).join(", "),
  ]);
  const of = (name: string): VariantResult | undefined => variants.find((each) => each.name === name);
  const sentences = ([["ppsDown", "pps", "host_ingress"], ["ppsUp", "ppsUp", "home_ingress"]] as const).flatMap(([traffic, rate, last]) => {
    const [plain, bpf] = [of("plain")?.[rate] ?? 0, of("bpf")?.[rate] ?? 0];
    const own = perPacket(programTimes.find((each) => each.traffic === traffic), last);
    if (plain === 0 || bpf === 0 || own === null) return [];
    return [`${traffic}: a packet takes ${String(Math.round(1e9 / bpf - 1e9 / plain))} ns more of the processor that sends and forwards than in plain forwarding; our programs (adding and removing the header included) take ${String(Math.round(own))} ns.`];
  });
  const streams = (["tcpDown", "tcpUp"] as const).flatMap((traffic) => {
    const [ratio, times] = [of("bpf")?.[`${traffic}Ratio`] ?? null, programTimes.find((each) => each.traffic === traffic)];
    if (ratio === null || times === undefined) return [];
    return [`${traffic}: ${((1 - ratio) * 100).toFixed(0)} % of the time of the processor that sends and forwards is more than plain forwarding takes; our programs, for data one way and acknowledgements the other, take ${(times.share * 100).toFixed(0)} %.`];
  });
  return [
    "Where bpf's time goes (the kernel's statistics of our programs, which add some 50 ns a run):", "", ...table(["traffic", "of one processor", "programs"], rows), "",
    ...[...sentences, ...streams, REST].flatMap((sentence) => [sentence, ""]),
  ];
}

/** Time in all programs for one packet, which the program named last sees once; `null` when it saw none. */
function perPacket(times: TrafficTimes | undefined, last: string): number | null {
  const packets = times?.programs.find((each) => each.program === last)?.runs ?? 0;
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
