import type { DataPlane } from "../../net/data-plane.js";
import type { HomeSide, Probe } from "../../net/probe.js";
import type { Settings } from "./fix.js";

/** What a check sees of the machine; the tests put their own there. */
export interface Machine {
  /** Node's version, `20.11.1`. */
  readonly nodeVersion: string;
  readonly userId: number;
  /** First line of `BINARY --version`. @throws CareofError when it cannot be run */
  qemuVersion(binary: string): Promise<string>;
  /** KVM or not, found by booting `kernel` (null: the newest of /boot) for some seconds at most. */
  accelerator(binary: string, kernel: string | null): Promise<{ readonly accelerator: "kvm" | "tcg"; readonly reason: string }>;
  /** Binds for a moment. Resolves to null when the port can be had, else why not. */
  bind(kind: "tcp" | "udp", address: string, port: number): Promise<string | null>;
  /** Kernel, uplink, data plane, home LAN, forwarding, reverse path, netfilter, clock; the uplink may be null where none is named, `home` where it is no home agent. */
  network(uplink: string | null, home: HomeSide | null, dataPlane: DataPlane): Promise<readonly Probe[]>;
  readonly settings: Settings;
}

const OLDEST_NODE = [20, 15] as const;
/** QEMU before 9 corrupts emulated guests in long migrations. */
const SOUND_TCG = 9;
/** Older ones have no return path with switchover-ack, so that a move cannot lead. */
const CAN_LEAD = [8, 1] as const;

export function fine(name: string, found: string): Probe {
  return { name, ok: true, found, mend: "" };
}

export function checkNode(machine: Machine): Probe {
  const [major = 0, minor = 0] = machine.nodeVersion.split(".").map(Number);
  const enough = major > OLDEST_NODE[0] || (major === OLDEST_NODE[0] && minor >= OLDEST_NODE[1]);
  return enough
    ? fine("node", `Node.js ${machine.nodeVersion}`)
    : { name: "node", ok: false, found: `Node.js ${machine.nodeVersion}`, mend: `install Node.js ${OLDEST_NODE.join(".")} or newer` };
}

export function checkUser(machine: Machine): Probe {
  return machine.userId === 0
    ? fine("user", "root")
    : { name: "user", ok: "warn", found: `user ${String(machine.userId)}`, mend: "run doctor as root to check everything; the home agent and host agents need root or CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_SYS_ADMIN" };
}

/** Which QEMU to look at, as configured. */
export interface Hypervisor {
  readonly binary: string;
  readonly accelerator: "auto" | "kvm" | "tcg";
  /** To try KVM with; null takes the newest of /boot. */
  readonly kernel: string | null;
  /** A host needs one, a home agent does not. */
  readonly needed: boolean;
}

/** QEMU's version, and how guests would run: two rows, or one when there is no QEMU. */
export async function checkHypervisor(machine: Machine, { binary, accelerator, kernel, needed }: Hypervisor): Promise<Probe[]> {
  let said: string;
  try {
    said = await machine.qemuVersion(binary);
  } catch (thrown) {
    const found = thrown instanceof Error ? thrown.message : String(thrown);
    return [{ name: "qemu", ok: needed ? false : "warn", found, mend: "install QEMU 10 (Debian package qemu-system-x86, from the backports suite on Debian 12); a home agent needs none" }];
  }
  const match = /version (\d+)\.(\d+)/.exec(said);
  if (match === null) return [{ name: "qemu", ok: "warn", found: `${binary} says "${said.slice(0, 80)}"`, mend: "see that qemu.binary names QEMU's system emulator" }];
  const version = { major: Number(match[1]), minor: Number(match[2]) };
  const choice = accelerator === "tcg" ? { accelerator, reason: "configured" } : await machine.accelerator(binary, kernel);
  return [qemuRow(version, choice.accelerator), acceleratorRow(choice, accelerator)];
}

function qemuRow({ major, minor }: { readonly major: number; readonly minor: number }, accelerator: "kvm" | "tcg"): Probe {
  const found = `QEMU ${String(major)}.${String(minor)}`;
  if (accelerator === "tcg" && major < SOUND_TCG) {
    return { name: "qemu", ok: "warn", found: `${found} without KVM: before QEMU ${String(SOUND_TCG)}, moving an emulated guest can corrupt its memory`, mend: "install QEMU 10 (on Debian 12 from the backports suite)" };
  }
  if (major < CAN_LEAD[0] || (major === CAN_LEAD[0] && minor < CAN_LEAD[1])) {
    return { name: "qemu", ok: "warn", found: `${found} has no switchover-ack: packets that arrive during a move are forwarded instead of led`, mend: "install QEMU 10 (on Debian 12 from the backports suite)" };
  }
  return fine("qemu", found);
}

function acceleratorRow(choice: { readonly accelerator: "kvm" | "tcg"; readonly reason: string }, wanted: "auto" | "kvm" | "tcg"): Probe {
  const found = `${choice.accelerator === "kvm" ? "KVM" : "TCG (emulation, about ten times slower)"}: ${choice.reason}`;
  if (choice.accelerator === "kvm" || wanted === "tcg") return fine("accelerator", found);
  return { name: "accelerator", ok: wanted === "kvm" ? false : "warn", found, mend: mendAccelerator(choice.reason) };
}

/** What to do about KVM that cannot be used, by what is in the way. The reasons are those of agent/hypervisor/accelerator.ts. */
function mendAccelerator(reason: string): string {
  if (/ENOENT/.test(reason)) return "switch virtualization on in the firmware (or nested in the hypervisor below) and load kvm_intel or kvm_amd";
  if (/EACCES|EPERM/.test(reason)) return "run doctor and the agent as root, or as a user of the group that owns /dev/kvm (kvm)";
  if (/no kernel/.test(reason)) return "name a kernel to try it with: qemu.probeKernel in the agent's configuration (any bzImage, such as the guest's own)";
  if (/hangs/.test(reason)) return "the hypervisor below this machine offers KVM and does not carry it: use another machine for guests that need speed; qemu.accel: tcg saves the try";
  if (/refuses/.test(reason)) return "see what QEMU says; another program may hold the processor's virtualization (VirtualBox, another hypervisor). qemu.accel: tcg saves the try";
  return "see why; qemu.accel: tcg saves the try";
}

export interface Port {
  readonly kind: "tcp" | "udp";
  readonly address: string;
  readonly port: number;
  readonly what: string;
  /** In the configuration. */
  readonly key: string;
}

export async function checkPort(machine: Machine, port: Port): Promise<Probe> {
  const name = `${port.kind} ${String(port.port)}`;
  const taken = await machine.bind(port.kind, port.address, port.port);
  if (taken === null) return fine(name, `free for ${port.what} on ${port.address}`);
  return { name, ok: "warn", found: `${port.what} cannot have ${port.address}:${String(port.port)}: ${taken}`, mend: `nothing to do if careof runs here already; else end what holds it (ss -lnp), or configure another one (${port.key})` };
}

/** The API asks nobody who he is: whoever reaches it may end VMs. */
export function checkApi(address: string): Probe | null {
  if (/^127\.|^::1$|^localhost$/.test(address)) return null;
  return {
    name: "api", ok: "warn", found: `listen.api is ${address}: whoever reaches it may move and stop every VM, without a password`,
    mend: "listen on 127.0.0.1 and reach it through ssh (ssh -L 8434:127.0.0.1:8434 HOME-AGENT), or put a proxy that asks who it is before it",
  };
}
