import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { isIPv6 } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import t from "tap";
import { z } from "zod";
import {
  addressBytes, addressFromBytes, addressFromKey, addressKey, inPrefix, ipAddress, ipv4, isV4, mac, macBytes, macFromBytes, prefix,
} from "../../model/address.js";
import { endpoint, fields, parseConfig, readConfig } from "../../model/config.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { epoch, hostId, keyId, migrationId, millis, NEVER_BOUND, nextEpoch, parseMigrationId, vmId } from "../../model/ids.js";
import { isReason, REASONS, replyCode } from "../../model/reasons.js";
import { careofVersion } from "../../model/version.js";

const v4Bytes = fc.uint8Array({ minLength: 4, maxLength: 4 });
const v6Bytes = fc.uint8Array({ minLength: 16, maxLength: 16 });
/** Runs of zeros, which RFC 5952 shortens. */
const sparse = v6Bytes.chain((bytes) => fc.uint8Array({ minLength: 16, maxLength: 16, max: 1 }).map((mask) => bytes.map((byte, i) => byte * (mask[i] ?? 0))));
const anyBytes = fc.oneof(v4Bytes, v6Bytes, sparse);

t.test("addresses: bytes and text are one and the same", (t) => {
  fc.assert(fc.property(anyBytes, (bytes) => {
    const address = addressFromBytes(bytes);
    assert.deepEqual(addressBytes(address), new Uint8Array(bytes));
    assert.equal(ipAddress(address), address, "its own spelling");
    assert.equal(isV4(address), bytes.length === 4);
    assert.equal(isIPv6(address), bytes.length === 16);
    assert.equal(addressKey(address).length, 16);
    const mapped = bytes.length === 16 && bytes.subarray(0, 10).every((byte) => byte === 0) && bytes[10] === 255 && bytes[11] === 255;
    if (!mapped) assert.equal(addressFromKey(addressKey(address)), address);
  }), { numRuns: 1000 });
  for (const [text, canonical] of [["2001:DB8::0:1", "2001:db8::1"], ["0:0:0:0:0:0:0:0", "::"], ["::ffff:192.0.2.1", "::ffff:c000:201"], ["1:0:0:2:0:0:0:3", "1:0:0:2::3"]] as const) {
    t.equal(ipAddress(text), canonical, text);
  }
  t.equal(Buffer.from(addressKey(ipv4("192.0.2.1"))).toString("hex"), "00000000000000000000ffffc0000201");
  for (const text of ["", "1.2.3", "1.2.3.4.5", "256.1.1.1", "01.2.3.4", " 1.2.3.4", "1.2.3.4/24", "fe80::1%eth0", "::g", "x".repeat(1000)]) {
    t.throws(() => ipAddress(text), { name: "CareofError", code: "malformed-address" }, text.slice(0, 20));
    t.throws(() => ipv4(text), { code: "malformed-address" });
  }
  t.throws(() => ipv4("::1"), { code: "malformed-address" });
  for (const length of [0, 3, 5, 15, 17]) t.throws(() => addressFromBytes(new Uint8Array(length)), { code: "malformed-address" });
  t.throws(() => addressFromKey(new Uint8Array(5)), { code: "malformed-address" });
  t.end();
});

