import { chmodSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { z } from "zod";
import type { Machine } from "../../deploy/doctor/checks.js";
import { fix, persist, type Settings } from "../../deploy/doctor/fix.js";
import { ThisMachine } from "../../deploy/doctor/machine.js";
import { runDoctor } from "../../deploy/doctor/main.js";
import { CareofError } from "../../model/errors.js";
import { probeJit, type Probe } from "../../net/probe.js";
import { readSysctl, sysctlText } from "../../net/sysctl.js";
import { setNetworkNamespace } from "../../net/syscall.js";
import { Namespaces } from "../net/lab/namespaces.js";

t.setTimeout(120_000); // a busy machine

const FORWARD = ["net", "ipv4", "ip_forward"] as const;
const JIT = ["net", "core", "bpf_jit_enable"] as const;
const DOTTED = ["net", "ipv4", "conf", "eth0.5", "rp_filter"] as const;

function row(...settings: NonNullable<Probe["settings"]>): Probe {
  return { name: "row", ok: "warn", found: "", mend: "", settings };
}

function memory(values: Readonly<Record<string, string>>, file = ""): Settings & { readonly values: Map<string, string>; text: () => string } {
  const held = new Map(Object.entries(values));
  let text = file;
  return {
    file: "/memory", values: held, text: () => text,
    read: (name) => held.get(sysctlText(name)) ?? null,
    write: (name, value) => {
      if (sysctlText(name).startsWith("kernel")) throw new CareofError("kernel-refused", "cannot set: EACCES");
      held.set(sysctlText(name), value);
    },
    readFile: () => text,
    writeFile: (after) => { text = after; },
  };
}

t.test("what is wrong is set, what is right is left alone, what cannot be set is said", (t) => {
  const settings = memory({ "net.ipv4.ip_forward": "0", "net/ipv4/conf/eth0.5/rp_filter": "2", "kernel.x": "0" });
  const rows = [row({ name: FORWARD, value: "1" }, { name: DOTTED, value: "2" }), row({ name: FORWARD, value: "1" }, { name: ["kernel", "x"], value: "1" }, { name: ["net", "none"], value: "1" })];
  t.same(fix(rows, settings), [
    { sysctl: "net.ipv4.ip_forward", from: "0", to: "1", done: true, reason: "" },
    { sysctl: "kernel.x", from: "0", to: "1", done: false, reason: "cannot set: EACCES" },
  ]);
  t.same(fix(rows, settings).map(({ sysctl }) => sysctl), ["kernel.x"], "once");
  t.end();
});

t.test("the lasting file: ours is added, the rest stays, and nothing is written twice", (t) => {
  const settings = memory({ "net.ipv4.ip_forward": "1", "net/ipv4/conf/eth0.5/rp_filter": "2" }, "# mine\n net.core.somaxconn=1000\nnet.ipv4.ip_forward = 0\n");
  const rows = [row({ name: FORWARD, value: "1" }, { name: DOTTED, value: "2" }, { name: ["net", "none"], value: "1" })];
  t.equal(persist(rows, settings), true);
  t.same(settings.text().split("\n").slice(1), ["net.core.somaxconn = 1000", "net.ipv4.ip_forward = 1", "net/ipv4/conf/eth0.5/rp_filter = 2", ""]);
  t.equal(persist(rows, settings), false);
  t.end();
});

t.test("the BPF compiler: what is right already goes into the file too", { skip: readSysctl(JIT) === "1" ? false : "this machine does not say that it compiles" }, (t) => {
  const settings = memory({ "net.core.bpf_jit_enable": "1" });
  const rows = probeJit();
  t.match(rows, [{ name: "bpf jit", ok: true }]);
  t.same([fix(rows, settings), persist(rows, settings)], [[], true]);
  t.match(settings.text(), /^net\.core\.bpf_jit_enable = 1$/m);
  t.end();
});

const all = new Namespaces();
t.teardown(() => { all.destroy(); });

t.test("a home agent's machine as it came, for real", async (t) => {
  const net = all.make("fix");
  const far = all.make("far");
  for (const name of ["uplink", "home0", "side"]) all.connect(net, name, far, name);
  net.ip("address add 192.0.2.1/24 dev uplink", "address add 198.51.100.1/24 dev home0", "address add 10.9.9.1/24 dev side", "route add default via 192.0.2.254");
  for (const [name, value] of Object.entries({ "ip_forward": "0", "conf.all.rp_filter": "0", "conf.side.rp_filter": "1", "conf.uplink.rp_filter": "1", "conf.home0.rp_filter": "1", "conf.home0.proxy_arp": "1" })) net.sysctl(`net.ipv4.${name}`, value);
  const sysctl = (name: string): string => net.exec("sysctl", "-n", `net.ipv4.${name}`).trim();
  setNetworkNamespace(openSync(net.path, "r"));

  const directory = t.testdir({});
  const config = join(directory, "home-agent.yaml");
  writeFileSync(config, "stateDir: s\nrunDir: r\ntunnel: { uplink: uplink, address: 192.0.2.1 }\nhome: { prefixes: [198.51.100.0/24], mode: proxy-arp, interface: home0 }\n");
  const lasting = join(directory, "etc", "sysctl.d", "60-careof.conf");
  const here = new ThisMachine(lasting);
  const machine: Machine = {
    nodeVersion: here.nodeVersion, userId: here.userId, settings: here.settings,
    qemuVersion: () => Promise.resolve("QEMU emulator version 10.0.2"), accelerator: () => Promise.resolve({ accelerator: "kvm", reason: "booted" }), bind: () => Promise.resolve(null),
    network: (uplink, home, dataPlane) => here.network(uplink, home, dataPlane),
  };
  const doctor = async (output: "text" | "json", fix: boolean, persist: boolean): Promise<{ readonly code: number; readonly said: string }> => {
    let said = "";
    const code = await runDoctor({ output, configFile: config, fix, persist, write: (text) => { said += text; } }, machine);
    return { code, said };
  };

  const before = await doctor("text", false, false);
  t.match(before.said, /warn {2}forwarding +net\.ipv4\.ip_forward, .*is 0/);
  t.match(before.said, /warn {2}rp_filter +rp_filter is strict \(1\) on (home0, side|side, home0), where/, "not the uplink, by which the default route leaves");
  t.match(before.said, /warn {2}home LAN +net\.ipv4\.conf\.home0: proxy_arp is 1/);
  t.equal(sysctl("ip_forward"), "0", "without --fix nothing is touched");

  const fixed = await doctor("text", true, false);
  t.equal(fixed.code, 0);
  t.match(fixed.said, /^set {3}net\.ipv4\.ip_forward +0 → 1$/m);
  t.match(fixed.said, /^ok {4}forwarding/m);
  t.match(fixed.said, /^ok {4}home LAN +home0, [0-9a-f:]{17}, 198\.51\.100\.1\/24$/m);
  t.match(fixed.said, /^ok {4}fix +net\.ipv4\.[^\n]*until this machine starts anew/m);
  t.same(["ip_forward", "conf.side.rp_filter", "conf.uplink.rp_filter", "conf.home0.rp_filter", "conf.home0.proxy_arp"].map(sysctl), ["1", "2", "1", "2", "0"]);
  t.throws(() => readFileSync(lasting), { code: "ENOENT" }, "nothing is written unless asked");

  const again = await doctor("json", true, true);
  const answer = z.object({ checks: z.array(z.object({ name: z.string() }).loose()), fixes: z.array(z.unknown()), file: z.string().nullable() }).parse(JSON.parse(again.said));
  t.same({ ...answer, checks: answer.checks.length > 5 }, { checks: true, fixes: [], file: lasting });
  t.notMatch(again.said, /"settings"/);
  const text = readFileSync(lasting, "utf8");
  for (const line of ["net.ipv4.ip_forward = 1", "net.ipv4.conf.side.rp_filter = 2", "net.ipv4.conf.home0.proxy_arp = 0", "net.ipv4.conf.all.proxy_arp = 0"]) t.match(text, line);
  t.notMatch(text, "uplink.rp_filter");
  t.equal(sysctl("conf.all.proxy_arp"), "0", "it was right from the beginning, and is to stay so");
  t.match((await doctor("text", true, true)).said, /ok {4}fix +no sysctl had to be set[\s\S]*ok {4}sysctl\.d +\S+60-careof\.conf said so already/);
  t.equal(readFileSync(lasting, "utf8"), text);
  net.exec("sysctl", "-q", "-p", lasting);

  rmSync(lasting);
  mkdirSync(lasting);
  t.match(await doctor("text", true, true), { code: 1, said: /FAIL {2}sysctl\.d +\S+60-careof\.conf: / }, "a file that cannot be written");
  chmodSync(lasting, 0o755);
  net.ip("link set home0 down", "route del default");
  t.match(await doctor("text", true, false), { code: 1, said: /FAIL {2}home LAN +home0 is down\n +→ ip link set home0 up/ });
});

t.test("without the right to: what could not be set is said, and the exit code is 1", async (t) => {
  let said = "";
  const refusing: Machine = {
    nodeVersion: "20.20.0", userId: 1000, qemuVersion: () => Promise.resolve("QEMU emulator version 10.0.2"), accelerator: () => Promise.resolve({ accelerator: "kvm", reason: "booted" }), bind: () => Promise.resolve(null),
    network: () => Promise.resolve([row({ name: ["kernel", "x"], value: "1" })]),
    settings: memory({ "kernel.x": "0" }),
  };
  t.equal(await runDoctor({ output: "text", configFile: null, fix: true, persist: false, write: (text) => { said += text; } }, refusing), 1);
  t.match(said, /^FAIL {2}kernel\.x +not set to 1: cannot set: EACCES$/m);
  t.match(said, /^FAIL {2}fix +kernel\.x could not be set: cannot set: EACCES\n +→ run doctor as root/m);
});
