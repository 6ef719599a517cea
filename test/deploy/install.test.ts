import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import type { Probe } from "../../net/probe.js";

const root = fileURLToPath(new URL("../../..", import.meta.url));
const installer = join(root, "deploy", "install.sh");
const units = readdirSync(join(root, "deploy", "systemd"));

interface Ran {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function run(words: readonly string[], environment: Readonly<Record<string, string>> = {}): Ran {
  const [program = "", ...rest] = words;
  return spawnSync(program, rest, { encoding: "utf8", env: { ...process.env, ...environment } });
}

t.test("installs, upgrades and goes away again", (t) => {
  const destination = t.testdir({});
  const install = (...args: readonly string[]): Ran => run(["bash", installer, ...args], { DESTDIR: destination });
  const main = join(destination, "opt", "careof", "dist", "cli", "main.js");
  const command = join(destination, "usr", "local", "bin", "careof");

  for (const time of ["first", "second"]) {
    const ran = install();
    t.equal(ran.status, 0, `${time}: ${ran.stderr}`);
    t.match(run([process.execPath, main, "--version"]).stdout, /^\d+\.\d+\.\d+\n$/, `${time}: what is installed runs`);
    t.match(readFileSync(command, "utf8"), /^#!\/bin\/sh\nexec \/.*node \/opt\/careof\/dist\/cli\/main\.js "\$@"\n$/);
    t.equal(statSync(command).mode & 0o777, 0o755);
    t.equal(statSync(join(destination, "etc", "careof")).mode & 0o777, 0o750);
    t.same(readdirSync(join(destination, "etc", "systemd", "system")).sort(), [...units].sort());
    t.same(readdirSync(join(destination, "opt")), ["careof"], "nothing half done beside it");
  }
  const installed = join(destination, "opt", "careof");
  t.notOk(existsSync(join(installed, "dist", "test")), "the tests stay behind");
  t.notOk(existsSync(join(installed, "node_modules", "tap")), "so does what they need");
  const rows = JSON.parse(run([process.execPath, main, "doctor", "--output", "json"]).stdout) as Probe[];
  t.equal(rows.find((row) => row.name === "bpf")?.ok, true, "it finds its BPF object and its native library there");
  const demo = run([process.execPath, main, "demo"]);
  t.match(demo, { status: 1, stdout: "", stderr: /^careof demo: [^\n]*(in a clone of the repository|must be run as root)\.\n$/ }, "it has no demo, and says where there is one before it makes anything");

  writeFileSync(join(destination, "etc", "careof", "agent.yaml"), "name: host-a\n");
  for (const time of ["first", "second"]) {
    const ran = install("--uninstall");
    t.equal(ran.status, 0, `${time}: ${ran.stderr}`);
    t.same([existsSync(installed), existsSync(command)], [false, false]);
    t.same(readdirSync(join(destination, "etc", "systemd", "system")), []);
    t.ok(existsSync(join(destination, "etc", "careof", "agent.yaml")), "configuration stays");
  }
  t.end();
});

t.test("refuses what it should not touch", (t) => {
  const destination = t.testdir({ usr: { local: { bin: { careof: "#!/bin/sh\necho somebody else's\n" } } } });
  const before = readFileSync(join(destination, "usr", "local", "bin", "careof"), "utf8");
  for (const args of [[], ["--uninstall"]]) {
    const ran = run(["bash", installer, ...args], { DESTDIR: destination });
    t.equal(ran.status, 1);
    t.match(ran.stderr, /careof: .* is not careof's/);
    t.equal(readFileSync(join(destination, "usr", "local", "bin", "careof"), "utf8"), before);
    t.same(readdirSync(destination), ["usr"], "nothing else was made");
  }
  t.equal(run(["bash", installer, "--purge"], { DESTDIR: destination }).status, 2);
  t.equal(run(["bash", installer, "--uninstall", "now"], { DESTDIR: destination }).status, 2);
  t.end();
});

/** The value of a unit's setting. */
function setting(unit: string, name: string): string | null {
  return new RegExp(`^${name}=(.*)$`, "m").exec(readFileSync(join(root, "deploy", "systemd", unit), "utf8"))?.[1] ?? null;
}

t.test("the units", (t) => {
  const mountNamespace = ["ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ReadWritePaths", "InaccessiblePaths"];
  for (const unit of ["careof-agent.service", "careof-home-agent.service"]) {
    for (const name of mountNamespace) t.equal(setting(unit, name), null, `${unit}: ${name} would take the BPF pins away with the service`);
  }
  t.equal(setting("careof-agent.service", "KillMode"), "process", "guests live on");
  t.equal(setting("careof-agent.service", "OOMPolicy"), "continue", "one guest's end is not the others'");
  t.end();
});

const analyze = run(["systemd-analyze", "--version"]).status === 0;
t.test("systemd understands the units", { skip: analyze ? false : "there is no systemd-analyze here" }, (t) => {
  for (const unit of units) {
    const said = run(["systemd-analyze", "verify", "--man=no", join(root, "deploy", "systemd", unit)]).stderr.split("\n").filter((line) => line !== "" && !line.includes("/usr/local/bin/careof is not executable"));
    t.same(said, [], unit);
  }
  t.end();
});

t.test("the capabilities that the units leave are enough", { skip: process.getuid?.() === 0 ? false : "needs root" }, (t) => {
  for (const unit of ["careof-agent.service", "careof-home-agent.service"]) {
    const left = (setting(unit, "CapabilityBoundingSet") ?? "").split(" ").map((name) => `+${name.replace("CAP_", "").toLowerCase()}`);
    const confined = ["unshare", "--mount", "setpriv", "--no-new-privs", `--bounding-set=-all,${left.join(",")}`];
    const doctor = run([...confined, process.execPath, join(root, "dist", "cli", "main.js"), "doctor", "--output", "json"]);
    const rows = JSON.parse(doctor.stdout) as Probe[];
    for (const name of ["bpf", "tun", "clsact"]) t.equal(rows.find((row) => row.name === name)?.ok, true, `${unit}: ${name}`);
    const pins = t.testdir({});
    const mounted = run([...confined, "mount", "-t", "bpf", "bpf", pins]);
    t.equal(mounted.status, 0, `${unit}: a BPF file system for the pins: ${mounted.stderr}`);
  }
  t.end();
});
