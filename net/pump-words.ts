import type { MessagePort } from "node:worker_threads";

/**
 * What the two threads of pump.ts and pump-thread.ts say to one another. A pump's counts lie in memory that both see: bytes of the stream read and written, and bytes that have come
 * (of sealed records all that they consist of, opened or not yet), in this order, as BigInt64Array.
 */
export const READ = 0;
export const WRITTEN = 1;
export const COME = 2;
export const COUNTS = 3;

/** What the thread begins with. */
export interface PumpStart {
  readonly port: MessagePort;
  /** Becomes readable when there is something to heed at the port. */
  readonly wake: number;
}

/** To the thread, which owns the descriptors from then on. */
export type PumpAsk =
  | { readonly kind: "add"; readonly id: number; readonly from: number; readonly by: PumpCarriage; readonly counts: SharedArrayBuffer }
  /** Where it goes: until then, and after it was refused there, nothing is read; that there is something to read is told once. */
  | { readonly kind: "to"; readonly id: number; readonly to: number }
  | { readonly kind: "stall"; readonly id: number; readonly stalled: boolean }
  /** Tell when so many bytes have been written. */
  | { readonly kind: "tell"; readonly id: number; readonly bytes: number }
  | { readonly kind: "remove"; readonly id: number }
  | { readonly kind: "quit" };

/** Of the thread. Of each pump `ended` or `broken` comes once at most, and behind that only `removed`. */
export type PumpWord =
  | { readonly kind: "readable"; readonly id: number }
  | { readonly kind: "reached"; readonly id: number }
  /** All that there was to read is written. */
  | { readonly kind: "ended"; readonly id: number }
  /** It cannot be read any more; all that was read is written. */
  | { readonly kind: "broken"; readonly id: number; readonly errno: number }
  /** Nothing more is taken where it goes. What was read waits for another `to`. */
  | { readonly kind: "refused"; readonly id: number; readonly errno: number }
  /** Its descriptors are closed. */
  | { readonly kind: "removed"; readonly id: number };

/** How it is carried: as it is, through a pipe; or what is read gets sealed, or was (pump-seal.ts), under a key of SEAL_KEY_BYTES that is for this pump alone. */
export type PumpCarriage = { readonly kind: "pipe"; readonly pipe: PumpPipe } | { readonly kind: "seal" | "open"; readonly key: Uint8Array };

/** The two ends of what carries a pump's bytes, of PIPE_BYTES. */
export interface PumpPipe {
  readonly reading: number;
  readonly writing: number;
}

/** As much as an unprivileged user's pipe may hold by default. */
export const PIPE_BYTES = 1 << 20;
