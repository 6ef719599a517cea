import { setTimeout as sleep } from "node:timers/promises";
import { mac, type Mac } from "../../../model/address.js";
import { EAGAIN, errnoOf } from "../../../net/errno.js";
import { Netlink } from "../../../net/netlink/client.js";
import { requireLink } from "../../../net/netlink/links.js";
import { PacketSocket } from "../../../net/packet-socket.js";
import { bind, close, receive, setSocketOption, socket } from "../../../net/syscall.js";
import type { Namespace } from "./namespaces.js";
import { decode, ETHERTYPE, encode, frame, type Packet, type Sketch } from "./packets.js";

const AF_PACKET = 17;
const SOCK_RAW_NONBLOCK = 3 | 0o2004000;
const ALL_NETWORK_ORDER = 0x0300;
const SOL_SOCKET = 1;
const SO_RCVBUFFORCE = 33;
const SOL_PACKET = 263;
const PACKET_IGNORE_OUTGOING = 23;

/** What arrives while this process gets no processor, or does not look, is there when it does: some seconds of a bulk stream. */
const RECEIVE_BUFFER_BYTES = 32 << 20;
/** How long a packet that must come is waited for, and how long one that must not. */
const COMES_MS = 2_000;
const STAYS_AWAY_MS = 60;

/** One end of a veth pair as raw frames: what is put in, and what arrives (not what leaves). */
export class Wire {
  readonly mac: Mac;
  readonly #index: number;
  readonly #fd: number;
  readonly #sender: PacketSocket;
  readonly #buffer = Buffer.alloc(70_000);

  constructor(net: Pick<Namespace, "within">, name: string) {
    const link = net.within(() => {
      const netlink = new Netlink();
      const found = requireLink(netlink, name);
      netlink.close();
      return found;
    });
    this.mac = mac(link.mac);
    this.#index = link.index;
    this.#fd = net.within(() => socket(AF_PACKET, SOCK_RAW_NONBLOCK, ALL_NETWORK_ORDER));
    const address = Buffer.alloc(20);
    address.writeUInt16LE(AF_PACKET, 0);
    address.writeUInt16LE(ALL_NETWORK_ORDER, 2);
    address.writeInt32LE(link.index, 4);
    bind(this.#fd, address);
    setSocketOption(this.#fd, SOL_SOCKET, SO_RCVBUFFORCE, int(RECEIVE_BUFFER_BYTES));
    setSocketOption(this.#fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, int(1));
    this.#sender = net.within(() => new PacketSocket());
  }

  send(bytes: Buffer): void {
    this.#sender.send(this.#index, bytes);
  }

  sendIp(to: Mac, sketch: Sketch): void {
    this.send(frame(to, this.mac, ETHERTYPE.ipv4, encode(sketch)));
  }

  /** The next frame that has arrived, without waiting. */
  next(): Buffer | null {
    try {
      const length = receive(this.#fd, this.#buffer, 0);
      return Buffer.from(this.#buffer.subarray(0, length));
    } catch (thrown) {
      if (errnoOf(thrown) === EAGAIN) return null;
      throw thrown;
    }
  }

  forget(): void {
    while (this.next() !== null);
  }

  /** The first frame that `pick` makes something of; `null` after the time. */
  async frame<T>(pick: (bytes: Buffer) => T | null, limit = COMES_MS): Promise<T | null> {
    const end = performance.now() + limit;
    do {
      for (let bytes = this.next(); bytes !== null; bytes = this.next()) {
        const found = pick(bytes);
        if (found !== null) return found;
      }
      await sleep(1);
    } while (performance.now() < end);
    return null;
  }

  packet(pick: (packet: Packet) => boolean, limit = COMES_MS): Promise<Packet | null> {
    return this.frame((bytes) => picked(bytes, pick), limit);
  }

  /** True when nothing of the kind arrives for a while. */
  async silent(pick: (packet: Packet) => boolean): Promise<boolean> {
    return (await this.packet(pick, STAYS_AWAY_MS)) === null;
  }

  close(): void {
    close(this.#fd);
    this.#sender.close();
  }
}

/** At which of these the first packet arrives that `pick` takes; -1 after the time. */
export async function whichHas(wires: readonly Wire[], pick: (packet: Packet) => boolean, limit: number): Promise<number> {
  const end = performance.now() + limit;
  do {
    for (const [at, wire] of wires.entries()) for (let bytes = wire.next(); bytes !== null; bytes = wire.next()) if (picked(bytes, pick) !== null) return at;
    await sleep(1);
  } while (performance.now() < end);
  return -1;
}

function picked(bytes: Buffer, pick: (packet: Packet) => boolean): Packet | null {
  const packet = bytes.readUInt16BE(12) === ETHERTYPE.ipv4 ? decode(bytes.subarray(14)) : null;
  return packet !== null && pick(packet) ? packet : null;
}

function int(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
}
