import { Buffer } from "node:buffer";
import { CareofError } from "../model/errors.js";
import { close, ioctl, open } from "./syscall.js";

const TUNSETIFF = 0x4004_54ca;
const TUNSETPERSIST = 0x4004_54cb;
const TUNGETIFF = 0x8004_54d2;
const TUNGETVNETHDRSZ = 0x8004_54d7;
const IFF_TAP = 0x0002;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
const O_RDWR = 2;
const O_NONBLOCK = 0o4000;
const IFNAMSIZ = 16;
const IFREQ = 40;

/** @throws CareofError `malformed-port` unless the kernel takes it as an interface's name: 1 to 15 bytes, no slash, colon or space. */
export function requireInterfaceName(name: string): string {
  if (!/^[^\s/:]{1,15}$/.test(name) || Buffer.byteLength(name) >= IFNAMSIZ || name === "." || name === "..") {
    throw new CareofError("malformed-port", `"${name.slice(0, 40)}" is not an interface name of 1 to 15 characters`);
  }
  return name;
}

/**
 * Makes a TAP that outlives this process and carries offload headers, single queue: what QEMU's `-netdev tap,ifname=…,script=no,downscript=no` opens.
 * @throws CareofError `malformed-port`, `kernel-refused` (EBUSY: the name is taken and in use)
 */
export function createTap(name: string): void {
  const request = Buffer.alloc(IFREQ);
  request.write(requireInterfaceName(name), 0, "utf8");
  request.writeUInt16LE(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, IFNAMSIZ);
  const fd = open("/dev/net/tun", O_RDWR);
  try {
    ioctl(fd, TUNSETIFF, request, `TAP ${name}`);
    // The argument is the number itself, not a pointer: any non-null one persists.
    ioctl(fd, TUNSETPERSIST, Buffer.alloc(1), `to keep TAP ${name}`);
  } finally {
    close(fd);
  }
}

/** A TAP that lives as long as its descriptor, which is returned: frames as they are, no offloads, never blocking. @throws CareofError `malformed-port`, `kernel-refused` */
export function openTap(name: string): number {
  const request = Buffer.alloc(IFREQ);
  request.write(requireInterfaceName(name), 0, "utf8");
  request.writeUInt16LE(IFF_TAP | IFF_NO_PI, IFNAMSIZ);
  const fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
  try {
    ioctl(fd, TUNSETIFF, request, `TAP ${name}`);
  } catch (thrown) {
    close(fd);
    throw thrown;
  }
  return fd;
}

/** Bytes of offload header in front of each frame that is read by this descriptor of a TAP; 0 for one without. @throws CareofError `kernel-refused` */
export function offloadHeader(fd: number): number {
  const request = Buffer.alloc(IFREQ);
  ioctl(fd, TUNGETIFF, request, "a TAP's flags");
  if ((request.readUInt16LE(IFNAMSIZ) & IFF_VNET_HDR) === 0) return 0;
  const size = Buffer.alloc(4);
  ioctl(fd, TUNGETVNETHDRSZ, size, "the size of a TAP's offload header");
  return size.readInt32LE(0);
}
