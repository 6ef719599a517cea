import { EEXIST, ENOENT, errnoOf } from "../errno.js";
import { decodeAttributes, encodeAttributes, readText, readU32, text, u32, u8 } from "./attributes.js";
import { NLM_F_CREATE, NLM_F_EXCL, type Netlink } from "./client.js";

/** "What comes in by `device` looks up `table`." */
export interface Rule {
  readonly device: string;
  readonly table: number;
  /** Smaller is asked first; the main table has 32766. */
  readonly priority: number;
  /** As of routes. */
  readonly protocol: number;
}

const RTM_NEWRULE = 32;
const RTM_DELRULE = 33;
const RTM_GETRULE = 34;
const AF_INET = 2;
const FRA_IIFNAME = 3;
const FRA_PRIORITY = 6;
const FRA_TABLE = 15;
const FRA_PROTOCOL = 21;
const FR_ACT_TO_TABLE = 1;
const HEADER = 12;

function body(rule: Rule): Buffer {
  const header = Buffer.alloc(HEADER);
  header.writeUInt8(AF_INET, 0);
  header.writeUInt8(FR_ACT_TO_TABLE, 7);
  const attributes = [text(FRA_IIFNAME, rule.device), u32(FRA_PRIORITY, rule.priority), u32(FRA_TABLE, rule.table), u8(FRA_PROTOCOL, rule.protocol)];
  return Buffer.concat([header, encodeAttributes(attributes)]);
}

/** Idempotent. */
export function putRule(netlink: Netlink, rule: Rule): void {
  try {
    netlink.request({ type: RTM_NEWRULE, flags: NLM_F_CREATE | NLM_F_EXCL, body: body(rule), what: `the policy rule of ${rule.device}` });
  } catch (thrown) {
    if (errnoOf(thrown) !== EEXIST) throw thrown;
  }
}

/** Idempotent. */
export function deleteRule(netlink: Netlink, rule: Rule): void {
  try {
    netlink.request({ type: RTM_DELRULE, flags: 0, body: body(rule), what: `to remove the policy rule of ${rule.device}` });
  } catch (thrown) {
    if (errnoOf(thrown) !== ENOENT) throw thrown;
  }
}

/** The rules by incoming device that lead to `table`. */
export function listRules(netlink: Netlink, table: number): Rule[] {
  const header = Buffer.alloc(HEADER);
  header.writeUInt8(AF_INET, 0);
  return netlink.dump({ type: RTM_GETRULE, flags: 0, body: header, what: "the list of policy rules" }).flatMap((reply) => {
    if (reply.type !== RTM_NEWRULE || reply.body.length < HEADER) return [];
    const attributes = decodeAttributes(reply.body.subarray(HEADER));
    const device = readText(attributes, FRA_IIFNAME);
    if (device === null || (readU32(attributes, FRA_TABLE) ?? reply.body.readUInt8(4)) !== table) return [];
    return [{ device, table, priority: readU32(attributes, FRA_PRIORITY) ?? 0, protocol: attributes.get(FRA_PROTOCOL)?.[0] ?? 0 }];
  });
}
