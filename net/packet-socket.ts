import { close, sendTo, socket } from "./syscall.js";

const AF_PACKET = 17;
const SOCK_RAW_CLOEXEC = 3 | 0o2000000;
const SOCKADDR_LL = 20;

/** Sends Ethernet frames out of interfaces; receives nothing (protocol 0). Bound to the network namespace in which it was made. */
export class PacketSocket {
  readonly #fd = socket(AF_PACKET, SOCK_RAW_CLOEXEC, 0);

  /** @throws CareofError `kernel-refused` (ENETDOWN, ENOBUFS: the queue is full) */
  send(index: number, frame: Uint8Array): void {
    const address = Buffer.alloc(SOCKADDR_LL);
    address.writeUInt16LE(AF_PACKET, 0);
    address.writeInt32LE(index, 4);
    sendTo(this.#fd, frame, address);
  }

  close(): void {
    close(this.#fd);
  }
}
