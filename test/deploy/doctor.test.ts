import { createSocket } from "node:dgram";
import { chmodSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import t from "tap";
import { chooseAccelerator } from "../../agent/hypervisor/accelerator.js";
import { SystemClock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import type { Probe } from "../../net/probe.js";
import { checkApi, checkHypervisor, checkNode, checkPort, checkUser, type Machine } from "../../deploy/doctor/checks.js";
import { ThisMachine } from "../../deploy/doctor/machine.js";
import { runDoctor } from "../../deploy/doctor/main.js";

/** A machine on which all is well, but for what is laid over it. */
function machine(overlay: Partial<Machine> = {}): Machine {
  return {
    settings: { file: "/nowhere", read: () => null, write: () => undefined, readFile: () => "", writeFile: () => undefined },
    nodeVersion: "20.20.0",
    userId: 0,
    qemuVersion: () => Promise.resolve("QEMU emulator version 10.0.2 (Debian 1:10.0.2)"),
    accelerator: () => Promise.resolve({ accelerator: "kvm", reason: "booted" }),
    bind: () => Promise.resolve(null),
    network: () => Promise.resolve([{ name: "bpf", ok: true, found: "taken", mend: "" }]),
    ...overlay,
  };
}

const tcg = { accelerator: () => Promise.resolve({ accelerator: "tcg", reason: "a guest on KVM hangs" } as const) };
const version = (text: string): Partial<Machine> => ({ qemuVersion: () => Promise.resolve(`QEMU emulator version ${text}`) });
const any = { binary: "qemu", accelerator: "auto", kernel: null, needed: true } as const;

t.test("QEMU and the accelerator, by table", async (t) => {
  const none: Partial<Machine> = { qemuVersion: () => Promise.reject(new CareofError("no-command", "cannot run qemu: ENOENT")) };
  const cases: readonly [name: string, on: Partial<Machine>, wanted: Partial<typeof any> | { accelerator: "kvm" | "tcg" }, oks: readonly Probe["ok"][], says: RegExp][] = [
    ["10 with KVM", {}, {}, [true, true], /QEMU 10\.0.*KVM: booted/s],
    ["10 without KVM", tcg, {}, [true, "warn"], /TCG.*hangs/s],
    ["10, TCG as configured", { accelerator: () => Promise.reject(new Error("not asked")) }, { accelerator: "tcg" }, [true, true], /configured/],
    ["10, KVM configured and not there", tcg, { accelerator: "kvm" }, [true, false], /TCG/],
    ["7.2 without KVM corrupts guests", { ...tcg, ...version("7.2.22") }, {}, ["warn", "warn"], /7\.2 without KVM: .*corrupt its memory/],
    ["8.2 without KVM corrupts guests", { ...tcg, ...version("8.2.0") }, {}, ["warn", "warn"], /corrupt/],
    ["9.0 without KVM", { ...tcg, ...version("9.0.0") }, {}, [true, "warn"], /QEMU 9\.0/],
    ["7.2 with KVM cannot lead", version("7.2.22"), {}, ["warn", true], /no switchover-ack/],
    ["8.0 with KVM cannot lead", version("8.0.4"), {}, ["warn", true], /no switchover-ack/],
    ["8.1 with KVM leads", version("8.1.0"), {}, [true, true], /QEMU 8\.1/],
    ["8.10 is newer than 8.1", version("8.10.0"), {}, [true, true], /QEMU 8\.10/],
    ["none, on a host", none, {}, [false], /cannot run qemu: ENOENT/],
  ];
  for (const [name, on, wanted, oks, says] of cases) {
    const rows = await checkHypervisor(machine(on), { ...any, ...wanted });
    t.same(rows.map((row) => row.ok), oks, name);
    t.match(rows.map((row) => row.found).join("\n"), says, name);
    for (const row of rows) t.equal(row.mend === "", row.ok === true, `${name}: ${row.name} says how to mend`);
  }
  t.equal((await checkHypervisor(machine(none), { ...any, needed: false }))[0]?.ok, "warn", "a home agent needs no QEMU");
  t.equal((await checkHypervisor(machine({ qemuVersion: () => Promise.resolve("hello") }), any))[0]?.ok, "warn", "something else by that name");
});

t.test("what to do about KVM depends on what is in its way", async (t) => {
  const advice = async (reason: string): Promise<string> => (await checkHypervisor(machine({ accelerator: () => Promise.resolve({ accelerator: "tcg", reason }) }), any))[1]?.mend ?? "";
  // The reasons as they really are, where they can be had on any machine.
  const real = async (device: string): Promise<string> => (await chooseAccelerator({ binary: "false", wish: "auto", kernel: null, directory: t.testdir({}), clock: new SystemClock(), device })).reason;
  t.match(await advice(await real(join(t.testdir({}), "kvm"))), /^switch virtualization on in the firmware.*kvm_intel/);
  t.match(await advice("/dev/kvm: EACCES: permission denied, access '/dev/kvm'"), /^run doctor and the agent as root/);
  t.match(await advice("/dev/kvm is there, but no kernel in /boot (or qemu.probeKernel) to try it with"), /^name a kernel.*qemu\.probeKernel/);
  t.match(await advice("a guest on KVM hangs: not a word after 3001 ms"), /^the hypervisor below/);
  t.match(await advice("KVM refuses a guest: ioctl(KVM_CREATE_VM) failed: Device or resource busy"), /^see what QEMU says/);
  t.notMatch(await advice("KVM refuses a guest: QEMU ended"), /firmware/);
});

t.test("Node, user and ports, by table", async (t) => {
  const node: readonly [string, boolean][] = [["20.15.0", true], ["20.14.9", false], ["18.20.0", false], ["22.0.0", true], ["20.20.2", true]];
  for (const [nodeVersion, ok] of node) t.equal(checkNode(machine({ nodeVersion })).ok, ok, nodeVersion);
  t.equal(checkUser(machine()).ok, true);
  t.equal(checkUser(machine({ userId: 1000 })).ok, "warn");
  const port = { kind: "tcp", address: "127.0.0.1", port: 8434, what: "the API", key: "listen.api" } as const;
  t.equal((await checkPort(machine(), port)).ok, true);
  const taken = await checkPort(machine({ bind: () => Promise.resolve("EADDRINUSE") }), port);
  t.equal(taken.ok, "warn", "careof itself may hold it");
  t.match(taken.mend, /ss -lnp.*listen\.api/);
});

t.test("an API for the whole network is worth a look", (t) => {
  for (const address of ["127.0.0.1", "127.8.0.1", "::1", "localhost"]) t.equal(checkApi(address), null, address);
  for (const address of ["0.0.0.0", "::", "192.0.2.1", "12.7.0.0"]) t.match(checkApi(address), { ok: "warn", found: /without a password/, mend: /127\.0\.0\.1/ }, address);
  t.end();
});

t.test("ports are tried for real", async (t) => {
  const here = new ThisMachine();
  const server = createServer();
  const socket = createSocket("udp4");
  await new Promise<void>((resolve) => { server.listen(0, "127.0.0.1", resolve); });
  await new Promise<void>((resolve) => { socket.bind(0, "127.0.0.1", resolve); });
  const ports = { tcp: (server.address() as AddressInfo).port, udp: socket.address().port };
  for (const kind of ["tcp", "udp"] as const) t.match(await here.bind(kind, "127.0.0.1", ports[kind]), /EADDRINUSE/, kind);
  await new Promise<void>((resolve) => { server.close(() => { resolve(); }); });
  await new Promise<void>((resolve) => { socket.close(resolve); });
  for (const kind of ["tcp", "udp"] as const) t.equal(await here.bind(kind, "127.0.0.1", ports[kind]), null, `${kind}, free again`);
  t.match(await here.bind("tcp", "192.0.2.77", 0), /EADDRNOTAVAIL/);
});

async function doctor(on: Partial<Machine>, output: "text" | "json" = "text", configFile: string | null = null): Promise<{ readonly code: number; readonly said: string }> {
  let said = "";
  const code = await runDoctor({ output, configFile, fix: false, persist: false, write: (text) => { said += text; } }, machine(on));
  return { code, said };
}

t.test("the verdict", async (t) => {
  const good = await doctor({});
  t.equal(good.code, 0);
  t.match(good.said, /^ok {4}bpf +taken$/m);
  t.match(good.said, /\nReady\.\n$/);
  const warned = await doctor(tcg);
  t.equal(warned.code, 0, "a warning is no failure");
  t.match(warned.said, /^warn {2}accelerator[\s\S]*→ the hypervisor below[\s\S]*Ready; 1 worth a look/m);
  const failed = await doctor({ ...tcg, network: () => Promise.resolve([{ name: "tun", ok: false, found: "none", mend: "modprobe tun" }]) });
  t.equal(failed.code, 1);
  t.match(failed.said, /^FAIL {2}tun +none\n +→ modprobe tun$/m);
  t.match(failed.said, /1 to mend before careof can run here, 1 worth a look/);
  const broken = await doctor({ network: () => Promise.reject(new Error("no netlink here")) });
  t.equal(broken.code, 1);
  t.match(broken.said, /FAIL {2}network +cannot be checked: no netlink here[\s\S]*ok {4}qemu/, "the other checks are made all the same");
  t.same((JSON.parse((await doctor({}, "json")).said) as Probe[]).map((row) => row.name), ["node", "user", "bpf", "qemu", "accelerator", "tcp 4434", "udp 4434", "tcp 8434"]);
});

t.test("with a configuration, what it names is checked", async (t) => {
  const directory = t.testdir({
    "web1.key": "ab".repeat(32),
    token: "secret\n",
    "agent.yaml": "name: host-a\ncareOf: 10.1.0.2\nuplink: eth9\nhomeAgent: ws://192.0.2.1:4434/v1/agent\ntokenFile: TOKEN\nstateDir: /var/lib/x\nrunDir: /run/x\nqemu: { binary: my-qemu, accel: kvm }\n",
    "home.yaml": "name: home-1\nstateDir: s\nrunDir: r\ntunnel: { uplink: eth8, address: 192.0.2.1 }\nhome: { prefixes: [198.51.100.0/24] }\nlisten: { api: 127.0.0.1:9999 }\n",
    "broken.yaml": "name: home-1\nstatedir: s\n",
  });
  const seen: unknown[] = [];
  const spy: Partial<Machine> = {
    qemuVersion: (binary) => { seen.push(binary); return machine().qemuVersion(binary); },
    network: (uplink) => { seen.push(uplink); return Promise.resolve([]); },
    bind: (kind, address, port) => { seen.push(`${kind} ${address}:${String(port)}`); return Promise.resolve(null); },
  };
  const agentFile = join(directory, "agent.yaml");
  const token = join(directory, "token");
  const agentText = (name: string): string => `name: host-a\ncareOf: 10.1.0.2\nuplink: eth9\nhomeAgent: ws://192.0.2.1:4434/v1/agent\ntokenFile: ${name}\nstateDir: /var/lib/x\nrunDir: /run/x\nqemu: { binary: my-qemu, accel: kvm }\n`;
  writeFileSync(agentFile, agentText(token));
  chmodSync(token, 0o600);
  const agent = await doctor(spy, "text", agentFile);
  t.equal(agent.code, 0);
  t.match(agent.said, /ok {4}configuration +.*host agent host-a, care-of 10\.1\.0\.2[\s\S]*ok {4}token/);
  t.same(seen.splice(0), ["eth9", "my-qemu"]);
  chmodSync(token, 0o644);
  t.match((await doctor({}, "text", agentFile)).said, /warn {2}token +.*can be read by others \(mode 644\)\n +→ chmod 600/);
  writeFileSync(token, "\n");
  t.match(await doctor({}, "text", agentFile), { code: 1, said: /FAIL {2}token +.*is empty/ });
  writeFileSync(agentFile, agentText(join(directory, "none")));
  t.match(await doctor({}, "text", agentFile), { code: 1, said: /FAIL {2}token +.*ENOENT[\s\S]*careof keygen host/ });

  const home = await doctor(spy, "text", join(directory, "home.yaml"));
  t.equal(home.code, 0);
  t.match(home.said, /home agent home-1, 0 hosts, 0 VMs/);
  t.same(seen, ["eth8", "qemu-system-x86_64", "tcp 0.0.0.0:4434", "udp 0.0.0.0:4434", "tcp 127.0.0.1:9999"]);

  const key = join(directory, "web1.key");
  chmodSync(key, 0o600);
  const withVm = (name: string, api: string): string => {
    const file = join(directory, name);
    writeFileSync(file, `name: home-1\nstateDir: s\nrunDir: r\ntunnel: { uplink: eth8, address: 192.0.2.1 }\nhome: { prefixes: [198.51.100.0/24] }\nlisten: { ${api} }\nhosts: [{ name: host-a, careOf: [10.1.0.2], tokenHash: "${"ab".repeat(32)}" }]\n` +
      "vms: [{ name: web1, homeAddresses: [198.51.100.7], mac: 52:54:00:00:00:07, keyFile: web1.key, hosts: [host-a] }]\n");
    return file;
  };
  const closed = await doctor({}, "text", withVm("closed.yaml", "api: 127.0.0.1:8434"));
  t.match(closed, { code: 0, said: /ok {4}keys +1, which only their owner can read[\s\S]*Ready\.\n$/ });
  chmodSync(key, 0o640);
  t.match(await doctor({}, "text", join(directory, "closed.yaml")), { code: 0, said: /warn {2}keys +\S+web1\.key can be read by others[^\n]*\n +→ chmod 600 \S+web1\.key\n/ });

  const broken = await doctor({}, "text", join(directory, "broken.yaml"));
  t.equal(broken.code, 1);
  t.match(broken.said, /FAIL {2}configuration +.*broken\.yaml:2:1: unknown key "statedir"/);
  t.match(await doctor({}, "text", join(directory, "none.yaml")), { code: 1, said: /FAIL {2}configuration +cannot read/ });
});
