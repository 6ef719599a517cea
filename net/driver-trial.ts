import { CareofError, toCareofError } from "../model/errors.js";
import { careofObject, loadProgram } from "./bpf/loader.js";
import { createMap, type BpfMap } from "./bpf/maps.js";
import { requireOneEnd } from "./end-claim.js";
import { EEXIST, EOPNOTSUPP, errnoOf } from "./errno.js";
import { IPIP_DEVICE, removeLeftTrials, TRIAL_DEVICE, type End } from "./ipip-device.js";
import { refuseLeftHome } from "./left-end.js";
import { Netlink } from "./netlink/client.js";
import { createIpip } from "./netlink/ipip.js";
import { deleteLink, findLink, requireLink } from "./netlink/links.js";
import { close } from "./syscall.js";
import { BPF_HOME_WAY } from "./tunnel-bpf-home.js";
import { BPF_HOST_WAY } from "./tunnel-bpf-host.js";
import { IPIP_HOME_WAY } from "./tunnel-ipip-home.js";
import { IPIP_HOST_WAY } from "./tunnel-ipip-host.js";
import type { TunnelWay } from "./tunnel-way.js";

const TRIAL_MTU = 1480;

/** What each driver would do at each end: the same as the drivers themselves work by. */
export const WAYS: Readonly<Record<"bpf" | "ipip", Readonly<Record<End, TunnelWay>>>> = { bpf: { home: BPF_HOME_WAY, host: BPF_HOST_WAY }, ipip: { home: IPIP_HOME_WAY, host: IPIP_HOST_WAY } };

/** Loads each of them, with maps of their own, and lets go of them. @throws CareofError `kernel-refused` */
export function tryPrograms(way: Pick<TunnelWay, "programs" | "maps" | "decapFlags">): void {
  const made = new Map<string, BpfMap>();
  const maps = {
    get: (name: string): BpfMap => {
      const found = made.get(name);
      if (found === undefined) throw new CareofError("no-object", `net/bpf/careof.o has no map "${name}"`);
      return found;
    },
  };
  try {
    for (const definition of careofObject().maps) if (way.maps.includes(definition.name)) made.set(definition.name, createMap(definition.maxEntries === 0 ? { ...definition, maxEntries: 1 } : definition));
    for (const program of way.programs) close(loadProgram(program, maps));
    way.decapFlags(maps);
  } finally {
    for (const map of made.values()) map.close();
  }
}

/**
 * Does all that would keep the driver from being opened, and leaves nothing. An uplink that is missing is no matter of the driver; `null`: nobody has named one,
 * nor whose the ipip device should be.
 * @throws CareofError as the driver's constructor
 */
export function tryDriver(driver: "bpf" | "ipip", end: End, uplink: string | null): void {
  const way = WAYS[driver][end];
  if (uplink !== null) requireOneEnd(end);
  const netlink = new Netlink();
  try {
    if (uplink !== null && findLink(netlink, uplink) !== null) way.uplink(netlink, uplink);
    if (uplink !== null && end === "host") refuseLeftHome(netlink, uplink);
    if (driver === "ipip") tryIpipDevice(netlink, uplink === null ? null : end);
    tryPrograms(way);
  } finally {
    netlink.close();
  }
}

/** By making the device for a moment, unless ours is there. `end` null: whosever it is. @throws CareofError `unsupported`, `not-ours`, `kernel-refused` */
export function tryIpipDevice(netlink: Netlink, end: End | null): void {
  const ours = findLink(netlink, IPIP_DEVICE);
  if (ours !== null) {
    if (end === null || ours.alias === "" || ours.alias === `careof:${end}`) return;
    throw new CareofError("not-ours", `the ipip device here is that of ${ours.alias}`);
  }
  try {
    removeLeftTrials(netlink);
    createIpip(netlink, TRIAL_DEVICE, TRIAL_MTU);
    deleteLink(netlink, requireLink(netlink, TRIAL_DEVICE));
  } catch (thrown) {
    const cause = toCareofError(thrown);
    if (errnoOf(thrown) === EOPNOTSUPP) throw new CareofError("unsupported", "this kernel has no ipip device (module ipip)", { cause });
    if (errnoOf(thrown) === EEXIST) throw new CareofError("not-ours", "another program has the only external ipip device", { cause });
    throw cause;
  }
}
