import type { Epoch } from "./ids.js";

/** The token of the marker behind a migration's lead, from the epoch reserved for the target: 1 to 2^32 − 1. Both sides know it, so that the source need not wait to be told. */
export function leadToken(epoch: Epoch): number {
  return (epoch % 0xffff_ffff) + 1;
}

/**
 * The token of the marker behind the last packet to the host that a VM has left by itself (`driver: external`), from its owner's new epoch: 1 to 2^32 − 1. The new host knows by it which
 * move the marker belongs to; after 2^32 moves of one VM it does not, once, and goes by the home agent's word.
 */
export function drainToken(epoch: Epoch): number {
  return leadToken(epoch);
}

/** The token of the up marker behind the last packet that the guest has sent at the source: 2^31 to 2^32 − 1, where the target's own up markers, which are counted from 1, do not get. */
export function departureToken(epoch: Epoch): number {
  return 0x8000_0000 + (epoch % 0x8000_0000);
}
