import { CareofError } from "../../model/errors.js";
import { EEXIST, EINVAL, ENODEV, ENOENT, errnoOf } from "../errno.js";
import { decodeAttributes, encodeAttributes, nested, readText, readU32, text, u32 } from "./attributes.js";
import { NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, type Netlink } from "./client.js";

export type Direction = "ingress" | "egress";

/** A BPF program in direct action on an interface's clsact queueing discipline. */
export interface Filter {
  readonly device: number;
  readonly direction: Direction;
  /** Together with the direction, this names our place: what else hangs there is left alone. 1 to 65535. */
  readonly preference: number;
  /** Shown by `tc filter show`. */
  readonly name: string;
}

/** As found; `program` is the kernel's id of what runs. */
export interface FoundFilter extends Filter {
  readonly program: number;
}

const RTM_NEWQDISC = 36;
const RTM_DELQDISC = 37;
const RTM_NEWTFILTER = 44;
const RTM_DELTFILTER = 45;
const RTM_GETTFILTER = 46;
const CLSACT = 0xffff_fff1;
const CLSACT_HANDLE = 0xffff_0000;
const PARENT: Readonly<Record<Direction, number>> = { ingress: 0xffff_fff2, egress: 0xffff_fff3 };
const ETH_P_ALL_NETWORK_ORDER = 0x0300;
const TCA_KIND = 1;
const TCA_OPTIONS = 2;
const TCA_BPF_FD = 6;
const TCA_BPF_NAME = 7;
const TCA_BPF_FLAGS = 8;
const TCA_BPF_ID = 11;
const DIRECT_ACTION = 1;
const HANDLE = 1;
const HEADER = 20;
/** What the kernel says for a filter, a queueing discipline or an interface that does not exist. */
const NOTHING_THERE = [ENOENT, EINVAL, ENODEV];

function header(device: number, parent: number, handle: number, info: number): Buffer {
  const bytes = Buffer.alloc(HEADER);
  bytes.writeInt32LE(device, 4);
  bytes.writeUInt32LE(handle >>> 0, 8);
  bytes.writeUInt32LE(parent >>> 0, 12);
  bytes.writeUInt32LE(info >>> 0, 16);
  return bytes;
}

function info(preference: number): number {
  return ((preference << 16) | ETH_P_ALL_NETWORK_ORDER) >>> 0;
}

/** Puts the program there, or swaps the one that is there for it: no packet sees neither or both. */
export function putFilter(netlink: Netlink, filter: Filter, programDescriptor: number): void {
  const clsact = Buffer.concat([header(filter.device, CLSACT, CLSACT_HANDLE, 0), encodeAttributes([text(TCA_KIND, "clsact")])]);
  try {
    netlink.request({ type: RTM_NEWQDISC, flags: NLM_F_CREATE | NLM_F_EXCL, body: clsact, what: "the clsact queueing discipline" });
  } catch (thrown) {
    if (errnoOf(thrown) !== EEXIST) throw thrown;
  }
  const options = nested(TCA_OPTIONS, [u32(TCA_BPF_FD, programDescriptor), text(TCA_BPF_NAME, filter.name), u32(TCA_BPF_FLAGS, DIRECT_ACTION)]);
  const body = Buffer.concat([
    header(filter.device, PARENT[filter.direction], HANDLE, info(filter.preference)),
    encodeAttributes([text(TCA_KIND, "bpf"), options]),
  ]);
  netlink.request({ type: RTM_NEWTFILTER, flags: NLM_F_CREATE | NLM_F_REPLACE, body, what: `BPF program ${filter.name} on interface ${String(filter.device)}` });
}

/** Idempotent. The queueing discipline goes with the last filter on it. */
export function deleteFilter(netlink: Netlink, filter: Omit<Filter, "name">): void {
  const body = Buffer.concat([header(filter.device, PARENT[filter.direction], HANDLE, info(filter.preference)), encodeAttributes([text(TCA_KIND, "bpf")])]);
  tolerating(NOTHING_THERE, () => { netlink.request({ type: RTM_DELTFILTER, flags: 0, body, what: "to remove a BPF program" }); });
  if (countFilters(netlink, filter.device) > 0) return;
  const clsact = Buffer.concat([header(filter.device, CLSACT, CLSACT_HANDLE, 0), encodeAttributes([text(TCA_KIND, "clsact")])]);
  tolerating(NOTHING_THERE, () => { netlink.request({ type: RTM_DELQDISC, flags: 0, body: clsact, what: "to remove clsact" }); });
}

/** The BPF filters of one interface, both directions. */
export function listFilters(netlink: Netlink, device: number): FoundFilter[] {
  return (["ingress", "egress"] as const).flatMap((direction) =>
    replies(netlink, device, direction).flatMap(({ body }) => {
      const attributes = decodeAttributes(body.subarray(HEADER));
      const options = attributes.get(TCA_OPTIONS);
      if (readText(attributes, TCA_KIND) !== "bpf" || options === undefined) return [];
      const inner = decodeAttributes(options);
      const program = readU32(inner, TCA_BPF_ID);
      if (program === null) return [];
      return [{ device, direction, preference: body.readUInt32LE(16) >>> 16, name: readText(inner, TCA_BPF_NAME) ?? "", program }];
    }),
  );
}

function countFilters(netlink: Netlink, device: number): number {
  return replies(netlink, device, "ingress").length + replies(netlink, device, "egress").length;
}

function replies(netlink: Netlink, device: number, direction: Direction): { readonly body: Buffer }[] {
  const found = tolerating(NOTHING_THERE, () =>
    netlink.dump({ type: RTM_GETTFILTER, flags: 0, body: header(device, PARENT[direction], 0, 0), what: "the list of filters" }));
  return (found ?? []).filter(({ type, body }) => {
    if (type === RTM_NEWTFILTER && body.length < HEADER) throw new CareofError("malformed-netlink", "a filter's message is too short");
    return type === RTM_NEWTFILTER;
  });
}

/** `undefined` when the kernel says one of these: there is nothing of the kind there. */
function tolerating<T>(errnos: readonly number[], work: () => T): T | undefined {
  try {
    return work();
  } catch (thrown) {
    if (errnos.includes(errnoOf(thrown))) return undefined;
    throw thrown;
  }
}
