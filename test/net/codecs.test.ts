import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import t from "tap";
import { addressFromBytes, ipAddress, ipv4, isV4, mac, prefix, type IpAddress, type Ipv4 } from "../../model/address.js";
import { CareofError } from "../../model/errors.js";
import { cutsLong } from "../../net/bpf/cuts-long.js";
import { readObject } from "../../net/bpf/elf.js";
import { careofObject } from "../../net/bpf/loader.js";
import { possibleCpus } from "../../net/bpf/maps.js";
import { COUNTERS, decodeCounters, decodeHomeEntry, decodeHostRecord, decodeStamps, DROP_REASONS, encodeConfig, encodeHomeEntry, encodeHostRecord, encodeWaiting, type HostRecord } from "../../net/bpf/records.js";
import { checkHomeEntry, checkHostEntry, checkSet } from "../../net/entry-checks.js";
import { errnoName, errnoOf, refused } from "../../net/errno.js";
import { decodeMarker, encodeMarker } from "../../net/marker.js";
import { decodeAttributes, encodeAttributes, nested, raw, readText, readU32, text, u32 } from "../../net/netlink/attributes.js";
import { decodeMessages } from "../../net/netlink/client.js";
import { droppingForwardChains } from "../../net/forward-chains.js";
import { requireInterfaceName } from "../../net/tap.js";
import type { HomeEntry } from "../../net/tunnel.js";

const bytes = (max: number): fc.Arbitrary<Buffer> => fc.uint8Array({ maxLength: max }).map((value) => Buffer.from(value));
const v4 = fc.uint8Array({ minLength: 4, maxLength: 4 }).map((value): Ipv4 => {
  const address = addressFromBytes(value);
  if (!isV4(address)) throw new Error("four bytes are IPv4");
  return address;
});
const anyAddress: fc.Arbitrary<IpAddress> = fc.oneof(v4, fc.uint8Array({ minLength: 16, maxLength: 16 }).filter((value) => value[0] !== 0).map(addressFromBytes));
const careOf = fc.array(anyAddress, { maxLength: 8 });
const station = fc.uint8Array({ minLength: 6, maxLength: 6 }).map((value) =>
  mac([...value].map((byte, index) => (index === 0 ? byte & 0xfe : byte).toString(16).padStart(2, "0")).join(":")));

/** True when `work` succeeds, or fails with this code. */
function onlyFailsAs(code: string, work: () => unknown): boolean {
  try {
    work();
    return true;
  } catch (thrown) {
    return thrown instanceof CareofError && thrown.code === code;
  }
}

t.test("netlink attributes come back as they went", (t) => {
  fc.assert(fc.property(fc.uniqueArray(fc.record({ type: fc.integer({ min: 1, max: 0x3fff }), value: bytes(40) }), { selector: ({ type }) => type, maxLength: 20 }), (attributes) => {
    const found = decodeAttributes(encodeAttributes(attributes));
    return found.size === attributes.length && attributes.every(({ type, value }) => found.get(type)?.equals(value));
  }));
  const inner = decodeAttributes(encodeAttributes([nested(8, [u32(2, 1480), text(3, "vm1")])])).get(8);
  t.ok(inner);
  const read = decodeAttributes(inner ?? Buffer.alloc(0));
  t.equal(readU32(read, 2), 1480);
  t.equal(readText(read, 3), "vm1");
  t.equal(readU32(read, 9), null);
  t.equal(readText(read, 9), null);
  t.throws(() => readU32(decodeAttributes(encodeAttributes([raw(1, Buffer.alloc(2))])), 1), { code: "malformed-netlink" });
  t.throws(() => encodeAttributes([raw(1, Buffer.alloc(70_000))]), { code: "malformed-netlink" });
  t.end();
});

t.test("whatever bytes claim to be netlink, the answer is a list or malformed-netlink", (t) => {
  fc.assert(fc.property(bytes(200), (value) => onlyFailsAs("malformed-netlink", () => decodeAttributes(value)) && onlyFailsAs("malformed-netlink", () => decodeMessages(value))));
  t.throws(() => decodeAttributes(Buffer.from([8, 0, 1, 0, 1])), { code: "malformed-netlink", message: /claims 8 of 5/ });
  const cut = Buffer.alloc(16);
  cut.writeUInt32LE(32);
  t.throws(() => decodeMessages(cut), { code: "malformed-netlink", message: /claims 32 of 16/ });
  t.end();
});

