import { getSystemErrorName } from "node:util";
import { CareofError } from "../model/errors.js";

/** What the kernel answered to one call. `errno` is positive: 17 is EEXIST. */
export class KernelError extends Error {
  readonly errno: number;
  readonly code: string;

  constructor(errno: number, call: string, detail = "") {
    const code = errnoName(errno);
    super(`${call}: ${code}${detail === "" ? "" : ` (${detail})`}`);
    this.name = "KernelError";
    this.errno = errno;
    this.code = code;
  }
}

/** Numbers that this folder decides on; all others are only reported. */
export const EPERM = 1;
export const ENOENT = 2;
export const ESRCH = 3;
export const EINTR = 4;
export const EAGAIN = 11;
export const ENETDOWN = 100;
export const ENOMEM = 12;
export const EEXIST = 17;
export const ENODEV = 19;
export const EINVAL = 22;
export const EPIPE = 32;
export const EBADMSG = 74;
export const EOVERFLOW = 75;
export const EOPNOTSUPP = 95;
export const EADDRNOTAVAIL = 99;
export const ENOBUFS = 105;

/** Answers that the same call may not get again a moment later: EINTR, EAGAIN, ENOMEM, EBUSY, ENOBUFS. */
const RETRYABLE: ReadonlySet<number> = new Set([EINTR, EAGAIN, ENOMEM, 16, ENOBUFS]);

export function errnoName(errno: number): string {
  return errno > 0 && Number.isInteger(errno) ? getSystemErrorName(-errno) : `errno ${String(errno)}`;
}

/** `kernel-refused`, with the KernelError as cause. `what` completes "the kernel refused …". */
export function refused(what: string, errno: number, call: string, detail = ""): CareofError {
  const cause = new KernelError(errno, call, detail);
  return new CareofError("kernel-refused", `the kernel refused ${what}: ${cause.message}`, { retryable: RETRYABLE.has(errno), cause });
}

/** The errno behind a `kernel-refused`, 0 for any other error. */
export function errnoOf(thrown: unknown): number {
  return thrown instanceof CareofError && thrown.cause instanceof KernelError ? thrown.cause.errno : 0;
}
