import { encodeAttributes, nested, raw, text, u32, u8 } from "./attributes.js";
import { NLM_F_CREATE, NLM_F_EXCL, type Netlink } from "./client.js";
import { RTM_NEWLINK } from "./links.js";

const IFLA_IFNAME = 3;
const IFLA_MTU = 4;
const IFLA_LINKINFO = 18;
const IFLA_INFO_KIND = 1;
const IFLA_INFO_DATA = 2;
const IFLA_IPTUN_PROTO = 9;
const IFLA_IPTUN_COLLECT_METADATA = 19;
const IPPROTO_IPIP = 4;
const HEADER = 16;

/**
 * `ip link add NAME type ipip external`, down. A namespace has at most one device of that kind.
 * @throws CareofError `kernel-refused`: EEXIST (there is one, whatever its name), EOPNOTSUPP (this kernel has no ipip)
 */
export function createIpip(netlink: Netlink, name: string, mtu: number): void {
  const data = nested(IFLA_INFO_DATA, [u8(IFLA_IPTUN_PROTO, IPPROTO_IPIP), raw(IFLA_IPTUN_COLLECT_METADATA, new Uint8Array(0))]);
  const attributes = [text(IFLA_IFNAME, name), u32(IFLA_MTU, mtu), nested(IFLA_LINKINFO, [text(IFLA_INFO_KIND, "ipip"), data])];
  const body = Buffer.concat([Buffer.alloc(HEADER), encodeAttributes(attributes)]);
  netlink.request({ type: RTM_NEWLINK, flags: NLM_F_CREATE | NLM_F_EXCL, body, what: `the ipip device ${name}` });
}
