import { toCareofError } from "../model/errors.js";
import { loadProgram } from "./bpf/loader.js";
import type { DataPlane } from "./data-plane.js";
import { EEXIST, EOPNOTSUPP, errnoOf } from "./errno.js";
import { IPIP_DEVICE, type End } from "./ipip-device.js";
import { Netlink } from "./netlink/client.js";
import { createIpip } from "./netlink/ipip.js";
import { deleteLink, ETHERNET, findLink, requireLink } from "./netlink/links.js";
import type { Probe } from "./probe.js";
import { close } from "./syscall.js";

const PROBE_MTU = 1480;

/** Has this kernel what `dataPlane: ipip` needs? For a machine without a configuration: nobody misses it, `auto` takes bpf first. */
export function probeIpip(): Probe {
  const why = whyNotIpip(null);
  const found = why === null ? "this kernel has the ipip device; dataPlane: auto takes bpf where that works" : `${why}: dataPlane: ipip is refused here, auto takes bpf`;
  return { name: "ipip", ok: true, found, mend: "" };
}

/** Which data plane an agent with this configuration takes, and why; none is started. */
export function probeDataPlane(wanted: DataPlane, end: End, uplink: string): Probe {
  const name = "data plane";
  const fine = (found: string): Probe => ({ name, ok: true, found, mend: "" });
  const bad = (found: string, mend: string): Probe => ({ name, ok: false, found, mend });
  const bpf = wanted === "ipip" ? null : whyNotBpf(uplink);
  if (wanted === "auto" && bpf === null) return fine("bpf (auto): this kernel takes the BPF programs");
  const ipip = wanted === "bpf" ? null : (end === "host" ? whyNotEthernet(uplink) : null) ?? whyNotIpip(end);
  if (wanted === "auto") {
    return ipip === null ? fine(`ipip (auto): bpf does not work here: ${bpf ?? ""}`) : bad(`none works here: bpf: ${bpf ?? ""}; ipip: ${ipip}`, "use a kernel that takes BPF programs, and an Ethernet uplink");
  }
  const why = wanted === "bpf" ? bpf : ipip;
  return why === null ? fine(`${wanted}, as configured`) : bad(`${wanted}, as configured, does not work here: ${why}`, "tunnel.dataPlane: auto takes the other one where that works");
}

function whyNotBpf(uplink: string): string | null {
  try {
    close(loadProgram("probe_decap", { get: () => { throw new Error("the probe uses no map"); } }));
    return whyNotEthernet(uplink);
  } catch (thrown) {
    return toCareofError(thrown).message;
  }
}

/** A missing one has a row of its own. */
function whyNotEthernet(uplink: string): string | null {
  const netlink = new Netlink();
  try {
    const link = findLink(netlink, uplink);
    return link === null || link.hardware === ETHERNET ? null : `the uplink ${uplink} is not Ethernet`;
  } finally {
    netlink.close();
  }
}

/** Found by making the device for a moment, unless ours is there. */
function whyNotIpip(end: End | null): string | null {
  const name = `coipip${String(process.pid % 10_000_000)}`;
  const netlink = new Netlink();
  try {
    const ours = findLink(netlink, IPIP_DEVICE);
    if (ours !== null) return end === null || ours.alias === "" || ours.alias === `careof:${end}` ? null : `the ipip device here is that of ${ours.alias}`;
    createIpip(netlink, name, PROBE_MTU);
    deleteLink(netlink, requireLink(netlink, name));
    return null;
  } catch (thrown) {
    if (errnoOf(thrown) === EOPNOTSUPP) return "this kernel has no ipip device (module ipip)";
    if (errnoOf(thrown) === EEXIST) return "another program has the only external ipip device";
    return toCareofError(thrown).message;
  } finally {
    netlink.close();
  }
}
