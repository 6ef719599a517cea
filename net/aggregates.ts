import { CareofError } from "../model/errors.js";
import type { Netlink } from "./netlink/client.js";
import { changeLink, ETHERNET, listLinks, type Link } from "./netlink/links.js";
import { OUTER_HEADER } from "./tunnel-hop.js";

/** The largest packet that fits into another one: an IPv4 header can say no more than 65,535 bytes. */
const LARGEST_INNER = 65_535 - OUTER_HEADER;
/** What the kernel joins is smaller than its limit. */
const LIMIT = LARGEST_INNER + 1;
/** Above that the older of the two limits is IPv6's alone. */
const LARGEST_OF_BOTH = 65_536;

/**
 * The kernel joins segments of one TCP stream that come in together (GRO), to packets of up to 65,535 bytes. Those of the last twenty bytes could not be encapsulated: at some segment sizes (1364 bytes and timestamps:
 * 48 of them are 65,524) that would be every full one. So interfaces by which packets come that go into a tunnel join to twenty bytes less. What is smaller already stays, and IPv6's limit where the kernel has one of its own.
 * A kernel that has no such limits (before Linux 5.19), or refuses, drops them as `too-big`.
 */
export function limitAggregates(netlink: Netlink, links: readonly Link[]): void {
  for (const link of links) {
    if (link.hardware !== ETHERNET) continue;
    const { groIpv4MaxSize, groMaxSize } = link;
    try {
      if (groIpv4MaxSize !== null) {
        if (groIpv4MaxSize > LIMIT) changeLink(netlink, link, { groIpv4MaxSize: LIMIT });
      } else if (groMaxSize !== null && groMaxSize > LIMIT && groMaxSize <= LARGEST_OF_BOTH) {
        changeLink(netlink, link, { groMaxSize: LIMIT });
      }
    } catch (thrown) {
      // It may be gone by now; and the tunnel is worth more than this.
      if (!(thrown instanceof CareofError)) throw thrown;
    }
  }
}

/** Correspondents come by any of the home agent's interfaces. */
export function limitAllAggregates(netlink: Netlink): void {
  limitAggregates(netlink, listLinks(netlink));
}
