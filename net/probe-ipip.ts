import { toCareofError } from "../model/errors.js";
import { EEXIST, EOPNOTSUPP, errnoOf } from "./errno.js";
import { IPIP_DEVICE } from "./ipip-device.js";
import { Netlink } from "./netlink/client.js";
import { createIpip } from "./netlink/ipip.js";
import { deleteLink, findLink, requireLink } from "./netlink/links.js";
import type { Probe } from "./probe.js";

const PROBE_MTU = 1480;

/** Has this kernel what `dataPlane: ipip` needs? Found by making the device for a moment, unless there is one. Only who wants it misses it: `auto` takes bpf first. */
export function probeIpip(): Probe {
  const name = `coipip${String(process.pid % 10_000_000)}`;
  const netlink = new Netlink();
  const row = (found: string): Probe => ({ name: "ipip", ok: true, found, mend: "" });
  try {
    if (findLink(netlink, IPIP_DEVICE) !== null) return row(`the ipip data plane's device ${IPIP_DEVICE} is here`);
    createIpip(netlink, name, PROBE_MTU);
    deleteLink(netlink, requireLink(netlink, name));
    return row("this kernel has the ipip device; dataPlane: auto takes bpf where that works");
  } catch (thrown) {
    if (errnoOf(thrown) === EOPNOTSUPP) return row("this kernel has no ipip device (module ipip): dataPlane: ipip is refused here, auto takes bpf");
    if (errnoOf(thrown) === EEXIST) return row("another program has the only external ipip device: dataPlane: ipip is refused here, auto takes bpf");
    return { name: "ipip", ok: "warn", found: toCareofError(thrown).message, mend: "run as root, or with CAP_NET_ADMIN" };
  } finally {
    netlink.close();
  }
}
