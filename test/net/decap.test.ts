import { release } from "node:os";
import t from "tap";
import { encodeConfig } from "../../net/bpf/records.js";
import { decapFlags } from "../../net/bpf/decap.js";
import { ipv4, mac } from "../../model/address.js";

/** The first kernel that takes "IPv4 is what remains" (BPF_F_ADJ_ROOM_DECAP_L3_IPV4), and the flag. */
const SINCE = [6, 3] as const;
const DECAP_L3_IPV4 = 128n;

t.test(`Linux ${release()} is told of the header that remains if it is new enough, and only then`, (t) => {
  const [major = 0, minor = 0] = release().split(".").map(Number);
  const takes = major > SINCE[0] || (major === SINCE[0] && minor >= SINCE[1]);
  const none = { get: (): never => { throw new Error("the probe uses no map"); } };
  const flags = decapFlags(none);
  t.equal(flags, takes ? DECAP_L3_IPV4 : 0n);
  t.equal(decapFlags(none), flags, "found again");
  const config = encodeConfig({ self: ipv4("10.0.1.1"), homeAgents: [], uplink: 1, innerMtu: 1480, gateway: ipv4("169.254.1.1"), decapFlags: flags, hopMac: mac("02:00:00:00:00:01"), cutsLong: true });
  t.equal(config.readBigUInt64LE(160), flags, "and handed to the programs");
  t.end();
});
