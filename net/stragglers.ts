import { Buffer } from "node:buffer";
import { addressBytes, type Ipv4 } from "../model/address.js";
import { ipHeader } from "./marker.js";
import * as sys from "./syscall.js";

const IP_HEADER = 20;
const IPIP = 4;

/** Sends packets that were kept or left here on to another host, in the outer header in which the data plane sends those that it passes on by itself. */
export class StragglerSocket {
  readonly #from: Ipv4;
  readonly #fd = sys.socket(2, 3 | 0o2000000, 255);

  /** @throws CareofError `kernel-refused` */
  constructor(careOf: Ipv4) {
    this.#from = careOf;
  }

  /** An IPv4 packet. Waits where the way out is full. @throws CareofError `kernel-refused` */
  send(packet: Buffer, to: Ipv4): void {
    sys.sendTo(this.#fd, this.#wrapped(packet, to), socketAddress(to));
  }

  /** False, and nothing was sent, where it would have to wait. @throws CareofError `kernel-refused` (too big for the path, a firewall) */
  trySend(packet: Buffer, to: Ipv4): boolean {
    return sys.trySendTo(this.#fd, this.#wrapped(packet, to), socketAddress(to));
  }

  #wrapped(packet: Buffer, to: Ipv4): Buffer {
    return Buffer.concat([ipHeader(this.#from, to, IPIP, IP_HEADER + packet.length), packet]);
  }

  close(): void {
    sys.close(this.#fd);
  }
}

function socketAddress(to: Ipv4): Buffer {
  const address = Buffer.alloc(16);
  address.writeUInt16LE(2);
  address.set(addressBytes(to), 4);
  return address;
}
