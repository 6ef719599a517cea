import t from "tap";
import { outcome } from "../../bench/dataplane/ipip.js";
import { rated, type Round } from "../../bench/dataplane/measure.js";
import { bindingsResult, notMeasured, variantResult, VARIANTS } from "../../bench/dataplane/outcome.js";
import { report } from "../../bench/dataplane/report.js";
import { targets } from "../../bench/dataplane/targets.js";
import { homes } from "../../bench/dataplane/variants.js";

/** All figures of a round are multiples of one. */
function round(factor: number): Round {
  const of = (rate: number): Round["tcpDown"] => ({ rate: rate * factor, cpuNs: 5000 / factor });
  return { tcpDown: of(10), tcpUp: of(8), tcp8Down: of(12), tcp8Up: of(9), ppsDown: of(100_000), ppsUp: of(90_000) };
}

const plain = [1, 1.1, 0.9, 1, 1.2, 1].map(round);
/** Nine tenths of plain in every round, whatever the machine was doing. */
const slower = [0.9, 0.99, 0.81, 0.9, 1.08, 0.9].map(round);

t.test("a variant as the JSON has it", (t) => {
  const result = variantResult("bpf", slower, plain);
  t.match(result, { name: "bpf", tcpDownGbps: 9, tcpUpGbps: 7.2, tcp8DownGbps: 10.8, pps: 90_000, ppsUp: 81_000, tcpDownRatio: 0.9, tcpUpRatio: 0.9, ppsRatio: 0.9, cpuPerPacketRatio: 1.1111 });
  t.same(result.ci95.tcpDownRatio, [0.9, 0.9]);
  t.same(JSON.parse(JSON.stringify(result)), result, "nothing gets lost on the way to the file");
  t.same(variantResult("plain", plain, plain).ci95.ppsRatio, [1, 1]);
  t.end();
});

t.test("a variant that is not there says so, with null for every figure", (t) => {
  const result = notMeasured("ipip", "no such device");
  t.match(result, { name: "ipip", tcpDownGbps: null, tcpUpGbps: null, pps: null, tcpDownRatio: null, tcpUpRatio: null, ppsRatio: null, notMeasured: "no such device" });
  t.equal(result.ci95.tcpDownRatio, null);
  t.end();
});

t.test("a flood that did not arrive is missing and not 0", (t) => {
  t.same(rated("tcp", null), { rate: null, cpuNs: null });
  t.same(rated("tcp", { bytes: 125_000_000, packets: 0, ns: 1e9, busyNs: 2e9 }), { rate: 1, cpuNs: null });
  t.same(rated("udp", { bytes: 18_000, packets: 1000, ns: 1e9, busyNs: 2e9 }), { rate: 1000, cpuNs: 2e6 });
  const holed = variantResult("bpf", slower.map((each, index) => (index === 0 ? { ...each, tcpUp: rated("tcp", null) } : each)), plain);
  t.equal(holed.tcpUpRatio, 0.9);
  t.equal(holed.ci95.tcpUpRatio, null, "five rounds are left");
  t.end();
});

t.test("targets: met, missed, and not measured", (t) => {
  const variants = [variantResult("plain", plain, plain), variantResult("bpf", slower, plain), notMeasured("ipip", "none"), variantResult("vxlan", plain, plain)];
  const bindings = bindingsResult(10_000, slower, plain, slower.map((each) => each.ppsDown), plain.map((each) => each.ppsDown));
  const found = targets(variants, bindings, null);
  const met = (text: string): boolean | null | undefined => found.find(({ target }) => target.startsWith(text))?.met;
  t.equal(met("bpf tcpDownRatio ≥ 0.95"), false);
  t.equal(met("bpf ppsRatio ≥ 0.9"), true);
  t.equal(met("bpf tcpDownRatio not below VXLAN"), false);
  t.equal(met("10000 bindings beside 1: tcpDownRatio"), false, "the interval excludes that it costs nothing");
  t.same(bindings.all, { pps: 90_000, ppsRatio: 0.9, ci95: [0.9, 0.9] });
  t.ok(targets([variantResult("bpf", slower, plain)], null, null).filter(({ target }) => target.includes("VXLAN")).every((each) => each.met === null), "without VXLAN nothing is said of it");
  t.end();
});

t.test("the report names every variant, and where the time goes", (t) => {
  const variants = VARIANTS.map((name) => (name === "ipip" ? notMeasured(name, "no such device") : variantResult(name, slower, plain)));
  const text = report({ rounds: 6, variants, bindings: null, ipip: null, targets: targets(variants, null, null), programTimes: [
    { traffic: "tcpUp", bindings: 1, share: 0.12, programs: [{ program: "home_ingress", runs: 20_000, nsPerRun: 700 }] },
    { traffic: "tcpUp", bindings: 10_000, share: 0.125, programs: [{ program: "home_ingress", runs: 20_000, nsPerRun: 710 }] },
  ] });
  for (const name of VARIANTS) t.ok(text.includes(name), name);
  t.match(text, /home_ingress 700 ns × 20 k/);
  t.match(text, /tcpUp: 10 % of the time .* take 12 %/, "what is more than plain forwarding, and what of it is ours");
  t.match(text, /10000 bindings beside one .*: tcpUp 12\.5 % beside 12\.0 %/);
  t.match(text, /0\.90 \(0\.90–0\.90\)/);
  t.notMatch(text, /NaN|undefined/);
  t.end();
});

t.test("the ipip driver beside the bare device, from another kernel", (t) => {
  const ipip = outcome("6.1.0", { plain, device: slower, ipip: slower });
  t.match(ipip, { rounds: 6, ipip: { name: "ipip", tcpDownRatio: 0.9, measuredIn: /6\.1\.0/ }, device: { name: "device", ppsRatio: 0.9 }, besideDevice: { tcpDownRatio: 1, ppsRatio: 1 } });
  const variants = VARIANTS.map((name) => (name === "ipip" ? ipip.ipip : variantResult(name, plain, plain)));
  const found = targets(variants, null, ipip).filter(({ target }) => target.startsWith("ipip beside the bare device"));
  t.equal(found.length, 6);
  t.ok(found.every(({ met }) => met === true));
  t.ok(targets(variants, null, outcome("6.1.0", { plain, device: plain, ipip: slower })).some(({ met, target }) => target.startsWith("ipip beside the bare device: tcpDownRatio") && met === false));
  const timed = { ...ipip, device: { ...ipip.device, pps: 100_000 }, programTimes: [{ traffic: "ppsDown" as const, bindings: 1, share: 0.1, programs: [{ program: "home_egress", runs: 1000, nsPerRun: 100 }, { program: "host_ingress", runs: 1000, nsPerRun: 900 }] }] };
  const text = report({ rounds: 6, variants, bindings: null, ipip: timed, targets: [], programTimes: [] });
  t.match(text, /ppsDown: a packet takes 1111 ns more .* than with the bare device; our programs take 1000 ns/);
  t.match(text, /\| ipip ¹ \|.*\| device ¹ \|/s);
  t.match(text, /Linux 6\.1\.0, one processor/);
  t.notMatch(text, /NaN|undefined/);
  t.end();
});

t.test("home addresses in a row, across the bytes", (t) => {
  t.same(homes(3), ["198.18.0.1", "198.18.0.2", "198.18.0.3"]);
  t.equal(homes(256).at(-1), "198.18.1.0");
  t.equal(homes(100_000).at(-1), "198.19.134.160");
  t.end();
});
