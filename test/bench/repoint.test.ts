import t from "tap";
import { encapRoute } from "../../bench/repoint/encap-route.js";
import { repointReport, repointResult } from "../../bench/repoint/outcome.js";
import { way } from "../../bench/repoint/ways.js";
import { ipv4 } from "../../model/address.js";
import { decodeAttributes } from "../../net/netlink/attributes.js";

const load = { repoints: 1000, pps: 5000, sentDown: 10_000, lostDown: 0, sentUp: 10_000, lostUp: 0, duplicated: 0, reordered: 0 };
const restored = { bindings: 100_000, n: 3, emptyMs: 700, keptMs: 500 };

t.test("quantiles of the times, whatever their order", (t) => {
  const times = Array.from({ length: 101 }, (_, index) => 101 - index);
  t.same(way("bpf", times), { name: "bpf", n: 101, p50Us: 51, p99Us: 100 });
  t.same(way("bpf", []), { name: "bpf", n: 0, p50Us: null, p99Us: null });
  t.end();
});

t.test("targets: met, missed, and not measured", (t) => {
  const met = (result: ReturnType<typeof repointResult>): (boolean | null)[] => result.targets.map((each) => each.met);
  const good = [way("bpf", [4]), { ...way("netlink", [15]), device: "vxlan external" }];
  t.same(met(repointResult(good, restored, load)), [true, true, true, true, true, true]);
  t.same(met(repointResult([way("bpf", [6])], { ...restored, emptyMs: 1001 }, { ...load, lostUp: 1 })), [false, true, null, null, false, false]);
  const text = repointReport(repointResult(good, restored, load));
  t.match(text, /netlink over vxlan external \| 15\.0 \| 15\.0 \| 1 \|/);
  t.notMatch(text, /NaN|undefined/);
  t.end();
});

t.test("a route with outer destination, as iproute2 writes it", (t) => {
  const { body, type } = encapRoute(ipv4("198.18.0.1"), ipv4("10.1.0.2"), 7);
  t.equal(type, 24);
  const bytes = Buffer.from(body);
  t.equal(bytes.subarray(0, 12).toString("hex"), "02200000fe04fd0100000000");
  const attributes = decodeAttributes(bytes.subarray(12));
  t.equal(attributes.get(1)?.toString("hex"), "c6120001");
  t.equal(attributes.get(21)?.readUInt16LE(0), 2);
  const inner = decodeAttributes(attributes.get(22) ?? Buffer.alloc(0));
  t.equal(inner.get(2)?.toString("hex"), "0a010002");
  t.equal(inner.get(1)?.length, 8);
  t.end();
});
