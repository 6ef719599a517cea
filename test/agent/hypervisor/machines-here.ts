import { existsSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import type { HypervisorDriver } from "../../../agent/hypervisor/driver.js";
import { QemuDriver } from "../../../agent/hypervisor/qemu.js";
import { FakeHypervisor } from "../../../agent/hypervisor/qemu-fake.js";
import type { VmSpec } from "../../../proto/messages.js";
import { clock, log, specOf } from "../rig.js";

/** A driver that the tests of this directory run against. */
export interface Kind {
  readonly name: string;
  /** Why it cannot be tested here; `false`: it can. */
  readonly skip: string | false;
  readonly spec: VmSpec;
  /** Drivers for hosts whose guests do not know of each other. */
  readonly make: (directory: string) => HypervisorDriver;
}

const root = process.cwd();
const kernel = join(root, ".cache/guest/vmlinuz");
const initrd = join(root, ".cache/guest/initramfs.gz");

function realSkip(): string | false {
  try {
    execFileSync("qemu-system-x86_64", ["--version"], { stdio: "ignore" });
  } catch (thrown) {
    return `no QEMU: ${thrown instanceof Error ? thrown.message : String(thrown)}`;
  }
  return existsSync(kernel) && existsSync(initrd) ? false : "no guest image: run deploy/setup/prepare.sh";
}

export const kinds: readonly Kind[] = [
  { name: "fake", skip: false, spec: specOf(), make: () => new FakeHypervisor({ clock }) },
  {
    name: "qemu", skip: realSkip(), spec: specOf({ kernel, initrd, append: "console=ttyS0 quiet panic=-1" }),
    // Without a TAP (that takes a namespace: test/lab), and on TCG, so that it runs on every machine; the port is left out below the agent.
    make: (directory) => withoutPort(new QemuDriver({ binary: "qemu-system-x86_64", accel: "tcg", probeKernel: null, directory, clock, log })),
  },
];

function withoutPort(driver: HypervisorDriver): HypervisorDriver {
  return {
    name: driver.name,
    facts: () => driver.facts(),
    start: (spec) => driver.start({ ...spec, port: null }),
    incoming: (spec) => driver.incoming({ ...spec, port: null }),
    adopt: (vm, identity) => driver.adopt(vm, identity),
    takeOver: (vm, control, memoryBytes) => driver.takeOver(vm, control, memoryBytes),
    giveBack: (guest, record) => driver.giveBack(guest, record),
    cleanUp: (keep) => driver.cleanUp(keep),
  };
}
