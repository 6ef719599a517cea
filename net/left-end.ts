import { CareofError } from "../model/errors.js";
import type { End } from "./ipip-device.js";
import type { Netlink } from "./netlink/client.js";
import { listFilters } from "./netlink/filters.js";
import { findLink } from "./netlink/links.js";
import { HOME_AGENT_PROTOCOL } from "./netlink/routes.js";

/** Each end's place among an interface's filters: what either has left is known by it. */
export const PREFERENCES: Readonly<Record<End, number>> = { home: 202, host: 203 };

/**
 * A home agent that stops leaves its programs on the uplink, so that traffic flows on. They come before a host's, and drop what is for a host's VMs. Whether it is only about to start again cannot be seen, so
 * nothing is taken away. An uplink that is missing has nothing on it.
 * @throws CareofError `not-ours`, `kernel-refused`
 */
export function refuseLeftHome(netlink: Netlink, uplink: string): void {
  const link = findLink(netlink, uplink);
  if (link === null) return;
  const preference = PREFERENCES.home;
  const left = listFilters(netlink, link.index).filter((filter) => filter.preference === preference && filter.name.startsWith("careof_home_"));
  if (left.length === 0) return;
  const commands = [...left.map(({ direction }) => `tc filter del dev ${uplink} ${direction} pref ${String(preference)}`), `ip route flush proto ${String(HOME_AGENT_PROTOCOL)}`];
  throw new CareofError("not-ours", `the programs on ${uplink} are a home agent's, which does not run now: "${commands.join("; ")}" if it shall not run here again`);
}
