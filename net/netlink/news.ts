import { Buffer } from "node:buffer";
import { EAGAIN, ENOBUFS, refused } from "../errno.js";
import * as sys from "../syscall.js";
import { decodeMessages, type Reply } from "./client.js";

const AF_NETLINK = 16;
const SOCK_RAW_CLOEXEC_NONBLOCK = 3 | 0o2000000 | 0o4000;
const DATAGRAM_BYTES = 64 * 1024;

/** What the kernel can be asked to tell of (linux/rtnetlink.h). */
export const RTMGRP_LINK = 0x1;
export const RTMGRP_IPV4_IFADDR = 0x10;

/** What the kernel tells of its own accord in the network namespace in which it was made, in the order in which it happened. */
export class NetlinkNews {
  /** Readable when there is news. */
  readonly descriptor = sys.socket(AF_NETLINK, SOCK_RAW_CLOEXEC_NONBLOCK, 0);
  readonly #buffer = Buffer.allocUnsafeSlow(DATAGRAM_BYTES);

  /** `groups`: RTMGRP_… bits. @throws CareofError `kernel-refused` */
  constructor(groups: number) {
    const address = Buffer.alloc(12);
    address.writeUInt16LE(AF_NETLINK);
    address.writeUInt32LE(groups, 8);
    try {
      sys.bind(this.descriptor, address);
    } catch (thrown) {
      sys.close(this.descriptor);
      throw thrown;
    }
  }

  /** Everything since the last call; `null` stands where the kernel had more than it could keep. @throws CareofError `kernel-refused`, `malformed-netlink` */
  read(): (Reply | null)[] {
    const found: (Reply | null)[] = [];
    for (;;) {
      const length = sys.tryReceive(this.descriptor, this.#buffer);
      if (length === -EAGAIN) return found;
      if (length === -ENOBUFS) {
        found.push(null);
        continue;
      }
      if (length < 0) throw refused("news", -length, "recv");
      for (const { type, body } of decodeMessages(Buffer.from(this.#buffer.subarray(0, length)))) found.push({ type, body });
    }
  }

  close(): void {
    sys.close(this.descriptor);
  }
}
