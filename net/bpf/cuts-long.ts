import { release } from "node:os";

/** By branch, the patch level that certainly has it; 6.7 and later are right from the beginning. */
const SINCE: ReadonlyMap<string, number> = new Map([["5.10", 210], ["5.15", 150], ["6.1", 75], ["6.6", 15]]);

/**
 * Whether this kernel cuts a packet into its segments when the packet as a whole is longer than the interface's gso_max_size (`gso_features_check`, Linux 6.7 and stable kernels since January 2024). An older one hands it to the
 * driver as it is. Distributions that number otherwise are taken for older ones: there such packets are dropped and counted (`too-big`), and TCP sends them again in smaller pieces.
 */
export function cutsLong(version: string = release()): boolean {
  const found = /^([0-9]+)\.([0-9]+)(?:\.([0-9]+))?/.exec(version);
  if (found === null) return false;
  const [major, minor, patch] = [Number(found[1]), Number(found[2]), Number(found[3] ?? 0)];
  return major > 6 || (major === 6 && minor >= 7) || patch >= (SINCE.get(`${String(major)}.${String(minor)}`) ?? Infinity);
}
