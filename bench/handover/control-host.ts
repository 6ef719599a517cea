import { join } from "node:path";
import { createInterface } from "node:readline";
import { QemuDriver } from "../../agent/hypervisor/qemu.js";
import type { Guest } from "../../agent/hypervisor/driver.js";
import { mac } from "../../model/address.js";
import { SystemClock } from "../../model/clock.js";
import { toCareofError } from "../../model/errors.js";
import { epoch, millis, vmId } from "../../model/ids.js";
import { createLogger } from "../../model/log.js";

/**
 * A program of its own, in the control's namespace: migrates a guest between two QEMUs on one bridge, by a direct unix socket, with nothing of careof but its
 * QMP client and its command line. `control-host DIRECTORY KERNEL INITRD MAC APPEND`; the TAPs tap0 and tap1 are there. Each `migrate` on standard
 * input is answered by a line of {"ok"} or {"error"}.
 */
const [directory = "", kernel = "", initrd = "", address = "", append = ""] = process.argv.slice(2);
const clock = new SystemClock({ keepAlive: true });
const driver = new QemuDriver({ binary: "qemu-system-x86_64", accel: "auto", probeKernel: kernel, directory, clock, log: createLogger("control", "silent") });
const qemu = { memoryBytes: 128 * 2 ** 20, cpus: 1, kernel, initrd, append, disks: [], extraArgs: [], diskOptions: [] };
const DOWNTIME_LIMIT = millis(100);
let life = 1;

function spec(port: string): Parameters<QemuDriver["start"]>[0] {
  return { vm: vmId("control"), epoch: epoch(life++), mac: mac(address), port, qemu };
}

/** Returns the guest at its new port, where it runs. */
async function migrate(source: Guest, port: string): Promise<Guest> {
  const target = await driver.incoming(spec(port));
  const stream = { socket: join(directory, "stream"), lead: false, maxBandwidth: 0, downtimeLimitMs: DOWNTIME_LIMIT, autoConverge: false, postcopy: false, channels: 1 };
  await target.receive(stream);
  const resumed = new Promise<void>((resolve) => {
    target.subscribe((event) => { if (event.kind === "resumed") resolve(); });
  });
  const [switched, sent] = [said(source, "pre-switchover"), said(source, "completed")];
  await source.send(stream);
  await switched;
  await source.continueSwitchover();
  await sent;
  while ((await target.progress()).status !== "completed") await new Promise((resolve) => setTimeout(resolve, 1));
  await target.resume();
  await resumed;
  await source.destroy();
  return target;
}

function said(of: Guest, status: "pre-switchover" | "completed"): Promise<void> {
  return new Promise((resolve) => {
    of.subscribe((event) => { if (event.kind === "stream" && event.status === status) resolve(); });
  });
}

let guest = await driver.start(spec("tap0"));
let port = "tap0";
process.stdout.write('{"ok":true}\n');
for await (const text of createInterface({ input: process.stdin })) {
  try {
    if (text !== "migrate") continue;
    port = port === "tap0" ? "tap1" : "tap0";
    guest = await migrate(guest, port);
    process.stdout.write('{"ok":true}\n');
  } catch (thrown) {
    process.stdout.write(`${JSON.stringify({ error: toCareofError(thrown).message })}\n`);
  }
}
await guest.destroy();
