import { CareofError } from "../../model/errors.js";
import { refused } from "../errno.js";
import * as sys from "../syscall.js";
import { decodeAttributes, readText } from "./attributes.js";

/** A message as it goes to the kernel: `body` is the family's header and its attributes; `what` completes "the kernel refused …". */
export interface Request {
  readonly type: number;
  /** Flags besides REQUEST and ACK. */
  readonly flags: number;
  readonly body: Uint8Array;
  readonly what: string;
}

/** A message of a dump. */
export interface Reply {
  readonly type: number;
  readonly body: Buffer;
}

export const NLM_F_REPLACE = 0x100;
export const NLM_F_EXCL = 0x200;
export const NLM_F_CREATE = 0x400;

const AF_NETLINK = 16;
const SOCK_RAW_CLOEXEC = 3 | 0o2000000;
const NETLINK_ROUTE = 0;
const SOL_SOCKET = 1;
const SO_RCVTIMEO = 20;
const SO_RCVBUFFORCE = 33;
const SOL_NETLINK = 270;
const NETLINK_EXT_ACK = 11;
const MSG_TRUNC = 0x20;

const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLM_F_DUMP_INTERRUPTED = 0x10;
const NLM_F_CAPPED = 0x100;
const NLM_F_ACK_TLVS = 0x200;
const NLM_F_DUMP = 0x300;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const HEADER = 16;

/** The kernel answers at once; a silence of this many seconds is a fault. */
const ANSWER_SECONDS = 5n;
const RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024;
/** Larger than any datagram that the kernel builds for a dump. */
const DATAGRAM_BYTES = 256 * 1024;
/** Requests per send: their refusals, which carry the request, fit the receive buffer. */
const BATCH = 512;
/** A dump that the kernel's tables changed under is begun anew this often. */
const DUMP_TRIES = 10;

/**
 * A small rtnetlink client, bound to the network namespace in which it was made. Synchronous: rtnetlink answers before sendto(2) returns. Every
 * request carries its own sequence number, and only the answer with that number counts.
 * @throws CareofError `kernel-refused` (cause has errno), `malformed-netlink`
 */
export class Netlink {
  readonly #fd: number;
  readonly #buffer = Buffer.allocUnsafeSlow(DATAGRAM_BYTES);
  #sequence = 0;

