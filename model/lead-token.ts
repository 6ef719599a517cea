import type { Epoch } from "./ids.js";

/** The token of the marker behind a migration's lead, from the epoch reserved for the target: 1 to 2^32 − 1. Both sides know it, so that the source need not wait to be told. */
export function leadToken(epoch: Epoch): number {
  return (epoch % 0xffff_ffff) + 1;
}
