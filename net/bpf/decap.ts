import { testRun, withProgram, type PinnedMaps } from "./loader.js";

const DECAP_L3_IPV4 = 1n << 7n;

/** Ethernet, outer and inner IPv4 header, no payload. */
function probeFrame(): Buffer {
  const ipHeader = (length: number, protocol: number): Buffer => {
    const bytes = Buffer.alloc(20);
    bytes.writeUInt8(0x45, 0);
    bytes.writeUInt16BE(length, 2);
    bytes.writeUInt8(64, 8);
    bytes.writeUInt8(protocol, 9);
    return bytes;
  };
  const ethernet = Buffer.alloc(14);
  ethernet.writeUInt16BE(0x0800, 12);
  return Buffer.concat([ethernet, ipHeader(60, 4), ipHeader(40, 17), Buffer.alloc(20)]);
}

/**
 * What to tell the kernel when the outer header is taken off: Linux 6.1 refuses the flag that names the inner protocol when the program runs (it loads,
 * and then drops every packet), newer ones want it.
 */
export function decapFlags(maps: Pick<PinnedMaps, "get">): bigint {
  return withProgram("probe_decap", maps, (program) => testRun(program, probeFrame())) === 0 ? DECAP_L3_IPV4 : 0n;
}
