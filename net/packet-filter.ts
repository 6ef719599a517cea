import { Buffer } from "node:buffer";
import * as sys from "./syscall.js";

/** One instruction of classic BPF (linux/filter.h). Jumps count from the next instruction. */
export interface Instruction {
  readonly code: number;
  readonly whenTrue: number;
  readonly whenFalse: number;
  readonly value: number;
}

const SOL_SOCKET = 1;
const SO_ATTACH_FILTER = 26;

/** The socket gets only what `program` takes, from now on. @throws CareofError `kernel-refused` */
export function attachFilter(descriptor: number, program: readonly Instruction[]): void {
  const code = Buffer.alloc(program.length * 8);
  program.forEach(({ code: operation, whenTrue, whenFalse, value }, index) => {
    code.writeUInt16LE(operation, index * 8);
    code.writeUInt8(whenTrue, index * 8 + 2);
    code.writeUInt8(whenFalse, index * 8 + 3);
    code.writeUInt32LE(value >>> 0, index * 8 + 4);
  });
  const header = Buffer.alloc(16);
  header.writeUInt16LE(program.length, 0);
  header.writeBigUInt64LE(sys.addressOf(code), 8);
  sys.setSocketOption(descriptor, SOL_SOCKET, SO_ATTACH_FILTER, header);
}