t.test("the committed object has what the drivers load", (t) => {
  const object = careofObject();
  t.same(object.programs.map(({ name }) => name).sort(), [
    "home_egress", "home_ingress", "host_egress", "host_ingress", "ipip_home_egress", "ipip_home_ingress", "ipip_host_egress", "ipip_host_ingress", "ipip_port_ingress", "port_ingress", "probe_decap",
  ]);
  const sizes = Object.fromEntries(object.maps.map(({ keySize, name, valueSize }) => [name, [keySize, valueSize]]));
  const home = encodeHomeEntry({ home: ipv4("198.51.100.7"), active: null, accept: [], mtu: 1480 });
  const host = encodeHostRecord({ role: "forward", to: ipv4("10.0.1.1"), sender: null, hold: null });
  const config = encodeConfig({ self: ipv4("10.0.1.1"), homeAgents: [], uplink: 1, innerMtu: 1, gateway: ipv4("169.254.1.1"), decapFlags: 0n, hopMac: mac("02:00:00:00:00:01"), cutsLong: true });
  t.same(sizes, { config: [4, config.length], counters: [16, COUNTERS], stamps: [16, 40], hops: [4, 32], homes: [16, home.length], guests: [16, host.length], ports: [4, 16], waiting: [16, encodeWaiting(1).length] });
  t.ok(object.programs.every(({ instructions }) => instructions.length > 0 && instructions.length % 8 === 0));
  t.end();
});

t.test("which kernels cut what is longer than an interface takes", (t) => {
  for (const version of ["6.7.0", "6.18.44-fc", "7.0", "6.6.15", "6.1.176", "5.15.150-0-generic", "5.10.210"]) t.ok(cutsLong(version), version);
  for (const version of ["6.6.14", "6.1.0-18-amd64", "6.5.300", "5.10.209", "5.4.300", "4.19", "", "next"]) t.notOk(cutsLong(version), version);
  t.end();
});

t.test("a damaged object is refused, never half read", (t) => {
  const good = readFileSync(join(import.meta.dirname, "../../../net/bpf/careof.o"));
  fc.assert(fc.property(fc.nat(good.length), (length) => onlyFailsAs("malformed-object", () => readObject(good.subarray(0, length)))));
  fc.assert(fc.property(fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 30 }), (changes) => {
    const damaged = Buffer.from(good);
    for (const [at, value] of changes) damaged[at] = value;
    return onlyFailsAs("malformed-object", () => readObject(damaged));
  }), { numRuns: 300 });
  const sectionTable = Number(good.readBigUInt64LE(40));
  fc.assert(fc.property(fc.nat(good.length - sectionTable - 1), fc.nat(255), (at, value) => {
    const damaged = Buffer.from(good);
    damaged[sectionTable + at] = value;
    return onlyFailsAs("malformed-object", () => readObject(damaged));
  }), { numRuns: 300 });
  const changed = (at: number, value: number): Buffer => {
    const copy = Buffer.from(good);
    copy[at] = value;
    return copy;
  };
  t.throws(() => readObject(Buffer.alloc(0)), { code: "malformed-object", message: /file header/ });
  t.throws(() => readObject(Buffer.alloc(64)), { code: "malformed-object", message: /not ELF/ });
  t.throws(() => readObject(changed(4, 1)), { code: "malformed-object", message: /64-bit/ });
  t.throws(() => readObject(changed(18, 62)), { code: "malformed-object", message: /machine 62/ });
  t.throws(() => readObject(Buffer.alloc(5 * 1024 * 1024)), { code: "malformed-object", message: /too many/ });
  t.end();
});

