import { Buffer } from "node:buffer";
import { endianness } from "node:os";
import t from "tap";
import { wholePackets } from "../../net/left-behind.js";

const ETHERNET = 14;
const IP = 20;
const NEEDS_CHECKSUM = 1;

/** struct virtio_net_hdr of 10 bytes, padded to `length`. */
function header(length: number, of: { readonly flags?: number; readonly gso?: number; readonly segment?: number; readonly start?: number; readonly offset?: number }): Buffer {
  const bytes = Buffer.alloc(length);
  const half = (value: number, at: number): void => { if (endianness() === "LE") bytes.writeUInt16LE(value, at); else bytes.writeUInt16BE(value, at); };
  bytes.writeUInt8(of.flags ?? 0, 0);
  bytes.writeUInt8(of.gso ?? 0, 1);
  half(of.segment ?? 0, 4);
  half(of.start ?? 0, 6);
  half(of.offset ?? 0, 8);
  return bytes;
}

function ethernet(type = 0x0800): Buffer {
  const bytes = Buffer.alloc(ETHERNET);
  bytes.writeUInt16BE(type, 12);
  return bytes;
}

/** Ones' complement sum, written apart from the one that is tested: with carries taken at once. */
function folded(bytes: Buffer, from = 0): number {
  let sum = from;
  for (let at = 0; at < bytes.length; at += 2) {
    sum += ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}

function pseudo(packet: Buffer): number {
  return folded(packet.subarray(12, 20), (packet[9] ?? 0) + packet.length - IP);
}

function ip(protocol: number, payload: Buffer, id = 0x1234): Buffer {
  const bytes = Buffer.alloc(IP);
  bytes.writeUInt8(0x45, 0);
  bytes.writeUInt16BE(IP + payload.length, 2);
  bytes.writeUInt16BE(id, 4);
  bytes.writeUInt16BE(0x4000, 6);
  bytes.writeUInt8(63, 8);
  bytes.writeUInt8(protocol, 9);
  bytes.set([192, 0, 2, 5, 198, 51, 100, 7], 12);
  bytes.writeUInt16BE(~folded(bytes) & 0xffff, 10);
  return Buffer.concat([bytes, payload]);
}

function udp(data: Buffer): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt16BE(7001, 0);
  bytes.writeUInt16BE(7002, 2);
  bytes.writeUInt16BE(8 + data.length, 4);
  return Buffer.concat([bytes, data]);
}

void t.test("a packet that is whole stays as it is, whatever length the header has", (t) => {
  const packet = ip(17, udp(Buffer.from("whole")));
  for (const length of [10, 12]) t.same(wholePackets(Buffer.concat([header(length, {}), ethernet(), packet]), length), [packet]);
  t.same(wholePackets(Buffer.concat([ethernet(), packet]), 0), [packet], "a TAP without offloads");
  t.end();
});

void t.test("a checksum that was left to the card is made", (t) => {
  for (const data of ["even", "odd", ""]) {
    const packet = ip(17, udp(Buffer.from(data)));
    // What the stack leaves: the pseudo header's sum.
    packet.writeUInt16BE(pseudo(packet), IP + 6);
    const [made] = wholePackets(Buffer.concat([header(12, { flags: NEEDS_CHECKSUM, start: ETHERNET + IP, offset: 6 }), ethernet(), packet]), 12) ?? [];
    if (made === undefined) throw new Error("no packet");
    t.equal(folded(made.subarray(IP), pseudo(made)), 0xffff, "RFC 1071: with its checksum the sum is all ones");
    t.same(made.subarray(IP + 8), Buffer.from(data));
  }
  t.end();
});

void t.test("a large TCP segment is cut as the card would have", (t) => {
  const data = Buffer.from(Array.from({ length: 2500 }, (_, index) => index % 251));
  const tcp = Buffer.alloc(32);
  tcp.writeUInt32BE(0xffff_fff0, 4);
  tcp.writeUInt8(0x80, 12);
  tcp.writeUInt8(0x80 | 0x10 | 0x08 | 0x01, 13);
  const packet = ip(6, Buffer.concat([tcp, data]), 0xffff);
  const made = wholePackets(Buffer.concat([header(12, { flags: NEEDS_CHECKSUM, gso: 0x81, segment: 1000, start: ETHERNET + IP, offset: 16 }), ethernet(), packet]), 12) ?? [];
  t.same(made.map((one) => one.length - IP - 32), [1000, 1000, 500]);
  t.same(Buffer.concat(made.map((one) => one.subarray(IP + 32))), data);
  t.same(made.map((one) => one.readUInt32BE(IP + 4)), [0xffff_fff0, 0xffff_fff0 + 1000 - 2 ** 32, 0xffff_fff0 + 2000 - 2 ** 32]);
  t.same(made.map((one) => one.readUInt16BE(4)), [0xffff, 0, 1]);
  t.same(made.map((one) => one[IP + 13]), [0x90, 0x10, 0x19], "CWR with the first, PSH and FIN with the last");
  for (const one of made) {
    t.equal(one.readUInt16BE(2), one.length);
    t.equal(folded(one.subarray(0, IP)), 0xffff);
    t.equal(folded(one.subarray(IP), pseudo(one)), 0xffff);
  }
  t.end();
});

void t.test("datagrams that were handed over as one are cut apart", (t) => {
  const data = Buffer.from(Array.from({ length: 2100 }, (_, index) => index % 241));
  const packet = ip(17, udp(data));
  const made = wholePackets(Buffer.concat([header(12, { flags: NEEDS_CHECKSUM, gso: 5, segment: 1000, start: ETHERNET + IP, offset: 6 }), ethernet(), packet]), 12) ?? [];
  t.same(made.map((one) => one.length - IP - 8), [1000, 1000, 100]);
  t.same(Buffer.concat(made.map((one) => one.subarray(IP + 8))), data);
  for (const one of made) {
    t.same([one.readUInt16BE(2), one.readUInt16BE(IP + 4)], [one.length, one.length - IP]);
    t.equal(folded(one.subarray(0, IP)), 0xffff);
    t.equal(folded(one.subarray(IP), pseudo(one)), 0xffff);
  }
  t.end();
});

void t.test("frames of another kind are nobody's, and what cannot be made whole says so", (t) => {
  t.same(wholePackets(Buffer.concat([header(12, {}), ethernet(0x0806), Buffer.alloc(28)]), 12), [], "ARP");
  t.same(wholePackets(Buffer.concat([header(12, {}), ethernet()]), 12), [], "cut off");
  const packet = ip(17, udp(Buffer.alloc(3000)));
  t.equal(wholePackets(Buffer.concat([header(12, { gso: 3, segment: 1000 }), ethernet(), packet]), 12), null, "UDP fragments");
  t.equal(wholePackets(Buffer.concat([header(12, { gso: 1, segment: 1000 }), ethernet(), packet]), 12), null, "TCP, it says, and is UDP");
  t.equal(wholePackets(Buffer.concat([header(12, { gso: 5, segment: 1000 }), ethernet(), ip(6, Buffer.alloc(40))]), 12), null, "UDP, it says, and is TCP");
  t.equal(wholePackets(Buffer.concat([header(12, { gso: 1 }), ethernet(), ip(6, Buffer.alloc(40))]), 12), null, "no size");
  t.equal(wholePackets(Buffer.concat([header(12, { flags: NEEDS_CHECKSUM, start: 2000, offset: 6 }), ethernet(), packet.subarray(0, 100)]), 12), null, "a checksum beyond the end");
  t.end();
});
