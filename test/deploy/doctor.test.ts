import { createSocket } from "node:dgram";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { report, runDoctor } from "../../deploy/doctor/main.js";
import { planFor } from "../../deploy/doctor/plan.js";
import { probePorts } from "../../deploy/doctor/ports-check.js";
import { judgeQemu } from "../../deploy/doctor/qemu-check.js";
import type { Probe } from "../../net/probe.js";

void t.test("what is said of a QEMU", (test) => {
  const kvm = { accelerator: "kvm", reason: "booted" } as const;
  const tcg = { accelerator: "tcg", reason: "/dev/kvm: not there" } as const;
  const table = [
    [null, ["warn"], /no qemu-x here/],
    [{ version: "10.0.2", accelerator: kvm }, [true, true], /QEMU 10\.0\.2/],
    [{ version: "10.0.2", accelerator: tcg }, [true, "warn"], /tcg .*not there/],
    [{ version: "9.0", accelerator: tcg }, [true, "warn"], /9\.0/],
    [{ version: "8.2.0", accelerator: tcg }, [false, "warn"], /corrupts emulated guests/],
    [{ version: "7.2.18", accelerator: tcg }, [false, "warn"], /corrupts/],
    [{ version: "7.2.18", accelerator: kvm }, ["warn", true], /gate/],
    [{ version: "of an unknown version", accelerator: kvm }, ["warn", true], /unknown/],
  ] as const;
  for (const [facts, oks, words] of table) {
    const probes = judgeQemu(facts, "qemu-x");
    test.same(probes.map((probe) => probe.ok), oks, facts?.version ?? "none");
    test.match(JSON.stringify(probes), words);
    for (const probe of probes) test.equal(probe.mend === "", probe.ok === true, "what is wrong says how to mend it");
  }
  test.end();
});

void t.test("ports: free, in use, not ours", async (test) => {
  const tcp = createServer();
  const udp = createSocket("udp4");
  await new Promise<void>((resolve) => { tcp.listen(0, "127.0.0.1", resolve); });
  await new Promise<void>((resolve) => { udp.bind(0, "127.0.0.1", resolve); });
  const taken = tcp.address();
  const tcpPort = taken !== null && typeof taken === "object" ? taken.port : 0;
  const found = await probePorts([
    { what: "a", protocol: "tcp", at: { address: "127.0.0.1", port: 0 } },
    { what: "b", protocol: "tcp", at: { address: "127.0.0.1", port: tcpPort } },
    { what: "c", protocol: "udp", at: { address: "127.0.0.1", port: udp.address().port } },
    { what: "d", protocol: "udp", at: { address: "203.0.113.9", port: 4434 } },
  ]);
  test.same(found.map((probe) => probe.ok), [true, "warn", "warn", false]);
  tcp.close();
  udp.close();
});

void t.test("a configuration says what to look at", (test) => {
  const directory = mkdtempSync(join(tmpdir(), "careof-doctor-test-"));
  test.teardown(() => { rmSync(directory, { recursive: true }); });
  const agent = join(directory, "agent.yaml");
  writeFileSync(agent, "name: host-a\ncareOf: 10.1.0.2\nuplink: up9\nhomeAgent: ws://192.0.2.1:4434/v1/agent\ntokenFile: t\nstateDir: s\nrunDir: r\nqemu: { accel: tcg }\n");
  test.match(planFor(agent), { role: "host agent", uplink: "up9", qemu: { accel: "tcg" }, ports: [{ protocol: "udp", at: { port: 4434 } }] });
  const home = join(directory, "home.yaml");
  writeFileSync(home, "stateDir: s\nrunDir: r\ntunnel: { uplink: up8, address: 192.0.2.1 }\nhome: { prefixes: [198.51.100.0/24] }\nlisten: { api: 127.0.0.1:9999 }\n");
  test.match(planFor(home), { role: "home agent", uplink: "up8", qemu: null });
  test.equal(planFor(home).ports.find((use) => use.at.port === 9999)?.what, "API for operators");
  writeFileSync(home, "stateDir: s\nrunDir: r\ntunel: 1\n");
  test.throws(() => planFor(home), { code: "config-invalid" });
  test.end();
});

void t.test("the report fits 80 columns and counts", (test) => {
  const probes: Probe[] = [
    { name: "bpf", ok: true, found: "yes", mend: "" },
    { name: "forwarding", ok: "warn", found: "off ".repeat(40).trim(), mend: "switch it on, ".repeat(20).trim() },
    { name: "tun", ok: false, found: "no", mend: "modprobe tun" },
  ];
  const text = report(probes);
  for (const line of text.split("\n")) test.ok(line.length <= 80, line);
  test.match(text, /^ok {4}bpf {9}yes$/m);
  test.match(text, /^FAIL {2}tun {9}no\n *→ modprobe tun$/m);
  test.match(text, /\n1 fine, 1 warning, 1 to mend\n$/);
  test.end();
});

void t.test("on this machine, for real", async (test) => {
  let text = "";
  const code = await runDoctor({ output: "json" }, (part) => { text += part; });
  const probes: unknown = JSON.parse(text);
  test.ok(Array.isArray(probes) && probes.length >= 8, text);
  test.match(probes, [{ name: "node", ok: true }]);
  test.match(text, /"name": "bpf",\s*"ok": true/);
  test.match(text, /"name": "accelerator"/);
  test.equal(code, /"ok": false/.test(text) ? 1 : 0);
  text = "";
  test.equal(await runDoctor({ output: "text", config: "/nonexistent/careof.yaml" }, (part) => { text += part; }), 1);
  test.match(text, /FAIL {2}configuration +cannot read the configuration/);
});
