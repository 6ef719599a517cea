import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { GuestEvent, GuestIdentity } from "../../../agent/hypervisor/driver.js";
import { identifyProcess } from "../../../agent/hypervisor/process.js";
import { QemuDriver } from "../../../agent/hypervisor/qemu.js";
import { clock, log, until, VM } from "../rig.js";
import { QmpServer } from "./qmp-server.js";

const directory = mkdtempSync(join(tmpdir(), "co-"));
t.teardown(() => { rmSync(directory, { recursive: true, force: true }); });
const driver = new QemuDriver({ binary: "qemu-system-x86_64", accel: "tcg", probeKernel: null, directory: join(directory, "guests"), clock, log });

/** This process stands for the QEMU that somebody else has started. */
function identityAt(control: string): GuestIdentity {
  const here = identifyProcess(process.pid);
  if (here === null) throw new Error("no process");
  return { ...here, control, console: "" };
}

await t.test("a guest of somebody else whose monitor is dead is there, says so, and is reached when it answers", async (t) => {
  const server = new QmpServer(t, join(directory, "web1.qmp"));
  const guest = await driver.adopt(VM, identityAt(server.path));
  t.equal(guest?.reachable, false);
  await t.rejects(async () => { await guest?.status(); }, { code: "guest-unreachable", retryable: true });
  const heard: GuestEvent[] = [];
  guest?.subscribe((event) => heard.push(event));
  await server.listen();
  await until("it is reached", () => guest?.reachable === true);
  t.equal(await guest?.status(), "running");
  t.same(heard, [{ kind: "monitor", reachable: true }]);

  server.hangs = true;
  server.cut();
  await until("it is not any more", () => heard.length === 2);
  t.same(heard[1], { kind: "monitor", reachable: false });
  t.equal(guest?.reachable, false, "its process lives, so it is neither gone nor ended");
  server.hangs = false;
  await until("and it is again", () => guest?.reachable === true, 15_000);
  t.equal(await guest?.status(), "running");
  await guest?.release();
  await t.rejects(async () => { await guest?.progress(); }, { code: /qmp-closed|guest-unreachable/ });
});

await t.test("a monitor that hangs holds up nobody for long, and letting go of its guest ends the trying", async (t) => {
  const server = new QmpServer(t, join(directory, "hangs.qmp"));
  server.hangs = true;
  await server.listen();
  const before = clock.monotonic();
  const guest = await driver.adopt(VM, identityAt(server.path));
  t.equal(guest?.reachable, false);
  t.ok(clock.monotonic() - before < 10_000);
  await guest?.release();
});

/** A QEMU that somebody else has started, as a process of its own. */
async function theirs(path: string, whenToldToQuit: string): Promise<{ readonly identity: GuestIdentity; readonly ended: Promise<string> }> {
  const child = spawn(process.execPath, ["-e", `
    require("node:net").createServer((socket) => {
      socket.on("error", () => undefined);
      socket.write('{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}}}\\n');
      socket.on("data", (chunk) => {
        for (const line of chunk.toString().trim().split("\\n")) {
          const { execute, id } = JSON.parse(line);
          socket.write(JSON.stringify({ return: {}, id }) + "\\n");
          if (execute === "quit") { ${whenToldToQuit} }
        }
      });
    }).listen(${JSON.stringify(path)}, () => { console.log("listens"); });
  `], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise<string>((resolve) => { child.once("exit", (code, signal) => { resolve(signal ?? String(code)); }); });
  await new Promise<void>((resolve) => { child.stdout.once("data", () => { resolve(); }); });
  const identity = identifyProcess(child.pid ?? 0);
  if (identity === null) throw new Error("no process");
  return { identity: { ...identity, control: path, console: "" }, ended };
}

await t.test("a process of somebody else is asked to end before it is killed", async (t) => {
  const obedient = await theirs(join(directory, "obedient.qmp"), "setTimeout(() => { process.exit(7); }, 100);");
  await (await driver.adopt(VM, obedient.identity))?.destroy();
  t.equal(await obedient.ended, "7", "it went by itself, in its own time");
  const deaf = await theirs(join(directory, "deaf.qmp"), "");
  await (await driver.adopt(VM, deaf.identity))?.destroy();
  t.equal(await deaf.ended, "SIGKILL");
  const mute = await theirs(join(directory, "mute.qmp"), "");
  const guest = await driver.adopt(VM, { ...mute.identity, control: join(directory, "elsewhere.qmp") });
  const before = clock.monotonic();
  await guest?.destroy();
  t.equal(await mute.ended, "SIGKILL", "nor is one waited for that cannot be asked");
  t.ok(clock.monotonic() - before < 2000);
});

await t.test("a socket that is another process's by now is not asked", async (t) => {
  const server = new QmpServer(t, join(directory, "other.qmp"));
  await server.listen();
  const parent = identifyProcess(process.ppid);
  if (parent === null) throw new Error("no parent");
  const guest = await driver.adopt(VM, { ...parent, control: server.path, console: "" });
  t.equal(guest?.reachable, false);
  t.same(server.asked, []);
  await guest?.release();
});
