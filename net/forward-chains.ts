import { z } from "zod";
import { inPrefix, ipv4, type Prefix } from "../model/address.js";

/** A base chain at the forward hook that drops what none of its rules accepts. */
export interface DroppingChain {
  /** `family table chain`. */
  readonly name: string;
  /** Whether plain rules of it, or of chains to which it always jumps, accept all that goes to these prefixes and all that comes from them. Rules before those may still drop some of it. */
  readonly accepts: (prefixes: readonly Prefix[]) => boolean;
}

const json = z.object({ nftables: z.array(z.record(z.string(), z.unknown())) });
const chain = z.object({ family: z.string(), table: z.string(), name: z.string(), hook: z.string().optional(), policy: z.string().optional() });
const rule = z.object({ family: z.string(), table: z.string(), chain: z.string(), expr: z.array(z.record(z.string(), z.unknown())) });
type Rule = z.infer<typeof rule>;

const target = z.object({ target: z.string() });
const addressMatch = z.object({ op: z.literal("=="), left: z.object({ payload: z.object({ protocol: z.literal("ip"), field: z.enum(["saddr", "daddr"]) }) }), right: z.unknown() });
const range = z.union([z.string(), z.object({ prefix: z.object({ addr: z.string(), len: z.number().int().min(0).max(32) }) })]);
const ranges = z.union([z.object({ set: z.array(z.unknown()) }).transform(({ set }) => set), z.unknown().transform((one) => [one])]);

/** Chains to which a chain jumps are followed so far. */
const DEPTH = 4;

/** Of the output of `nft -j list ruleset`; of what is no such output there are none. */
export function droppingForwardChains(ruleset: string): DroppingChain[] {
  const read = json.safeParse(JSON.parse(ruleset));
  if (!read.success) return [];
  const rules = read.data.nftables.flatMap((item) => parsed(rule, item["rule"]));
  return read.data.nftables.flatMap((item) => parsed(chain, item["chain"])).filter(({ hook, policy }) => hook === "forward" && policy === "drop").map((base) => {
    const own = reached(rules, base.family, base.table, base.name, DEPTH);
    return {
      name: `${base.family} ${base.table} ${base.name}`,
      accepts: (prefixes) => prefixes.length > 0 && prefixes.every((each) => (["saddr", "daddr"] as const).every((field) => own.some((one) => accepts(one, field, each)))),
    };
  });
}

function reached(rules: readonly Rule[], family: string, table: string, name: string, depth: number): Rule[] {
  if (depth === 0) return [];
  const own = rules.filter((each) => each.family === family && each.table === table && each.chain === name);
  return own.flatMap((each) => {
    const [only, ...more] = deeds(each);
    const to = more.length > 0 || only === undefined ? [] : parsed(target, only["jump"] ?? only["goto"]);
    return [each, ...to.flatMap((next) => reached(rules, family, table, next.target, depth - 1))];
  });
}

/** Without what only counts or remarks. */
function deeds({ expr }: Rule): Rule["expr"] {
  return expr.filter((each) => !("counter" in each) && !("comment" in each));
}

function accepts(one: Rule, field: "saddr" | "daddr", wanted: Prefix): boolean {
  const [match, verdict, ...more] = deeds(one);
  if (match === undefined || verdict === undefined || more.length > 0 || !("accept" in verdict)) return false;
  const [address] = parsed(addressMatch, match["match"]);
  if (address?.left.payload.field !== field) return false;
  return ranges.parse(address.right).flatMap((each) => parsed(range, each)).some((each) => covers(each, wanted));
}

function covers(outer: z.infer<typeof range>, inner: Prefix): boolean {
  if (typeof outer === "string") return outer === inner.address && inner.length === 32;
  return outer.prefix.len <= inner.length && inPrefix(inner.address, { address: ipv4(outer.prefix.addr), length: outer.prefix.len });
}

function parsed<T>(schema: z.ZodType<T>, value: unknown): T[] {
  const result = schema.safeParse(value);
  return result.success ? [result.data] : [];
}
