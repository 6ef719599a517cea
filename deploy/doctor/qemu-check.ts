import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { chooseAccelerator, type AcceleratorChoice } from "../../agent/hypervisor/accelerator.js";
import { SystemClock } from "../../model/clock.js";
import { toCareofError } from "../../model/errors.js";
import type { Probe } from "../../net/probe.js";

const VERSION_TIMEOUT_MS = 5000;
/** First release whose source can be held at the gate (switchover-ack). */
const LEADS_SINCE = 8.1;
/** Older ones corrupt an emulated guest in a migration of many passes, and report success. */
const SOUND_TCG_SINCE = 9;

/** What `--version` printed, and which accelerator a bounded boot has shown to work. */
export interface QemuFacts {
  readonly version: string;
  readonly accelerator: AcceleratorChoice;
}

/** Pure: what to say of a QEMU. `null`: there is none. */
export function judgeQemu(facts: QemuFacts | null, binary: string): Probe[] {
  if (facts === null) {
    return [{ name: "qemu", ok: "warn", found: `no ${binary} here`, mend: "a host needs QEMU 10 (Debian 12: qemu-system-x86 from the backports suite, `npm run setup` does it); a home agent needs none" }];
  }
  const number = Number(/^([0-9]+\.[0-9]+)/.exec(facts.version)?.[1] ?? "0");
  const { accelerator, reason } = facts.accelerator;
  const accelerated: Probe = accelerator === "kvm"
    ? { name: "accelerator", ok: true, found: `kvm: ${reason}`, mend: "" }
    : { name: "accelerator", ok: "warn", found: `tcg (emulation, slow): ${reason}`, mend: "switch virtualisation on in the firmware, or nested virtualisation in the hypervisor that this machine runs on" };
  if (number < SOUND_TCG_SINCE && accelerator === "tcg") {
    return [{ name: "qemu", ok: false, found: `QEMU ${facts.version} without KVM`, mend: "QEMU before 9 corrupts emulated guests when it migrates them: install QEMU 10 (Debian 12: from the backports suite)" }, accelerated];
  }
  if (number < LEADS_SINCE) {
    return [{ name: "qemu", ok: "warn", found: `QEMU ${facts.version}`, mend: "it cannot hold a guest at the gate, so a move may lose a few packets: install QEMU 10 (Debian 12: from the backports suite)" }, accelerated];
  }
  return [{ name: "qemu", ok: true, found: `QEMU ${facts.version}`, mend: "" }, accelerated];
}

/** Takes up to 10 s where /dev/kvm is there and hangs. */
export async function probeQemu(binary: string, wish: "auto" | "kvm" | "tcg"): Promise<Probe[]> {
  let version: string;
  try {
    const { stdout } = await promisify(execFile)(binary, ["--version"], { timeout: VERSION_TIMEOUT_MS });
    version = /version ([0-9][0-9.]*)/.exec(stdout)?.[1] ?? "of an unknown version";
  } catch (thrown) {
    if (thrown instanceof Error && "code" in thrown && thrown.code === "ENOENT") return judgeQemu(null, binary);
    return [{ name: "qemu", ok: false, found: `${binary} does not run: ${toCareofError(thrown).message.split("\n")[0] ?? ""}`, mend: "install QEMU again" }];
  }
  const directory = mkdtempSync(join(tmpdir(), "careof-doctor-"));
  try {
    return judgeQemu({ version, accelerator: await chooseAccelerator({ binary, wish, kernel: null, directory, clock: new SystemClock({ keepAlive: true }) }) }, binary);
  } catch (thrown) {
    return [{ name: "accelerator", ok: false, found: toCareofError(thrown).message, mend: "set qemu.accel to auto, or mend KVM on this machine" }];
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
