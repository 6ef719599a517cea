import t from "tap";
import { spawn, type ChildProcess } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parse, stringify } from "yaml";
import { z } from "zod";
import { inNamespace, must } from "../../deploy/lab/command.js";
import { Lab, moveSchema, whereSchema } from "../../deploy/lab/lab.js";
import { HOSTS, PLAN } from "../../deploy/lab/plan.js";
import { leftOver } from "../../deploy/lab/registry.js";
import { Sessions } from "../../deploy/lab/sessions.js";

/** A real QEMU that somebody else has started: it is adopted, moves with a TCP session, and is given back. */

const VM = PLAN.guest.name;
const TAP = "vmtap0";
/** For what comes by itself in a second or some; none of it is about speed. */
const COMES_MS = 90_000;
/** Of somebody else's. */
const OTHER_TAP = "vmtap1";
/** Monitor of the guest on host B: two adoptions that failed, two that did not, and the move that brought it there. */
const MONITOR_B = "run/guests/web1@5.qmp";

const qemuSchema = z.looseObject({ kernel: z.string(), initrd: z.string(), append: z.string(), memory: z.string() });
const fileSchema = z.looseObject({ vms: z.array(z.looseObject({ name: z.string(), qemu: qemuSchema })) });

const lab = await Lab.make();
const monitor = join(lab.directory, "somebody.qmp");
let sessions: Sessions | null = null;
let somebody: ChildProcess | null = null;
t.teardown(async () => {
  sessions?.close();
  somebody?.kill("SIGKILL");
  await lab.close();
});

const file = fileSchema.parse(parse(readFileSync(lab.files.homeAgent, "utf8")));
const qemu = file.vms.find((vm) => vm.name === VM)?.qemu;
if (qemu === undefined) throw new Error("the lab has no guest");
const adoptedAt = (port: string): void => {
  qemu["adopt"] = { "host-a": { qmp: monitor, port }, "host-b": { qmp: join(lab.directory, "host-b", MONITOR_B), port: `co-${VM}` } };
  writeFileSync(lab.files.homeAgent, stringify(file));
};
adoptedAt(OTHER_TAP);

/** As somebody would start it who knows nothing of careof but what the README says. */
function startQemu(): ChildProcess {
  const words = inNamespace(lab.namespace("a"), [
    "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-machine", "pc-q35-7.2", "-accel", "tcg", "-m", "128M", "-smp", "1",
    "-qmp", `unix:${monitor},server=on,wait=off`, "-serial", `file:${join(lab.directory, "somebody.log")}`,
    "-kernel", qemu?.kernel ?? "", "-initrd", qemu?.initrd ?? "", "-append", qemu?.append ?? "",
    "-netdev", `tap,id=net0,ifname=${TAP},script=no,downscript=no`, "-device", `virtio-net-pci,netdev=net0,mac=${PLAN.guest.mac},romfile=`,
  ]);
  return spawn(words[0] ?? "", words.slice(1), { stdio: "ignore", detached: true });
}

function alive(pid: number): boolean {
  try {
    return !/\) Z /.test(readFileSync(`/proc/${String(pid)}/stat`, "utf8"));
  } catch {
    return false; // it has ended
  }
}

async function asked(): Promise<readonly (string | null)[]> {
  return (await sessions?.ask() ?? []).flatMap((each) => [each.error, each.instance]);
}

async function released(): Promise<{ readonly pid: number; readonly monitor: string; readonly port: string }> {
  const { detail } = await lab.json(z.object({ vm: z.literal(VM), host: z.string(), detail: z.string() }), ["release", VM]);
  const match = /^process (\d+), monitor (\S+), port (\S+)$/.exec(detail);
  if (match === null) throw new Error(detail);
  return { pid: Number(match[1]), monitor: match[2] ?? "", port: match[3] ?? "" };
}

async function restart(host: (typeof HOSTS)[number]): Promise<void> {
  await lab.endPart(host, "SIGKILL");
  lab.startPart(host);
  await lab.connected(HOSTS, COMES_MS);
}

await t.test("what is not there cannot be adopted, and what is adopted is not started", async (t) => {
  lab.startPart("home-agent");
  for (const host of HOSTS) lab.startPart(host);
  await lab.connected(HOSTS, COMES_MS);
  t.match(await lab.careof(["adopt", VM, "host-a"]), { code: 1, stderr: /no process listens on .*somebody\.qmp.*\(start-failed\)/ });
  t.match(await lab.careof(["start", VM, "host-a"]), { code: 1, stderr: /careof adopt web1 host-a \(not-permitted\)/ });
  t.match(await lab.careof(["adopt", "web2", "host-a"]), { code: 1, stderr: /\(not-permitted\)/ });
  t.match(await lab.careof(["release", VM]), { code: 1, stderr: /\(not-running\)/ });
  t.match(await lab.where(), { state: "expired", host: null });
});

