import { addressBytes, type Ipv4 } from "../../model/address.js";
import { encodeAttributes, nested, raw, u32 } from "../../net/netlink/attributes.js";
import { NLM_F_CREATE, NLM_F_REPLACE, type Request } from "../../net/netlink/client.js";
import { MAIN_TABLE } from "../../net/netlink/routes.js";

const RTM_NEWROUTE = 24;
const AF_INET = 2;
const RTA_DST = 1;
const RTA_OIF = 4;
const RTA_TABLE = 15;
const RTA_ENCAP_TYPE = 21;
const RTA_ENCAP = 22;
const LWTUNNEL_ENCAP_IP = 2;
const LWTUNNEL_IP_ID = 1;
const LWTUNNEL_IP_DST = 2;
const RTPROT_STATIC = 4;
const SCOPE_LINK = 253;
const RTN_UNICAST = 1;

/** `ip route replace HOME/32 encap ip id 0 dst CAREOF dev DEVICE`, which is what a re-point is where the kernel's own device carries the tunnels. */
export function encapRoute(home: Ipv4, careOf: Ipv4, device: number): Request {
  const header = Buffer.alloc(12);
  header.writeUInt8(AF_INET, 0);
  header.writeUInt8(32, 1);
  header.writeUInt8(MAIN_TABLE, 4);
  header.writeUInt8(RTPROT_STATIC, 5);
  header.writeUInt8(SCOPE_LINK, 6);
  header.writeUInt8(RTN_UNICAST, 7);
  const type = Buffer.alloc(2);
  type.writeUInt16LE(LWTUNNEL_ENCAP_IP);
  const body = encodeAttributes([
    u32(RTA_TABLE, MAIN_TABLE), raw(RTA_DST, addressBytes(home)), u32(RTA_OIF, device), raw(RTA_ENCAP_TYPE, type),
    nested(RTA_ENCAP, [raw(LWTUNNEL_IP_ID, new Uint8Array(8)), raw(LWTUNNEL_IP_DST, addressBytes(careOf))]),
  ]);
  return { type: RTM_NEWROUTE, flags: NLM_F_CREATE | NLM_F_REPLACE, body: Buffer.concat([header, body]), what: `the route to ${home}` };
}
