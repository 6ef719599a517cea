import { addressOf, close, ioctl, socket } from "../../../net/syscall.js";
import type { Namespace } from "./namespaces.js";

const AF_INET = 2;
const SOCK_DGRAM = 2;
const SIOCETHTOOL = 0x8946;
const ETHTOOL_STXCSUM = 0x17;
const ETHTOOL_SGRO = 0x2c;
const IFNAMSIZ = 16;
const IFREQ = 40;

/** As `ethtool -K NAME tx on|off`, which takes segmentation with it. */
export function setChecksumOffload(net: Namespace, name: string, on: boolean): void {
  set(net, name, ETHTOOL_STXCSUM, on, `the checksum offload of ${name}`);
}

/** As `ethtool -K NAME gro on|off`: whether segments that come in are joined. */
export function setReceiveOffload(net: Namespace, name: string, on: boolean): void {
  set(net, name, ETHTOOL_SGRO, on, `the receive offload of ${name}`);
}

function set(net: Namespace, name: string, command: number, on: boolean, what: string): void {
  const value = Buffer.allocUnsafeSlow(8);
  value.writeUInt32LE(command, 0);
  value.writeUInt32LE(on ? 1 : 0, 4);
  const request = Buffer.alloc(IFREQ);
  request.write(name, 0, "utf8");
  request.writeBigUInt64LE(addressOf(value), IFNAMSIZ);
  net.within(() => {
    const fd = socket(AF_INET, SOCK_DGRAM, 0);
    try {
      ioctl(fd, SIOCETHTOOL, request, what);
    } finally {
      close(fd);
    }
  });
}
