import { join } from "node:path";
import { createInterface } from "node:readline";
import { QemuDriver } from "../../agent/hypervisor/qemu.js";
import type { Guest } from "../../agent/hypervisor/driver.js";
import { mac } from "../../model/address.js";
import { SystemClock } from "../../model/clock.js";
import { toCareofError } from "../../model/errors.js";
import { epoch, millis, vmId, type Millis } from "../../model/ids.js";
import { createLogger } from "../../model/log.js";

/**
 * A program of its own, in the control's namespace: migrates a guest between two QEMUs on one bridge, by a direct unix socket, with nothing of careof but its
 * QMP client and its command line. `control-host DIRECTORY KERNEL INITRD MAC APPEND`; the TAPs tap0 and tap1 are there. Each `migrate [CHANNELS DOWNTIME-LIMIT-MS]` on standard
 * input is answered by a line of {"ok", "totalMs", "pauseMs", "bytes"} or {"error"}.
 */
const [directory = "", kernel = "", initrd = "", address = "", append = ""] = process.argv.slice(2);
const clock = new SystemClock({ keepAlive: true });
const driver = new QemuDriver({ binary: "qemu-system-x86_64", accel: "auto", probeKernel: kernel, directory, clock, log: createLogger("control", "silent") });
const qemu = { memoryBytes: 128 * 2 ** 20, cpus: 1, kernel, initrd, append, disks: [], extraArgs: [], diskOptions: [] };
let life = 1;

function spec(port: string): Parameters<QemuDriver["start"]>[0] {
  return { vm: vmId("control"), epoch: epoch(life++), mac: mac(address), port, qemu };
}

async function reached(guest: Guest, status: "completed" | "pre-switchover"): Promise<void> {
  while ((await guest.progress()).status !== status) await new Promise((resolve) => setTimeout(resolve, 1));
}

interface Migrated {
  readonly guest: Guest;
  /** From before the target's process was started until the guest ran there. */
  readonly totalMs: number;
  /** From STOP to RESUME. */
  readonly pauseMs: number;
  readonly bytes: number;
}

function heard(of: Guest, kind: "stopped" | "resumed"): Promise<Millis> {
  return new Promise((resolve) => {
    of.subscribe((event) => { if (event.kind === kind) resolve(event.at); });
  });
}

async function migrate(source: Guest, port: string, channels: number, downtimeLimitMs: Millis): Promise<Migrated> {
  const begun = clock.monotonic();
  const target = await driver.incoming(spec(port));
  const socket = join(directory, "stream");
  const stream = { socket, lead: false, maxBandwidth: 0, downtimeLimitMs, autoConverge: false, postcopy: false, channels };
  await target.receive(stream);
  const stopped = heard(source, "stopped");
  const resumed = heard(target, "resumed");
  const switched = new Promise<void>((resolve) => {
    source.subscribe((event) => { if (event.kind === "stream" && event.status === "pre-switchover") resolve(); });
  });
  const sent = new Promise<void>((resolve) => {
    source.subscribe((event) => { if (event.kind === "stream" && event.status === "completed") resolve(); });
  });
  await source.send(stream);
  await switched;
  await source.continueSwitchover();
  await sent;
  await reached(target, "completed");
  await target.resume();
  const resumedAt = await resumed;
  const { transferred } = await source.progress();
  await source.destroy();
  return { guest: target, totalMs: resumedAt - begun, pauseMs: resumedAt - (await stopped), bytes: transferred };
}

let guest = await driver.start(spec("tap0"));
let port = "tap0";
process.stdout.write('{"ok":true}\n');
for await (const text of createInterface({ input: process.stdin })) {
  const [word = "", channels = "1", limit = "100"] = text.split(" ");
  try {
    if (word !== "migrate") continue;
    port = port === "tap0" ? "tap1" : "tap0";
    const { guest: moved, ...measured } = await migrate(guest, port, Number(channels), millis(Number(limit)));
    guest = moved;
    process.stdout.write(`${JSON.stringify({ ok: true, ...measured })}\n`);
  } catch (thrown) {
    process.stdout.write(`${JSON.stringify({ error: toCareofError(thrown).message })}\n`);
  }
}
await guest.destroy();
