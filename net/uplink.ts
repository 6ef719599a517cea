import { CareofError } from "../model/errors.js";
import type { Netlink } from "./netlink/client.js";
import { ETHERNET, requireLink, type Link } from "./netlink/links.js";

/** The uplink as it is now. @throws CareofError `no-link`, `unsupported` (not Ethernet) */
export function requireEthernet(netlink: Netlink, name: string): Link {
  const link = requireLink(netlink, name);
  if (link.hardware !== ETHERNET) throw new CareofError("unsupported", `the uplink ${name} is not an Ethernet interface, which this data plane needs`);
  return link;
}