t.test("Ethernet addresses", (t) => {
  fc.assert(fc.property(fc.uint8Array({ minLength: 6, maxLength: 6 }), (bytes) => {
    bytes[0] = (bytes[0] ?? 0) & 0xfe;
    assert.deepEqual(macBytes(macFromBytes(bytes)), new Uint8Array(bytes));
  }));
  t.equal(mac("52:54:00:AB:CD:EF"), "52:54:00:ab:cd:ef");
  for (const text of ["", "52:54:00:ab:cd", "52-54-00-ab-cd-ef", "52:54:00:ab:cd:ef:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "gg:00:00:00:00:00"]) {
    t.throws(() => mac(text), { code: "malformed-mac" }, text);
  }
  t.throws(() => macFromBytes(new Uint8Array(5)), { code: "malformed-mac" });
  t.end();
});

t.test("prefixes", (t) => {
  const inside: readonly (readonly [string, string, boolean])[] = [
    ["198.51.100.0/24", "198.51.100.255", true], ["198.51.100.0/24", "198.51.101.0", false], ["0.0.0.0/0", "255.255.255.255", true],
    ["128.0.0.0/1", "127.255.255.255", false], ["192.0.2.1/32", "192.0.2.1", true], ["192.0.2.1/32", "192.0.2.0", false], ["0.0.0.0/0", "::", false],
  ];
  for (const [within, address, expected] of inside) t.equal(inPrefix(ipAddress(address), prefix(within)), expected, `${address} in ${within}`);
  for (const text of ["198.51.100.1/24", "198.51.100.0", "198.51.100.0/33", "198.51.100.0/", "198.51.100.0/-1", "::/0", "/8", "128.0.0.0/0"]) {
    t.throws(() => prefix(text), { code: "malformed-prefix" }, text);
  }
  t.end();
});

t.test("names and numbers", (t) => {
  for (const text of ["a", "0", "web-1.example_x", "x".repeat(63)]) t.equal(vmId(text), text);
  for (const text of ["", "-a", ".a", "A", "a b", "a\n", "é", "a/b", "x".repeat(64)]) {
    t.throws(() => vmId(text), { code: "malformed-vm" }, text);
    t.throws(() => hostId(text), { code: "malformed-host" }, text);
  }
  t.equal(nextEpoch(NEVER_BOUND), 1);
  for (const value of [-1, 0.5, NaN, Infinity, 2 ** 53]) {
    t.throws(() => epoch(value), { code: "malformed-epoch" }, String(value));
    t.throws(() => keyId(value), { code: "malformed-key-id" }, String(value));
  }
  t.throws(() => nextEpoch(epoch(Number.MAX_SAFE_INTEGER)), { code: "malformed-epoch" }, "it never goes round");
  t.throws(() => keyId(2 ** 32), { code: "malformed-key-id" });
  for (const value of [NaN, Infinity]) t.throws(() => millis(value), { code: "malformed-duration" });
  t.equal(migrationId(vmId("web1"), epoch(7)), "web1@7");
  t.same(parseMigrationId("web1@7"), { id: "web1@7", vm: "web1", epoch: 7 });
  for (const text of ["web1", "web1@", "@7", "web1@0", "web1@07", "web1@7@8", "web1@1.5", "Web1@7", "web1@9007199254740992"]) {
    t.throws(() => parseMigrationId(text), CareofError, text);
  }
  t.end();
});

t.test("errors and reasons", (t) => {
  const cause = new Error("deep");
  t.match(new CareofError("some-code", "said", { retryable: true, cause }), { name: "CareofError", code: "some-code", message: "said", retryable: true, cause });
  t.equal(Object.hasOwn(new CareofError("x", "y"), "cause"), false);
  t.match(toCareofError(cause), { code: "internal", message: "deep", cause, retryable: false });
  t.match(toCareofError("text", "other"), { code: "other", message: "text" });
  const own = new CareofError("x", "y");
  t.equal(toCareofError(own), own);
  t.same([replyCode("accepted"), replyCode("bad-tag"), replyCode("stale-epoch"), replyCode("malformed"), isReason("toString"), isReason("not-owner")], [0, 131, 133, 134, false, true]);
  t.ok(Object.values(REASONS).every((code) => code === 0 || (code >= 128 && code <= 136)), "RFC 5944's codes");
  t.end();
});

t.test("a configuration's errors name file, line and column", (t) => {
  const schema = z.strictObject({
    name: fields.host,
    vms: z.array(z.strictObject({ name: fields.vm, homeAddresses: z.array(fields.ipv4), keyId: fields.keyId.optional() })),
    listen: z.strictObject({ agents: fields.endpoint }).optional(),
  });
  const cases: readonly (readonly [string, string, string, RegExp])[] = [
    ["not YAML", "name: [a\n", "config-malformed", /^f\.yaml:2:1: /],
    ["a key twice", "name: a\nname: b\nvms: []\n", "config-malformed", /^f\.yaml:2:1: .*unique/],
    ["an unknown key", "name: a\nvms: []\nvmz: []\n", "config-invalid", /^f\.yaml:3:1: unknown key "vmz"$/],
    ["one further down", "name: a\nvms:\n  - name: b\n    homeAddresses: []\n    colour: red\n", "config-invalid", /^f\.yaml:5:5: vms\.0: unknown key "colour"$/],
    ["a missing key", "vms: []\n", "config-invalid", /^f\.yaml:1:1: name: /],
    ["a wrong type", "name: 5\nvms: []\n", "config-invalid", /^f\.yaml:1:7: name: .*string/],
    ["a bad name", "name: Host A\nvms: []\n", "config-invalid", /^f\.yaml:1:7: name: "Host A" is not a host name/],
    ["an entry of a list", "name: a\nvms:\n  - name: b\n    homeAddresses:\n      - 192.0.2.1\n      - 192.0.2\n", "config-invalid", /^f\.yaml:6:9: vms\.0\.homeAddresses\.1: "192\.0\.2" is not an IPv4/],
    ["a port", "name: a\nvms: []\nlisten: { agents: \"0.0.0.0:99999\" }\n", "config-invalid", /^f\.yaml:3:19: listen\.agents: .*address:port/],
    ["a key id", "name: a\nvms:\n  - { name: b, homeAddresses: [], keyId: -1 }\n", "config-invalid", /^f\.yaml:3:42: vms\.0\.keyId: /],
    ["nothing", "", "config-invalid", /^f\.yaml:1:1: /],
    ["a list instead", "- a\n", "config-invalid", /^f\.yaml:1:1: /],
    ["two at once", "name: A\nvms: 5\n", "config-invalid", /^f\.yaml:1:7: name: .*\nf\.yaml:2:6: vms: /],
  ];
  for (const [what, text, code, message] of cases) t.throws(() => parseConfig(text, "f.yaml", schema), { name: "CareofError", code, message }, what);
  t.same(parseConfig("name: a\nvms: [{name: b, homeAddresses: [192.0.2.1]}]\nlisten: {agents: '[::]:4434'}\n", "f.yaml", schema), {
    name: "a", vms: [{ name: "b", homeAddresses: ["192.0.2.1"] }], listen: { agents: { address: "::", port: 4434 } },
  });
  t.throws(() => readConfig("/nonexistent/careof.yaml", schema), { code: "config-unreadable", message: /nonexistent/ });
  const directory = mkdtempSync(join(tmpdir(), "careof-model-"));
  t.teardown(() => { rmSync(directory, { recursive: true, force: true }); });
  writeFileSync(join(directory, "a.yaml"), "name: a\nvms: []\n");
  t.same(readConfig(join(directory, "a.yaml"), schema), { name: "a", vms: [] });
  fc.assert(fc.property(fc.string({ unit: "binary", maxLength: 120 }), (text) => {
    try {
      parseConfig(text, "f.yaml", schema);
    } catch (thrown) {
      if (!(thrown instanceof CareofError)) throw thrown;
    }
  }), { numRuns: 500 });
  t.end();
});

t.test("the version is the package's", (t) => {
  const written = readFileSync(new URL("../../../package.json", import.meta.url), "utf8");
  t.equal(careofVersion(), z.object({ version: z.string() }).parse(JSON.parse(written)).version);
  t.end();
});

t.test("endpoints", (t) => {
  t.same(endpoint("192.0.2.1:4434"), { address: "192.0.2.1", port: 4434 });
  t.same(endpoint("[2001:db8::1]:0"), { address: "2001:db8::1", port: 0 });
  for (const text of ["", "192.0.2.1", "192.0.2.1:", ":4434", "::1:4434", "192.0.2.1:65536", "192.0.2.1:-1", "[]:1"]) {
    t.throws(() => endpoint(text), { code: "malformed-endpoint" }, text);
  }
  t.end();
});
