import { createCipheriv, createDecipheriv } from "node:crypto";
import { EBADMSG, EOVERFLOW } from "./errno.js";
import type { Carrier } from "./pump-carrier.js";
import { tryRead, trySend, tryWrite } from "./syscall.js";

/*
 * A stream in sealed records, each `length (4 bytes, of what follows) || ciphertext || tag`: AES-128-GCM (NIST SP 800-38D, RFC 5116 §5.1), the record's number as nonce (RFC 5116 §3.2 with a fixed field of
 * zeros), its length authenticated too. A key is for one connection and one direction, so that no number comes twice under it. Records keep their order, and none can be left out, doubled or changed without the
 * next one failing; that the stream was not cut off behind a record must be known otherwise (how many bytes there are).
 */
const ALGORITHM = "aes-128-gcm";
export const SEAL_KEY_BYTES = 16;
const LENGTH_BYTES = 4;
const TAG_BYTES = 16;
const NONCE_BYTES = 12;
/** Of the stream in one record: as much as a unix socket holds by default, and little enough that it stays in the processor's cache. */
const RECORD_BYTES = 256 * 1024;

/** SP 800-38D §8.3: no more than 2^32 invocations under one key; with full records that is a petabyte. */
const RECORDS = 2 ** 32;

class Nonce {
  readonly #bytes = Buffer.alloc(NONCE_BYTES);
  #number = 0;

  /** Nothing more may be sealed under its key. */
  get usedUp(): boolean {
    return this.#number >= RECORDS;
  }

  /** What was returned before must not be used any more. */
  next(): Buffer {
    this.#bytes.writeBigUInt64BE(BigInt(this.#number++), NONCE_BYTES - 8);
    return this.#bytes;
  }
}

/** What is still to be written, in order. */
class Rest {
  #parts: Buffer[] = [];
  #bytes = 0;

  get bytes(): number {
    return this.#bytes;
  }

  add(part: Buffer): void {
    this.#parts.push(part);
    this.#bytes += part.length;
  }

  /** By one call of `write`, which is told whether more is there to be written. */
  give(write: (part: Buffer, more: boolean) => number): number {
    const [first] = this.#parts;
    if (first === undefined) return 0;
    const written = write(first, this.#parts.length > 1);
    if (written > 0) {
      this.#bytes -= written;
      if (written === first.length) this.#parts.shift();
      else this.#parts[0] = first.subarray(written);
    }
    return written;
  }
}

/** Reads a stream, and writes it sealed. */
export class Sealing implements Carrier {
  readonly #key: Uint8Array;
  readonly #nonce = new Nonce();
  readonly #plain = Buffer.allocUnsafeSlow(RECORD_BYTES);
  readonly #rest = new Rest();
  read = 0;
  /** Without the record that is being written. */
  #before = 0;

  constructor(key: Uint8Array) {
    this.#key = key;
  }

  /** A record counts when it is written whole. */
  get written(): number {
    return this.empty ? this.read : this.#before;
  }

  get empty(): boolean {
    return this.#rest.bytes === 0;
  }

  get full(): boolean {
    return !this.empty;
  }

  take(from: number): number {
    if (this.#nonce.usedUp) return -EOVERFLOW;
    const bytes = tryRead(from, this.#plain);
    if (bytes <= 0) return bytes;
    const length = Buffer.alloc(LENGTH_BYTES);
    length.writeUInt32BE(bytes + TAG_BYTES);
    const cipher = createCipheriv(ALGORITHM, this.#key, this.#nonce.next(), { authTagLength: TAG_BYTES });
    cipher.setAAD(length);
    const sealed = cipher.update(this.#plain.subarray(0, bytes));
    cipher.final();
    for (const part of [length, sealed, cipher.getAuthTag()]) this.#rest.add(part);
    this.#before = this.read;
    this.read += bytes;
    return bytes;
  }

  give(to: number): number {
    return this.#rest.give((part, more) => trySend(to, part, more));
  }

  close(): void {
    // Nothing but memory.
  }
}

/** Reads sealed records, and writes what was sealed in them: of each all or nothing. */
export class Opening implements Carrier {
  readonly #key: Uint8Array;
  readonly #nonce = new Nonce();
  readonly #raw = Buffer.allocUnsafeSlow(2 * (LENGTH_BYTES + RECORD_BYTES + TAG_BYTES));
  #rawBytes = 0;
  readonly #rest = new Rest();
  read = 0;

  constructor(key: Uint8Array) {
    this.#key = key;
  }

  get written(): number {
    return this.read - this.#rest.bytes;
  }

  get empty(): boolean {
    return this.#rest.bytes === 0;
  }

  get full(): boolean {
    return !this.empty;
  }

  take(from: number): number {
    const bytes = tryRead(from, this.#raw.subarray(this.#rawBytes));
    if (bytes === 0 && this.#rawBytes > 0) return -EBADMSG;
    if (bytes <= 0) return bytes;
    this.#rawBytes += bytes;
    return this.#open() ? bytes : -EBADMSG;
  }

  give(to: number): number {
    return this.#rest.give((part) => tryWrite(to, part));
  }

  close(): void {
    // Nothing but memory.
  }

  /** Every record that is there whole. False: it is not what was sealed. */
  #open(): boolean {
    let at = 0;
    while (this.#rawBytes - at >= LENGTH_BYTES) {
      const length = this.#raw.readUInt32BE(at);
      if (length <= TAG_BYTES || length > RECORD_BYTES + TAG_BYTES) return false;
      const end = at + LENGTH_BYTES + length;
      if (this.#rawBytes < end) break;
      const plain = this.#unseal(this.#raw.subarray(at, at + LENGTH_BYTES), this.#raw.subarray(at + LENGTH_BYTES, end - TAG_BYTES), this.#raw.subarray(end - TAG_BYTES, end));
      if (plain === null) return false;
      this.#rest.add(plain);
      this.read += plain.length;
      at = end;
    }
    if (at > 0) this.#raw.copyWithin(0, at, this.#rawBytes);
    this.#rawBytes -= at;
    return true;
  }

  #unseal(length: Buffer, sealed: Buffer, tag: Buffer): Buffer | null {
    const decipher = createDecipheriv(ALGORITHM, this.#key, this.#nonce.next(), { authTagLength: TAG_BYTES });
    decipher.setAAD(length);
    decipher.setAuthTag(tag);
    const plain = decipher.update(sealed);
    try {
      decipher.final();
      return plain;
    } catch {
      // All that it says is that this was not sealed by whoever has the key, or not as the next one.
      return null;
    }
  }
}
