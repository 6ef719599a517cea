import { toCareofError } from "../model/errors.js";
import { chooseDriver, type DataPlane } from "./data-plane.js";
import { tryDriver, tryIpipDevice } from "./driver-trial.js";
import type { End } from "./ipip-device.js";
import { Netlink } from "./netlink/client.js";
import type { Probe } from "./probe.js";
import { readSysctl, type Setting } from "./sysctl.js";

const DATA_PLANE = "data plane";
const ENDS: readonly End[] = ["home", "host"];
const PATH_MTU: Setting = { name: ["net", "ipv4", "ip_no_pmtu_disc"], value: "0" };

/** Has this kernel what `dataPlane: ipip` needs? For a machine without a configuration: nobody misses it, `auto` takes bpf first. */
export function probeIpip(): Probe {
  const netlink = new Netlink();
  const probe = (found: string): Probe => ({ name: "ipip", ok: true, found, mend: "" });
  try {
    tryIpipDevice(netlink, null);
    return probe("this kernel has the ipip device; dataPlane: auto takes bpf where that works");
  } catch (thrown) {
    return probe(`${toCareofError(thrown).message}: dataPlane: ipip is refused here, auto takes bpf`);
  } finally {
    netlink.close();
  }
}

/**
 * Which data plane an agent with this configuration takes, and why; none is started. It is tried with what the drivers load, and chosen by what chooses for the agents. Where that is ipip, a second
 * row says what the kernel would do with "frag needed" if that is not as it comes.
 */
export function probeDataPlanes(wanted: DataPlane, end: End, uplink: string, attempt: typeof tryDriver = tryDriver): readonly Probe[] {
  try {
    const { driver, reason } = chooseDriver(wanted, { bpf: () => { attempt("bpf", end, uplink); }, ipip: () => { attempt("ipip", end, uplink); } });
    return taken(driver, wanted === "auto" ? `${driver} (auto): ${reason}` : `${driver}, as configured`);
  } catch (thrown) {
    const { code, message } = toCareofError(thrown);
    if (code === "both-ends") return [{ name: DATA_PLANE, ok: false, found: message, mend: "run one of them in a network namespace of its own; README has how" }];
    if (code === "not-ours" && wanted !== "ipip") return [{ name: DATA_PLANE, ok: false, found: message, mend: "the commands stand there; if it shall run here again, this host agent needs a network namespace of its own" }];
    return [wanted === "auto" ? neither(message) : { name: DATA_PLANE, ok: false, found: `${wanted}, as configured, does not work here: ${message}`, mend: "tunnel.dataPlane: auto takes the other one where that works" }];
  }
}

/** Without a configuration: what `auto` would take on an Ethernet uplink, whichever end this machine shall be. */
export function probeAuto(attempt: typeof tryDriver = tryDriver): readonly Probe[] {
  const both = (driver: "bpf" | "ipip"): void => { for (const end of ENDS) attempt(driver, end, null); };
  try {
    const { driver, reason } = chooseDriver("auto", { bpf: () => { both("bpf"); }, ipip: () => { both("ipip"); } });
    return taken(driver, `${driver} (auto): ${reason}`);
  } catch (thrown) {
    return [neither(toCareofError(thrown).message)];
  }
}

function taken(driver: "bpf" | "ipip", found: string): Probe[] {
  const row: Probe = { name: DATA_PLANE, ok: true, found, mend: "" };
  if (driver === "bpf") return [row];
  // As every machine has it there is nothing to say; that it stays so is a setting of the data plane's own row.
  return readSysctl(PATH_MTU.name) === PATH_MTU.value ? [{ ...row, settings: [PATH_MTU] }] : [row, ...probePathMtu()];
}

function neither(found: string): Probe {
  return { name: DATA_PLANE, ok: false, found, mend: "use a kernel that takes BPF programs, and an Ethernet uplink" };
}

/**
 * The kernel's device goes by what the kernel has learned of the path. With 1 it takes 552 bytes for every path of which a router has said anything; with 2 and 3 it hears nothing about tunnel packets, and
 * careof, which hears it by itself, is alone. Only 1 is undone by --fix: the kernel does act on the routers' messages there, only worse; 2 and 3 are somebody's protection against them.
 */
function probePathMtu(): Probe[] {
  const value = readSysctl(PATH_MTU.name);
  const row = { name: "path MTU", ok: "warn" } as const;
  switch (value) {
    case "1":
      return [{ ...row, found: "net.ipv4.ip_no_pmtu_disc is 1: after the first \"frag needed\" the kernel's ipip device sends 552 bytes at most", mend: "set it to 0 (careof doctor --fix)", settings: [PATH_MTU] }];
    case "2":
    case "3":
      return [{
        ...row, found: `net.ipv4.ip_no_pmtu_disc is ${value}: the kernel ignores "frag needed" about what its ipip device sends; careof alone goes by it`,
        mend: "set it to 0, unless this machine is to be protected from such messages; --fix leaves that to you",
      }];
    default:
      return [];
  }
}
