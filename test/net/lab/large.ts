import type { Ipv4, Mac } from "../../../model/address.js";
import { Netlink } from "../../../net/netlink/client.js";
import { requireLink } from "../../../net/netlink/links.js";
import { close, sendTo, setSocketOption, socket } from "../../../net/syscall.js";
import type { Namespace } from "./namespaces.js";
import { checksum, encode, ETHERTYPE, frame } from "./packets.js";
import type { Wire } from "./wire.js";

const AF_PACKET = 17;
const SOCK_RAW = 3;
const SOL_PACKET = 263;
const PACKET_VNET_HDR = 15;
const SOCKADDR_LL = 20;
const TCP = 6;
const ACK = 0x10;
const ETH = 14;
const IP = 20;
const TCP_HEADER = 20;
const CHECKSUM_AT = 16;

/** Of each segment that is to be cut from a large one. */
const SEGMENT = 1400;

/**
 * A TCP packet of `bytes` with its IP header, to be cut into segments by whoever has to: as TCP hands it to a card that does that, and as a receiver's kernel joins what has come (`struct virtio_net_hdr` before it).
 */
export function sendLarge(net: Namespace, device: string, { from, source, to, destination }: { readonly from: Mac; readonly source: Ipv4; readonly to: Mac; readonly destination: Ipv4 }, bytes: number): void {
  const tcp = Buffer.alloc(bytes - IP, 0x5a);
  tcp.fill(0, 0, TCP_HEADER);
  tcp.writeUInt16BE(4000, 0);
  tcp.writeUInt16BE(4001, 2);
  tcp.writeUInt8((TCP_HEADER / 4) << 4, 12);
  tcp.writeUInt8(ACK, 13);
  const packet = encode({ source, destination, protocol: TCP, payload: tcp });
  // The rest of the checksum is the card's: this is the pseudo-header's part.
  const pseudo = Buffer.concat([packet.subarray(12, 20), Buffer.from([0, TCP, tcp.length >> 8, tcp.length & 0xff])]);
  packet.writeUInt16BE(~checksum(pseudo) & 0xffff, IP + CHECKSUM_AT);
  const offload = Buffer.alloc(10);
  offload.writeUInt8(1, 0);
  offload.writeUInt8(1, 1);
  offload.writeUInt16LE(ETH + IP + TCP_HEADER, 2);
  offload.writeUInt16LE(SEGMENT, 4);
  offload.writeUInt16LE(ETH + IP, 6);
  offload.writeUInt16LE(CHECKSUM_AT, 8);
  net.within(() => {
    const netlink = new Netlink();
    const { index } = requireLink(netlink, device);
    netlink.close();
    const fd = socket(AF_PACKET, SOCK_RAW, 0);
    try {
      const on = Buffer.alloc(4);
      on.writeInt32LE(1);
      setSocketOption(fd, SOL_PACKET, PACKET_VNET_HDR, on);
      const address = Buffer.alloc(SOCKADDR_LL);
      address.writeUInt16LE(AF_PACKET, 0);
      address.writeInt32LE(index, 4);
      sendTo(fd, Buffer.concat([offload, frame(to, from, ETHERTYPE.ipv4, packet)]), address);
    } finally {
      close(fd);
    }
  });
}

/** How many bytes of what `sendLarge` has sent arrive here in all, headers counted once, cut or not; 0 for none within the time. */
export async function arrivesLarge(wire: Wire, source: Ipv4, wanted: number, limit?: number): Promise<number> {
  let sum = 0;
  await wire.packet((packet) => {
    if (packet.protocol === TCP && packet.source === source && packet.payload.readUInt16BE(2) === 4001) sum += packet.payload.length - TCP_HEADER;
    return sum + IP + TCP_HEADER >= wanted;
  }, limit);
  return sum === 0 ? 0 : sum + IP + TCP_HEADER;
}
