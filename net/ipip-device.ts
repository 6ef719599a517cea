import { CareofError, toCareofError } from "../model/errors.js";
import { EEXIST, EOPNOTSUPP, errnoOf } from "./errno.js";
import type { Netlink } from "./netlink/client.js";
import { createIpip } from "./netlink/ipip.js";
import { changeLink, deleteLink, findLink, listLinks, requireLink, type Link } from "./netlink/links.js";
import { routeFor, writeSysctlIfThere } from "./sysctl.js";

/** There is one of its kind per namespace, so one name will do. */
export const IPIP_DEVICE = "careof-ipip";

/** A device that is made to see whether this kernel has it (driver-trial.ts): its maker's number tells whether it still is at it. */
export const TRIAL_DEVICE = `coipip${String(process.pid)}`;
const TRIAL_NAME = /^coipip(\d+)$/;

/** Below what the kernel allows such a device (65,515 bytes, earlier kernels a little less); an uplink such as `lo` may have more. */
const LARGEST_MTU = 65_000;

/** Whose end it is: they check different things on the same hooks. */
export type End = "home" | "host";

function alias(end: End): string {
  return `careof:${end}`;
}

/**
 * The device, down if it is new: no packet takes it yet. Idempotent.
 * @throws CareofError `unsupported` (this kernel has no ipip), `not-ours` (another program's external device is here, or the other end's), `kernel-refused`
 */
export function ensureIpipDevice(netlink: Netlink, end: End, wantedMtu: number): Link {
  const mtu = Math.min(wantedMtu, LARGEST_MTU);
  const found = findLink(netlink, IPIP_DEVICE);
  if (found === null) {
    removeLeftTrials(netlink);
    create(netlink, mtu);
  }
  const link = found ?? requireLink(netlink, IPIP_DEVICE);
  // Without an alias its maker died right after it made it.
  if (link.alias !== "" && link.alias !== alias(end)) {
    throw new CareofError("not-ours", `the ipip device here is that of ${link.alias}, left by an end that does not run now: "ip link del ${IPIP_DEVICE}" if it shall not run here again`);
  }
  changeLink(netlink, link, { alias: alias(end), mtu });
  return link;
}

/** What a process left that was killed in the midst of its trial: as long as it is there the kernel makes no other. Idempotent. */
export function removeLeftTrials(netlink: Netlink): void {
  for (const link of listLinks(netlink)) {
    const maker = TRIAL_NAME.exec(link.name)?.[1];
    if (maker !== undefined && !runsElsewhere(Number(maker))) deleteLink(netlink, link);
  }
}

/** This process is not in the midst of a trial while it asks. */
function runsElsewhere(pid: number): boolean {
  if (pid === process.pid) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (thrown) {
    return !(thrown instanceof Error && "code" in thrown && thrown.code === "ESRCH");
  }
}

function create(netlink: Netlink, mtu: number): void {
  try {
    createIpip(netlink, IPIP_DEVICE, mtu);
  } catch (thrown) {
    const cause = toCareofError(thrown);
    if (errnoOf(thrown) === EOPNOTSUPP) throw new CareofError("unsupported", "this kernel has no ipip device (CONFIG_NET_IPIP, module ipip)", { cause });
    if (errnoOf(thrown) === EEXIST) throw new CareofError("not-ours", "another program has made this namespace's only external ipip device", { cause });
    throw cause;
  }
}

/** When its checks are in place. Idempotent. */
export function raiseIpipDevice(netlink: Netlink): void {
  // Before it comes up: otherwise it multicasts for an IPv6 address of its own.
  writeSysctlIfThere(["net", "ipv6", "conf", IPIP_DEVICE, "disable_ipv6"], "1");
  routeFor([IPIP_DEVICE]);
  changeLink(netlink, requireLink(netlink, IPIP_DEVICE), { up: true });
}

/** Idempotent; leaves the other end's. */
export function removeIpipDevice(netlink: Netlink, end: End): void {
  const link = findLink(netlink, IPIP_DEVICE);
  if (link?.alias === alias(end)) deleteLink(netlink, link);
}