t.test("entries come back from their bytes", (t) => {
  fc.assert(fc.property(v4, fc.option(anyAddress, { nil: null }), careOf, fc.integer({ min: 68, max: 65515 }), (home, active, accept, mtu) => {
    const entry: HomeEntry = { home, active, accept, mtu };
    t.strictSame(decodeHomeEntry(home, encodeHomeEntry(entry)), entry);
  }), { numRuns: 50 });
  const record: fc.Arbitrary<HostRecord> = fc.oneof(
    fc.record({ role: fc.constant("forward" as const), to: anyAddress, sender: fc.option(fc.record({ port: fc.integer({ min: 1, max: 0x7fff_ffff }), mac: fc.constant(mac("52:54:00:00:00:01")) }, { noNullPrototype: true })), hold: fc.option(fc.record({ device: fc.nat(0xffff_ffff), stragglersFrom: careOf, mac: fc.constant(mac("52:54:00:00:00:01")) }, { noNullPrototype: true })) }, { noNullPrototype: true }),
    fc.record({ role: fc.constant("deliver" as const), port: fc.nat(0xffff_ffff), mac: station, portMac: station, stragglersFrom: careOf, hold: fc.option(fc.record({ device: fc.nat(0xffff_ffff), from: fc.constantFrom("home-agents", "all", "port") }, { noNullPrototype: true })) }, { noNullPrototype: true }),
  );
  fc.assert(fc.property(record, (value) => { t.strictSame(decodeHostRecord(encodeHostRecord(value)), value); }), { numRuns: 50 });
  t.end();
});

t.test("counters are the sum over the CPUs; stamps that did not happen are null", (t) => {
  const perCpu = Buffer.alloc(3 * COUNTERS);
  for (let cpu = 0; cpu < 3; cpu++) {
    perCpu.writeBigUInt64LE(BigInt(cpu + 1), cpu * COUNTERS);
    perCpu.writeBigUInt64LE(10n, cpu * COUNTERS + 8 * (5 + DROP_REASONS.indexOf("spoofed")));
  }
  const found = decodeCounters(perCpu);
  t.equal(found.downPackets, 6);
  t.equal(found.dropped["spoofed"], 30);
  t.equal(found.dropped["loop"], 0);
  const stamps = Buffer.alloc(40);
  t.strictSame(decodeStamps(stamps), { marker: null, passedMarker: null, firstPacket: null, behindMarker: null, firstForwarded: null });
  stamps.writeBigUInt64LE(1_500_000n, 0);
  stamps.writeUInt32LE(77, 32);
  t.strictSame(decodeStamps(stamps).marker, { token: 77, at: 1.5 });
  stamps.writeUInt32LE(78, 36);
  t.match(decodeStamps(stamps), { marker: { token: 77 }, passedMarker: 78 });
  t.ok(possibleCpus() >= 1);
  t.end();
});

t.test("markers come back; nothing else is one", (t) => {
  fc.assert(fc.property(v4, v4, v4, v4, fc.integer({ min: 1, max: 0xffff_ffff }), (source, destination, innerSource, innerDestination, token) => {
    const marker = { outer: { source, destination }, inner: { source: innerSource, destination: innerDestination }, token };
    t.strictSame(decodeMarker(encodeMarker(marker)), marker);
  }), { numRuns: 50 });
  fc.assert(fc.property(bytes(80), (value) => decodeMarker(value) === null));
  const end = { source: ipv4("10.0.0.1"), destination: ipv4("10.0.0.2") };
  for (const token of [0, -1, 1.5, 2 ** 32, NaN]) t.throws(() => encodeMarker({ outer: end, inner: end, token }), { code: "malformed-marker" });
  t.end();
});

t.test("entries that no driver can hold are refused", (t) => {
  const home = ipv4("198.51.100.7");
  const six = ipAddress("2001:db8::7");
  const many = Array.from({ length: 9 }, (_, index) => ipv4(`10.0.0.${String(index)}`));
  const good: HomeEntry = { home, active: home, accept: [], mtu: 1480 };
  t.doesNotThrow(() => { checkHomeEntry(good); });
  const bad: readonly [Partial<HomeEntry>, string][] = [
    [{ home: six }, "unsupported-address"], [{ active: six }, "unsupported-address"], [{ accept: [six] }, "unsupported-address"],
    [{ accept: many }, "too-many"], [{ mtu: 67 }, "malformed-mtu"], [{ mtu: 65516 }, "malformed-mtu"], [{ mtu: 1480.5 }, "malformed-mtu"],
  ];
  for (const [change, code] of bad) t.throws(() => { checkHomeEntry({ ...good, ...change }); }, { code });
  t.throws(() => { checkHostEntry({ role: "forward", home, to: six }); }, { code: "unsupported-address" });
  t.throws(() => { checkHostEntry({ role: "deliver", home, port: "vm1", mac: mac("52:54:00:00:00:01"), stragglersFrom: many }); }, { code: "too-many" });
  t.throws(() => { checkSet([good, good], 10); }, { code: "malformed-entries" });
  t.throws(() => { checkSet([good], 0); }, { code: "too-many" });
  for (const name of ["", "a b", "a/b", "a:b", ".", "..", "sixteencharacter", "ähnlichlängster"]) t.throws(() => requireInterfaceName(name), { code: "malformed-port" }, name);
  for (const name of ["vm1", "eth0.5", "fifteencharacte"]) t.equal(requireInterfaceName(name), name);
  t.end();
});

