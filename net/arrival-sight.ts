import { Buffer } from "node:buffer";
import { addressFromBytes, isV4, macFromBytes, type Ipv4, type Mac } from "../model/address.js";
import { readSome } from "./bounded-reads.js";
import { attachFilter, type Instruction } from "./packet-filter.js";
import * as sys from "./syscall.js";

/** Somebody on the LAN says that it is there, as it or its hypervisor does on arrival: gratuitous ARP (RFC 5944 §4.6) with its address, or RARP (RFC 903) without one. */
export interface Arrival {
  readonly mac: Mac;
  readonly home: Ipv4 | null;
}

const AF_PACKET = 17;
const SOCK_RAW_CLOEXEC_NONBLOCK = 3 | 0o2000000 | 0o4000;
const ETH_P_ALL = 3;
const SOL_SOCKET = 1;
const SO_RCVBUF = 8;
const SOL_PACKET = 263;
const PACKET_STATISTICS = 6;
const PACKET_IGNORE_OUTGOING = 23;
const ETHERTYPE_RARP = 0x8035;
const ETHERTYPE_ARP = 0x0806;
const FRAME = 42;
/** Of storms the rest is lost; who has arrived says so more than once. */
const RECEIVE_BUFFER_BYTES = 64 * 1024;

const LD_W_ABS = 0x20, LD_H_ABS = 0x28, JEQ = 0x15, JEQ_X = 0x1d, TAX = 0x07, RET = 0x06;
/** RARP, or ARP whose sender and target are the same address; nothing else wakes the process. */
const ARRIVALS: readonly Instruction[] = [
  { code: LD_H_ABS, whenTrue: 0, whenFalse: 0, value: 12 },
  { code: JEQ, whenTrue: 5, whenFalse: 0, value: ETHERTYPE_RARP },
  { code: JEQ, whenTrue: 0, whenFalse: 5, value: ETHERTYPE_ARP },
  { code: LD_W_ABS, whenTrue: 0, whenFalse: 0, value: 28 },
  { code: TAX, whenTrue: 0, whenFalse: 0, value: 0 },
  { code: LD_W_ABS, whenTrue: 0, whenFalse: 0, value: 38 },
  { code: JEQ_X, whenTrue: 0, whenFalse: 1, value: 0 },
  { code: RET, whenTrue: 0, whenFalse: 0, value: FRAME },
  { code: RET, whenTrue: 0, whenFalse: 0, value: 0 },
];

/** Hears arrivals on one Ethernet interface, its own frames apart. Bound to the network namespace in which it was made; deaf until `listenOn`. */
export class ArrivalSight {
  /** Readable when there is something. */
  readonly descriptor = sys.socket(AF_PACKET, SOCK_RAW_CLOEXEC_NONBLOCK, 0);
  readonly #buffer = Buffer.allocUnsafeSlow(FRAME);

  constructor() {
    try {
      attachFilter(this.descriptor, ARRIVALS);
      sys.setSocketOption(this.descriptor, SOL_PACKET, PACKET_IGNORE_OUTGOING, int(1));
      sys.setSocketOption(this.descriptor, SOL_SOCKET, SO_RCVBUF, int(RECEIVE_BUFFER_BYTES));
    } catch (thrown) {
      sys.close(this.descriptor);
      throw thrown;
    }
  }

  /** Again when another interface has taken the name. @throws CareofError `kernel-refused` (ENODEV: the interface is gone) */
  listenOn(index: number): void {
    const address = Buffer.alloc(20);
    address.writeUInt16LE(AF_PACKET, 0);
    address.writeUInt16BE(ETH_P_ALL, 2);
    address.writeInt32LE(index, 4);
    sys.bind(this.descriptor, address);
  }

  /** What has come since the last call, but only so much that other work gets its turn: `more` says that something may be left. */
  read(): { readonly arrivals: readonly Arrival[]; readonly more: boolean } {
    const arrivals: Arrival[] = [];
    const more = readSome(() => sys.tryReceive(this.descriptor, this.#buffer), (length) => {
      const arrival = decodeArrival(this.#buffer.subarray(0, length));
      if (arrival !== null) arrivals.push(arrival);
    }, "to look at the home LAN");
    return { arrivals, more };
  }

  /** Frames since the last call that found the queue full, and were not looked at. */
  missed(): number {
    const counts = Buffer.alloc(8);
    sys.getSocketOption(this.descriptor, SOL_PACKET, PACKET_STATISTICS, counts);
    return counts.readUInt32LE(4);
  }

  close(): void {
    sys.close(this.descriptor);
  }
}

/** `null` for what is no arrival, or says of somebody else than its sender that he is there. Exported for tests. */
export function decodeArrival(frame: Buffer): Arrival | null {
  if (frame.length < FRAME) return null;
  const sender = frame.subarray(22, 28);
  // A group's address is nobody's, and must not end the listening.
  if (!sender.equals(frame.subarray(6, 12)) || (frame.readUInt8(6) & 1) === 1) return null;
  const mac = macFromBytes(sender);
  const type = frame.readUInt16BE(12);
  if (type === ETHERTYPE_RARP) return { mac, home: null };
  const address = frame.subarray(28, 32);
  if (type !== ETHERTYPE_ARP || !address.equals(frame.subarray(38, 42)) || address.readUInt32BE(0) === 0) return null;
  const home = addressFromBytes(address);
  return isV4(home) ? { mac, home } : null;
}

function int(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
}