  constructor() {
    this.#fd = sys.socket(AF_NETLINK, SOCK_RAW_CLOEXEC, NETLINK_ROUTE);
    const time = Buffer.alloc(16);
    time.writeBigInt64LE(ANSWER_SECONDS);
    sys.setSocketOption(this.#fd, SOL_SOCKET, SO_RCVTIMEO, time);
    sys.setSocketOption(this.#fd, SOL_SOCKET, SO_RCVBUFFORCE, int(RECEIVE_BUFFER_BYTES));
    sys.setSocketOption(this.#fd, SOL_NETLINK, NETLINK_EXT_ACK, int(1));
    const address = Buffer.alloc(12);
    address.writeUInt16LE(AF_NETLINK);
    sys.bind(this.#fd, address);
  }

  /** Returns when the kernel has done it. */
  request(request: Request): void {
    this.requestAll([request]);
  }

  /** All are sent and answered before the first refusal is thrown. */
  requestAll(requests: readonly Request[]): void {
    let failure: CareofError | null = null;
    for (let start = 0; start < requests.length; start += BATCH) {
      const refusal = this.#batch(requests.slice(start, start + BATCH));
      failure ??= refusal;
    }
    if (failure !== null) throw failure;
  }

  /**
   * As `request`, on one of Node's pool threads: for what the kernel takes its time over. Nothing else may be asked of this client until it is over, and what anybody asks of rtnetlink may have to
   * wait as long.
   */
  async requestInBackground(request: Request): Promise<void> {
    const message = this.#message(request, NLM_F_ACK);
    const sequence = this.#sequence;
    await sys.sendInBackground(this.#fd, message);
    const failure = this.#awaitVerdict(request, sequence);
    if (failure !== null) throw failure;
  }

  /** The one object that the request names. */
  get(request: Request): Reply {
    sys.sendTo(this.#fd, this.#message(request, 0), null);
    const sequence = this.#sequence;
    for (;;) {
      for (const reply of this.#receive()) {
        if (reply.sequence !== sequence) continue;
        const failure = reply.type === NLMSG_ERROR ? verdict(request, reply) : null;
        if (failure !== null) throw failure;
        return { type: reply.type, body: reply.body };
      }
    }
  }

  /** Every object that the kernel lists for the request. */
  dump(request: Request): Reply[] {
    for (let attempt = 0; attempt < DUMP_TRIES; attempt++) {
      const found = this.#dumpOnce(request);
      if (found !== null) return found;
    }
    throw new CareofError("kernel-refused", `${request.what} kept changing while being listed`, { retryable: true });
  }

  close(): void {
    sys.close(this.#fd);
  }

  /** The kernel answers in order; a refusal comes unasked, so that only the last one is asked to be acknowledged. */
  #batch(requests: readonly Request[]): CareofError | null {
    const first = this.#sequence + 1;
    const messages = requests.map((request, index) => this.#message(request, index === requests.length - 1 ? NLM_F_ACK : 0));
    const last = this.#sequence;
    sys.sendTo(this.#fd, Buffer.concat(messages), null);
    let failure: CareofError | null = null;
    for (;;) {
      for (const reply of this.#receive()) {
        const request = requests[(reply.sequence - first) >>> 0];
        if (request === undefined || reply.type !== NLMSG_ERROR) continue;
        failure ??= verdict(request, reply);
        if (reply.sequence === last) return failure;
      }
    }
  }

  #awaitVerdict(request: Request, sequence: number): CareofError | null {
    for (;;) {
      const answer = this.#receive().find((reply) => reply.sequence === sequence && reply.type === NLMSG_ERROR);
      if (answer !== undefined) return verdict(request, answer);
    }
  }

  /** `null` when the table changed meanwhile and the list may be incomplete. */
  #dumpOnce(request: Request): Reply[] | null {
    const found: Reply[] = [];
    let interrupted = false;
    sys.sendTo(this.#fd, this.#message(request, NLM_F_DUMP), null);
    const sequence = this.#sequence;
    for (;;) {
      for (const reply of this.#receive()) {
        if (reply.sequence !== sequence) continue;
        if ((reply.flags & NLM_F_DUMP_INTERRUPTED) !== 0) interrupted = true;
        if (reply.type === NLMSG_DONE || reply.type === NLMSG_ERROR) {
          const failure = verdict(request, reply);
          if (failure !== null) throw failure;
          return interrupted ? null : found;
        }
        found.push({ type: reply.type, body: reply.body });
      }
    }
  }

  #message(request: Request, flags: number): Buffer {
    this.#sequence = (this.#sequence + 1) >>> 0;
    const length = HEADER + request.body.length;
    const bytes = Buffer.allocUnsafe((length + 3) & ~3).fill(0, length);
    bytes.writeUInt32LE(length, 0);
    bytes.writeUInt16LE(request.type, 4);
    bytes.writeUInt16LE(NLM_F_REQUEST | flags | request.flags, 6);
    bytes.writeUInt32LE(this.#sequence, 8);
    bytes.writeUInt32LE(0, 12);
    bytes.set(request.body, HEADER);
    return bytes;
  }

  #receive(): Answer[] {
    const length = sys.receive(this.#fd, this.#buffer, MSG_TRUNC);
    if (length > this.#buffer.length) throw new CareofError("malformed-netlink", `the kernel sent ${String(length)} bytes at once`);
    return decodeMessages(Buffer.from(this.#buffer.subarray(0, length)));
  }
}

/** A message of the kernel's, header read. */
export interface Answer {
  readonly type: number;
  readonly flags: number;
  readonly sequence: number;
  readonly body: Buffer;
}

/** @throws CareofError `malformed-netlink` when a length leads out of the datagram */
export function decodeMessages(bytes: Buffer): Answer[] {
  const found: Answer[] = [];
  for (let at = 0; at + HEADER <= bytes.length;) {
    const length = bytes.readUInt32LE(at);
    if (length < HEADER || at + length > bytes.length) {
      throw new CareofError("malformed-netlink", `a message claims ${String(length)} of ${String(bytes.length - at)} bytes`);
    }
    found.push({
      type: bytes.readUInt16LE(at + 4),
      flags: bytes.readUInt16LE(at + 6),
      sequence: bytes.readUInt32LE(at + 8),
      body: bytes.subarray(at + HEADER, at + length),
    });
    at += (length + 3) & ~3;
  }
  return found;
}

/** Reads NLMSG_ERROR and NLMSG_DONE: both begin with the negative errno, 0 for success, and may carry the kernel's own words. */
function verdict(request: Request, answer: Answer): CareofError | null {
  const errno = answer.body.length >= 4 ? -answer.body.readInt32LE(0) : 0;
  if (errno === 0) return null;
  return refused(request.what, errno, "rtnetlink", explanation(answer));
}

function explanation(answer: Answer): string {
  const message = 1;
  if ((answer.flags & NLM_F_ACK_TLVS) === 0 || answer.type !== NLMSG_ERROR || answer.body.length < 4 + HEADER) return "";
  const echoed = (answer.flags & NLM_F_CAPPED) !== 0 ? HEADER : (answer.body.readUInt32LE(4) + 3) & ~3;
  return readText(decodeAttributes(answer.body.subarray(4 + echoed)), message) ?? "";
}

function int(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
}