t.test("what the kernel refuses names the errno", (t) => {
  const error = refused("a test", 17, "sendto", "more words");
  t.match(error, { code: "kernel-refused", retryable: false, message: /refused a test: sendto: EEXIST \(more words\)/ });
  t.equal(errnoOf(error), 17);
  t.equal(errnoOf(new Error("other")), 0);
  t.equal(refused("a test", 105, "sendto").retryable, true);
  t.equal(errnoName(0), "errno 0");
  t.end();
});

t.test("chains that drop what is forwarded are found in nft's JSON", (t) => {
  const chain = (change: object): object => ({ chain: { family: "ip", table: "filter", name: "FORWARD", type: "filter", hook: "forward", prio: 0, policy: "accept", ...change } });
  const ruleset = { nftables: [{ metainfo: { version: "1.0.6" } }, chain({}), chain({ policy: "drop", table: "docker" }), chain({ hook: "input", policy: "drop" }), { rule: {} }] };
  t.same(droppingForwardChains(JSON.stringify(ruleset)).map(({ name }) => name), ["ip docker FORWARD"]);
  t.same(droppingForwardChains("{}"), []);
  t.same(droppingForwardChains("[1]"), []);
  t.end();
});

t.test("whether such a chain accepts the home prefixes", (t) => {
  const home = [prefix("198.51.100.0/24")];
  const base = { chain: { family: "ip", table: "f", name: "FORWARD", type: "filter", hook: "forward", prio: 0, policy: "drop" } };
  const rule = (chain: string, ...expr: readonly object[]): object => ({ rule: { family: "ip", table: "f", chain, expr } });
  const match = (field: string, right: unknown): object => ({ match: { op: "==", left: { payload: { protocol: "ip", field } }, right } });
  const net = (addr: string, len: number): object => ({ prefix: { addr, len } });
  const [accept, counter] = [{ accept: null }, { counter: { packets: 0, bytes: 0 } }];
  const both = (chain: string, right: unknown, ...more: readonly object[]): object[] => ["saddr", "daddr"].map((field) => rule(chain, match(field, right), counter, ...more, accept));
  const cases: readonly [string, boolean, readonly object[]][] = [
    ["two plain rules", true, both("FORWARD", net("198.51.100.0", 24))],
    ["a larger prefix, among others", true, both("FORWARD", { set: ["203.0.113.9", net("198.51.0.0", 16)] })],
    ["in a chain of the user's", true, [rule("FORWARD", counter, { jump: { target: "USER" } }), ...both("USER", net("198.51.100.0", 24))]],
    ["chains that jump in a circle", false, [rule("FORWARD", { jump: { target: "USER" } }), rule("USER", { goto: { target: "FORWARD" } })]],
    ["one of the two", false, [rule("FORWARD", match("daddr", net("198.51.100.0", 24)), accept)]],
    ["half of the prefix", false, both("FORWARD", net("198.51.100.0", 25))],
    ["only on some condition", false, both("FORWARD", net("198.51.100.0", 24), { match: { op: "==", left: { meta: { key: "iifname" } }, right: "lan" } })],
    ["another chain's", false, both("OTHER", net("198.51.100.0", 24))],
    ["a host of it", false, both("FORWARD", "198.51.100.7")],
    ["what cannot be read", false, [rule("FORWARD", { xt: null }), { rule: 7 }, rule("FORWARD", match("saddr", { "@set": 1 }), accept)]],
  ];
  for (const [what, wanted, rules] of cases) t.same(droppingForwardChains(JSON.stringify({ nftables: [base, ...rules] })).map((each) => each.accepts(home)), [wanted], what);
  t.end();
});
