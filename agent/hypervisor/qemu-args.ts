import { CareofError } from "../../model/errors.js";
import { disksOf, type Disk } from "./disks.js";
import type { GuestSpec } from "./driver.js";

/**
 * The machine type is pinned, because `q35` means another machine in every release and both ends of a migration must have the same. This one is in
 * every QEMU from 7.2 to today. A VM's `extraArgs` may name another by `-machine`, and then must do so on all its hosts.
 */
export const MACHINE_TYPE = "pc-q35-7.2";
/** Longest path of a unix socket on Linux, without the closing zero. */
const MAX_SOCKET_PATH = 107;
const MIB = 1024 * 1024;

export interface QemuFiles {
  /** QMP socket. */
  readonly control: string;
  readonly pidFile: string;
  /** First serial port, appended. */
  readonly console: string;
}

export interface QemuMode {
  readonly accelerator: "kvm" | "tcg";
  /** Waits for a migration's stream, and then for `cont`. */
  readonly incoming: boolean;
}

/**
 * QEMU's command line for a guest. `extraArgs` come last, so that they win where QEMU takes the last of two.
 * @throws CareofError `path-too-long`, `not-permitted` (an extra argument that would break what the agent relies on)
 */
export function qemuArgs(spec: GuestSpec, files: QemuFiles, mode: QemuMode): string[] {
  if (Buffer.byteLength(files.control) > MAX_SOCKET_PATH) throw new CareofError("path-too-long", `${files.control} is longer than a unix socket's path may be; choose a shorter runDir`);
  const reserved = spec.qemu.extraArgs.find((word) => RESERVED.has(word.replace(/^--/, "-")));
  if (reserved !== undefined) throw new CareofError("not-permitted", `extraArgs of ${spec.vm} may not contain ${reserved}: the agent sets it`);
  const { qemu } = spec;
  const args = [
    "-name", `guest=${spec.vm}`,
    "-no-user-config", "-nodefaults", "-display", "none",
    // A guest that breaks must end; by default it would reboot and look alive again.
    "-no-reboot",
    ...(qemu.extraArgs.includes("-machine") ? [] : ["-machine", MACHINE_TYPE]),
    "-accel", mode.accelerator,
    "-m", `size=${String(Math.max(1, Math.floor(qemu.memoryBytes / MIB)))}M`,
    "-smp", `cpus=${String(qemu.cpus)}`,
    "-chardev", `socket,id=control,path=${comma(files.control)},server=on,wait=off`,
    "-mon", "chardev=control,mode=control",
    "-pidfile", files.pidFile,
    "-chardev", `file,id=console,path=${comma(files.console)},append=on`,
    "-serial", "chardev:console",
  ];
  if (qemu.kernel !== "") args.push("-kernel", qemu.kernel);
  if (qemu.initrd !== "") args.push("-initrd", qemu.initrd);
  if (qemu.append !== "") args.push("-append", qemu.append);
  args.push(...diskArgs(disksOf(qemu)));
  if (spec.port !== null) {
    args.push("-netdev", `tap,id=net0,ifname=${comma(spec.port)},script=no,downscript=no,vhost=off`, "-device", `virtio-net-pci,netdev=net0,mac=${spec.mac},romfile=`);
  }
  // -S too: the guest must not run before its agent has the right (ARCHITECTURE.md, "The right to run"), whatever the stream says.
  if (mode.incoming) args.push("-S", "-incoming", "defer");
  return [...args, ...qemu.extraArgs];
}

const RESERVED = new Set(["-S", "-incoming", "-daemonize", "-pidfile", "-qmp", "-mon", "-no-shutdown", "-action", "-accel", "-enable-kvm", "-m", "-preconfig", "-loadvm", "-readconfig"]);

/**
 * A disk that moves with its guest needs a node with a name, by which it is exported and copied (`LOCAL_NODE`), and -device gives the disks their order. Where all are shared they stay
 * -drive: a guest that runs already has its devices in that order, and may come from an agent that knew no other.
 */
function diskArgs(disks: readonly Disk[]): string[] {
  if (!disks.some(({ local }) => local)) {
    return disks.flatMap(({ path, format }, index) => ["-drive", `file=${comma(path)},if=virtio,format=${format},id=disk${String(index)}`]);
  }
  return disks.flatMap(({ path, format, local }, index) => {
    const node = `${local ? "disk" : "shared"}${String(index)}`;
    const blockdev = { driver: format, "node-name": node, ...(local ? { discard: "unmap" } : {}), file: { driver: "file", filename: path } };
    return ["-blockdev", JSON.stringify(blockdev), "-device", `virtio-blk-pci,drive=${node},id=virtio-${node}`];
  });
}

/** QEMU's option parser takes a doubled comma for one in a value. */
function comma(value: string): string {
  return value.replaceAll(",", ",,");
}
