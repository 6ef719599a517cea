import { addressOf, close, ioctl, socket } from "../../../net/syscall.js";
import type { Namespace } from "./namespaces.js";

const AF_INET = 2;
const SOCK_DGRAM = 2;
const SIOCETHTOOL = 0x8946;
const ETHTOOL_STXCSUM = 0x17;
const IFNAMSIZ = 16;
const IFREQ = 40;

/** As `ethtool -K NAME tx on|off`, which takes segmentation with it. */
export function setChecksumOffload(net: Namespace, name: string, on: boolean): void {
  const value = Buffer.allocUnsafeSlow(8);
  value.writeUInt32LE(ETHTOOL_STXCSUM, 0);
  value.writeUInt32LE(on ? 1 : 0, 4);
  const request = Buffer.alloc(IFREQ);
  request.write(name, 0, "utf8");
  request.writeBigUInt64LE(addressOf(value), IFNAMSIZ);
  net.within(() => {
    const fd = socket(AF_INET, SOCK_DGRAM, 0);
    try {
      ioctl(fd, SIOCETHTOOL, request, `the checksum offload of ${name}`);
    } finally {
      close(fd);
    }
  });
}
