import { Buffer } from "node:buffer";
import { addressFromBytes, isV4, type Ipv4 } from "../model/address.js";
import { readSome } from "./bounded-reads.js";
import { changeLink, requireLink } from "./netlink/links.js";
import { Netlink } from "./netlink/client.js";
import { writeSysctlIfThere } from "./sysctl.js";
import * as sys from "./syscall.js";
import { openTap } from "./tap.js";

/** A frame that waits, as the data plane made it: without the port's addresses. */
export interface HeldFrame {
  readonly home: Ipv4;
  readonly came: Came;
  /** Among those of its address and kind, 1 to 2^24 − 1 and then 0 again; what one large packet was cut into has the same. 0 where the port refused it. */
  readonly number: number;
  readonly frame: Buffer;
}

/**
 * From the home agent; by another host, hence before what comes directly; or either way, and the port did not take it. `doubtful`: the port said "congestion" (NET_XMIT_CN), which a discipline of its says when it has queued the
 * packet and dropped another one, and the kernel when there is no carrier and it has dropped this one. Whoever reads it finds out by the carrier.
 */
export type Came = "directly" | "straggler" | "refused" | "doubtful";

const ETHERNET = 14;
const IP = 20;
/** `HOLD_DIRECT` and so on of bpf/layout.h, in the last byte of the frame's source. */
const CAME: ReadonlyMap<number | undefined, Came> = new Map([[1, "directly"], [2, "straggler"], [4, "refused"], [8, "doubtful"]]);
const FRAME_BYTES = 65_550;

/**
 * A TAP into which the data plane puts packets that may not go to their port yet. Its queue is the kernel's; whoever holds this reads it as they come. Large segments
 * are cut and checksums made on the way in.
 */
export class HoldDevice {
  readonly name: string;
  /** Readable when something has come. */
  readonly descriptor: number;
  readonly #queueLength: number;
  readonly #buffer = Buffer.allocUnsafeSlow(FRAME_BYTES);

  /** Lives as long as this process. @throws CareofError `kernel-refused`, `malformed-port` */
  constructor(name: string, queueLength: number) {
    this.name = name;
    this.#queueLength = queueLength;
    this.descriptor = openTap(name);
    const netlink = new Netlink();
    try {
      writeSysctlIfThere(["net", "ipv6", "conf", name, "disable_ipv6"], "1");
      changeLink(netlink, requireLink(netlink, name), { queueLength, mtu: 65_521, up: true });
    } finally {
      netlink.close();
    }
  }

  /** Everything that waited when this was called, oldest first: as much as its queue holds, and not what comes meanwhile, which may have no end. */
  read(): HeldFrame[] {
    const found: HeldFrame[] = [];
    readSome(() => sys.tryRead(this.descriptor, this.#buffer), (length) => {
      const frame = Buffer.from(this.#buffer.subarray(0, length));
      const home = length < ETHERNET + IP ? null : addressFromBytes(frame.subarray(ETHERNET + 16, ETHERNET + 20));
      const came = CAME.get(frame[11]);
      // What the stack itself might send here is nobody's.
      if (home !== null && isV4(home) && came !== undefined && frame.readUInt16BE(12) === 0x0800 && frame[6] === 0x02 && frame[7] === 0xca) found.push({ home, came, number: frame.readUIntBE(8, 3), frame });
    }, `to read ${this.name}`, this.#queueLength + 1);
    return found;
  }

  close(): void {
    sys.close(this.descriptor);
  }
}