await t.test("a guest that somebody has started is adopted where it is, given back and adopted again", { timeout: 400_000 }, async (t) => {
  await must(inNamespace(lab.namespace("a"), ["ip", "tuntap", "add", "dev", TAP, "mode", "tap"]));
  somebody = startQemu();
  await lab.until("QEMU has its monitor", COMES_MS, () => Promise.resolve(existsSync(monitor)));
  await must(inNamespace(lab.namespace("a"), ["ip", "tuntap", "add", "dev", OTHER_TAP, "mode", "tap"]));
  t.match(await lab.careof(["adopt", VM, "host-a"]), { code: 1, stderr: /does not have TAP vmtap1 open.*qemu\.adopt.*\(start-failed\)/ }, "a port that is not this guest's");
  t.notMatch(await must(inNamespace(lab.namespace("a"), ["ip", "-o", "addr", "show", "dev", OTHER_TAP])), PLAN.gateway, "and that is not touched");
  adoptedAt(TAP);
  t.match(await lab.careof(["reload"]), { code: 0 });
  t.match(await lab.json(whereSchema, ["adopt", VM, "host-a"]), { vm: VM, host: "host-a", state: "bound", careOf: PLAN.hosts["host-a"].careOf });
  sessions = await Sessions.open(lab.namespace("c"), [PLAN.guest.address]);
  t.match(await asked(), [null, String]);
  await lab.until("a heartbeat from inside it", COMES_MS, async () => (await lab.where()).lastHeartbeat !== null);

  const back = await released();
  t.equal(back.monitor, monitor);
  t.equal(back.port, TAP);
  t.ok(alive(back.pid), "its process lives");
  t.equal(somebody.exitCode, null);
  t.match(await lab.where(), { state: "expired", host: null });
  t.match((await must(inNamespace(lab.namespace("a"), ["ip", "-o", "addr", "show", "dev", TAP]))).includes(PLAN.gateway), false, "nothing of careof's is left on its port");
  t.match(await lab.json(whereSchema, ["adopt", VM, "host-a"]), { host: "host-a", state: "bound" });
  t.match(await asked(), [null, String], "the same session goes on");
});

await t.test("the host agent finds it again, and it moves with its session", { timeout: 400_000 }, async (t) => {
  const before = await asked();
  await restart("host-a");
  await lab.until("it is bound", COMES_MS, async () => (await lab.where()).state === "bound");
  const move = await lab.json(moveSchema, ["migrate", VM, "host-b"], 120_000);
  t.match(move, { vm: VM, from: "host-a", to: "host-b", result: "completed" });
  t.comment(`pause ${String(move.pauseMs)} ms, gap ${String(move.gapDownMs)} ms down, ${String(move.gapUpMs)} ms up`);
  t.match(await lab.where(), { host: "host-b", state: "bound" });
  t.strictSame(await asked(), before, "the same session, answered by the same process in the guest");
  await lab.until("the QEMU that it has left is ended", COMES_MS, () => Promise.resolve(somebody?.exitCode !== null || somebody.signalCode !== null));
  await must(inNamespace(lab.namespace("a"), ["ip", "link", "show", "dev", TAP]));
});

await t.test("given back, it runs on without careof, whatever the agent does; and can be adopted again", { timeout: 400_000 }, async (t) => {
  const before = await asked();
  const back = await released();
  t.equal(back.monitor, join(lab.directory, "host-b", MONITOR_B));
  t.match(await lab.where(), { state: "expired", host: null });
  await restart("host-b");
  t.ok(alive(back.pid), "a new life of the agent does not end it");
  await must(inNamespace(lab.namespace("b"), ["ip", "link", "show", "dev", back.port]));
  t.match(await lab.json(whereSchema, ["adopt", VM, "host-b"]), { host: "host-b", state: "bound" });
  t.strictSame(await asked(), before, "and still the same session");
  t.match(await lab.careof(["stop", VM]), { code: 0 });
  t.notOk(alive(back.pid), "stopped, it is ended");
});

await t.test("nothing is left", async (t) => {
  sessions?.close();
  t.strictSame(await lab.close(), []);
  t.strictSame(leftOver(lab.run), []);
});
