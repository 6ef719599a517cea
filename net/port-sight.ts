import { Buffer } from "node:buffer";
import { addressBytes, addressFromBytes, macBytes, type IpAddress, type Mac } from "../model/address.js";
import { readSome } from "./bounded-reads.js";
import { attachFilter, type Instruction } from "./packet-filter.js";
import * as sys from "./syscall.js";

/** A frame of the VM's that says that it is behind this port: RFC 903 (what a hypervisor sends for it), RFC 5227 §3 (what it sends itself), or anything else of IPv4. */
export type Seen = "rarp" | "gratuitous-arp" | "packet";

const AF_PACKET = 17;
const SOCK_RAW_CLOEXEC_NONBLOCK = 3 | 0o2000000 | 0o4000;
const ETH_P_ALL = 3;
const SOL_SOCKET = 1;
const SO_RCVBUF = 8;
const ETHERTYPE = { ipv4: 0x0800, arp: 0x0806, rarp: 0x8035 } as const;
/** As much of a frame as tells what it is. */
const SNAP = 64;
/** Classic BPF (linux/filter.h). */
const LD_W_ABS = 0x20, LD_H_ABS = 0x28, JEQ = 0x15, RET = 0x06;

/** Looks at one port for frames with the VM's MAC and, where they have one, its address. The kernel hands over nothing else, and nothing at all while not armed. */
export class PortSight {
  /** Readable when something was seen. */
  readonly descriptor = sys.socket(AF_PACKET, SOCK_RAW_CLOEXEC_NONBLOCK, 0);
  readonly #buffer = Buffer.allocUnsafeSlow(SNAP);
  readonly #homes: readonly IpAddress[];
  readonly #looking: readonly Instruction[];
  #armed = false;

  /** @throws CareofError `kernel-refused` (ENODEV: the port is gone) */
  constructor(port: { readonly index: number; readonly mac: Mac; readonly homeAddresses: readonly IpAddress[] }) {
    this.#homes = port.homeAddresses;
    this.#looking = filter(port.mac, port.homeAddresses);
    try {
      attachFilter(this.descriptor, BLIND);
      const size = Buffer.alloc(4);
      size.writeInt32LE(16 * 1024);
      sys.setSocketOption(this.descriptor, SOL_SOCKET, SO_RCVBUF, size);
      const address = Buffer.alloc(20);
      address.writeUInt16LE(AF_PACKET, 0);
      address.writeUInt16BE(ETH_P_ALL, 2);
      address.writeInt32LE(port.index, 4);
      sys.bind(this.descriptor, address);
    } catch (thrown) {
      sys.close(this.descriptor);
      throw thrown;
    }
  }

  set armed(wanted: boolean) {
    if (wanted === this.#armed) return;
    this.#armed = wanted;
    attachFilter(this.descriptor, wanted ? this.#looking : BLIND);
    if (wanted) return;
    this.#drain(() => undefined);
  }

  get armed(): boolean {
    return this.#armed;
  }

  /** The strongest of what was seen since the last call, or of its beginning when it was much. */
  read(): Seen | null {
    let best: Seen | null = null;
    this.#drain((frame) => {
      const seen = classify(frame, this.#homes);
      if (seen !== null && (best === null || best === "packet")) best = seen;
    });
    return this.#armed ? best : null;
  }

  close(): void {
    sys.close(this.descriptor);
  }

  /** Only so much that other work gets its turn: of many frames the first tell as much as all. */
  #drain(each: (frame: Buffer) => void): void {
    readSome(() => sys.tryReceive(this.descriptor, this.#buffer), (length) => { each(this.#buffer.subarray(0, length)); }, "to look at a port");
  }
}

const BLIND: readonly Instruction[] = [{ code: RET, whenTrue: 0, whenFalse: 0, value: 0 }];

/** The VM's MAC as source, and RARP, or ARP, or IPv4 from one of its addresses. Exported for tests. */
export function filter(mac: Mac, homes: readonly IpAddress[]): readonly Instruction[] {
  const source = Buffer.from(macBytes(mac));
  const load = (code: number, at: number): Instruction => ({ code, whenTrue: 0, whenFalse: 0, value: at });
  const addresses = homes.map((home) => Buffer.from(addressBytes(home))).filter((bytes) => bytes.length === 4).map((bytes) => bytes.readUInt32BE(0));
  // Jumps count from the next instruction; the last two are "take" and "leave".
  const length = 11 + addresses.length;
  const jump = (index: number, value: number, yes: "next" | "take", no: "next" | "leave"): Instruction =>
    ({ code: JEQ, value, whenTrue: yes === "take" ? length - 2 - index - 1 : 0, whenFalse: no === "leave" ? length - 1 - index - 1 : 0 });
  return [
    load(LD_W_ABS, 6), jump(1, source.readUInt32BE(0), "next", "leave"),
    load(LD_H_ABS, 10), jump(3, source.readUInt16BE(4), "next", "leave"),
    load(LD_H_ABS, 12), jump(5, ETHERTYPE.rarp, "take", "next"), jump(6, ETHERTYPE.arp, "take", "next"), jump(7, ETHERTYPE.ipv4, "next", "leave"),
    load(LD_W_ABS, 26), ...addresses.map((value, index) => jump(9 + index, value, "take", index === addresses.length - 1 ? "leave" : "next")),
    { code: RET, whenTrue: 0, whenFalse: 0, value: SNAP }, { code: RET, whenTrue: 0, whenFalse: 0, value: 0 },
  ];
}

/** What a frame with the VM's MAC says; `null`: an ARP message of another address, such as a probe (RFC 5227 §2.1). Exported for tests. */
export function classify(frame: Buffer, homes: readonly IpAddress[]): Seen | null {
  if (frame.length < 14) return null;
  const type = frame.readUInt16BE(12);
  if (type === ETHERTYPE.rarp) return "rarp";
  if (type === ETHERTYPE.ipv4) return "packet";
  if (type !== ETHERTYPE.arp || frame.length < 42) return null;
  const sender = addressFromBytes(frame.subarray(28, 32));
  if (!homes.includes(sender)) return null;
  return frame.subarray(28, 32).equals(frame.subarray(38, 42)) ? "gratuitous-arp" : "packet";
}
