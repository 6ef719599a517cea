import { toCareofError } from "../model/errors.js";
import { chooseDriver, type DataPlane } from "./data-plane.js";
import { tryDriver, tryIpipDevice } from "./driver-trial.js";
import type { End } from "./ipip-device.js";
import { Netlink } from "./netlink/client.js";
import type { Probe } from "./probe.js";

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

/** Which data plane an agent with this configuration takes, and why; none is started. It is tried with what the drivers load, and chosen by what chooses for the agents. */
export function probeDataPlane(wanted: DataPlane, end: End, uplink: string, attempt: typeof tryDriver = tryDriver): Probe {
  const name = "data plane";
  try {
    const { driver, reason } = chooseDriver(wanted, { bpf: () => { attempt("bpf", end, uplink); }, ipip: () => { attempt("ipip", end, uplink); } });
    return { name, ok: true, found: wanted === "auto" ? `${driver} (auto): ${reason}` : `${driver}, as configured`, mend: "" };
  } catch (thrown) {
    const { message } = toCareofError(thrown);
    return wanted === "auto"
      ? { name, ok: false, found: message, mend: "use a kernel that takes BPF programs, and an Ethernet uplink" }
      : { name, ok: false, found: `${wanted}, as configured, does not work here: ${message}`, mend: "tunnel.dataPlane: auto takes the other one where that works" };
  }
}
