import { Buffer } from "node:buffer";
import { EAGAIN, refused } from "../errno.js";
import * as sys from "../syscall.js";
import { decodeMessages } from "./client.js";
import { decodeLink, RTM_DELLINK, RTM_NEWLINK, type Link } from "./links.js";

const AF_NETLINK = 16;
const SOCK_RAW_CLOEXEC_NONBLOCK = 3 | 0o2000000 | 0o4000;
const RTMGRP_LINK = 1;
const ENOBUFS = 105;
const DATAGRAM_BYTES = 64 * 1024;

/** `missed`: the kernel had more news than it could keep; list the links instead. */
export type LinkEvent = { readonly kind: "there" | "gone"; readonly link: Link } | { readonly kind: "missed" };

/** The kernel's news of interfaces in the network namespace in which it was made. */
export class LinkMonitor {
  /** Readable when there is news. */
  readonly descriptor = sys.socket(AF_NETLINK, SOCK_RAW_CLOEXEC_NONBLOCK, 0);
  readonly #buffer = Buffer.allocUnsafeSlow(DATAGRAM_BYTES);

  constructor() {
    const address = Buffer.alloc(12);
    address.writeUInt16LE(AF_NETLINK);
    address.writeUInt32LE(RTMGRP_LINK, 8);
    sys.bind(this.descriptor, address);
  }

  /** Everything since the last call. @throws CareofError `kernel-refused`, `malformed-netlink` */
  read(): LinkEvent[] {
    const found: LinkEvent[] = [];
    for (;;) {
      const length = sys.tryReceive(this.descriptor, this.#buffer);
      if (length === -EAGAIN) return found;
      if (length === -ENOBUFS) {
        found.push({ kind: "missed" });
        continue;
      }
      if (length < 0) throw refused("news of interfaces", -length, "recv");
      for (const { type, body } of decodeMessages(Buffer.from(this.#buffer.subarray(0, length)))) {
        if (type === RTM_NEWLINK || type === RTM_DELLINK) found.push({ kind: type === RTM_NEWLINK ? "there" : "gone", link: decodeLink({ type, body }) });
      }
    }
  }

  close(): void {
    sys.close(this.descriptor);
  }
}
