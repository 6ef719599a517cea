import { readFileSync } from "node:fs";
import { isMap, isScalar, LineCounter, parseDocument, type Document, type Node } from "yaml";
import { z } from "zod";
import { CareofError } from "./errors.js";
import { hostId, keyId, vmId } from "./ids.js";
import { ipAddress, ipv4, mac, prefix } from "./address.js";

/** A configuration file's size limit in bytes: ten thousand VMs take about 3 MB. */
const MAX_BYTES = 64 * 1024 * 1024;

/** What a file says, and where it says it: for what only the reader can find wrong. */
export interface Located<T> {
  readonly value: T;
  /** `FILE:LINE:COLUMN` of the value at a path such as `["vms", 3, "mac"]`; of what is nearest to it when it is not there. */
  readonly at: (path: readonly (string | number)[]) => string;
}

/**
 * Reads a YAML file strictly: an unknown key, a wrong type or a value out of range is an error that names file, line and column.
 * @throws CareofError `config-unreadable`, `config-malformed` (not YAML), `config-invalid` (does not fit)
 */
export function readConfig<T>(file: string, schema: z.ZodType<T>): T {
  return locateConfig(file, schema).value;
}

/** As `readConfig`, with the places. */
export function locateConfig<T>(file: string, schema: z.ZodType<T>): Located<T> {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new CareofError("config-unreadable", `cannot read the configuration ${file}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
  if (text.length > MAX_BYTES) throw new CareofError("config-malformed", `${file} is larger than ${String(MAX_BYTES)} bytes`);
  return locate(text, file, schema);
}

/** As `readConfig`, of a text; `file` only names it in errors. */
export function parseConfig<T>(text: string, file: string, schema: z.ZodType<T>): T {
  return locate(text, file, schema).value;
}

function locate<T>(text: string, file: string, schema: z.ZodType<T>): Located<T> {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, strict: true, uniqueKeys: true });
  const broken = document.errors[0];
  if (broken !== undefined) {
    const at = lines.linePos(broken.pos[0]);
    throw new CareofError("config-malformed", `${file}:${String(at.line)}:${String(at.col)}: ${broken.message.split("\n")[0] ?? "not YAML"}`);
  }
  const result = schema.safeParse(document.toJS());
  const place = (path: readonly PropertyKey[], key?: string): string => {
    const { line, col } = lines.linePos(offsetOf(document, path, key));
    return `${file}:${String(line)}:${String(col)}`;
  };
  if (result.success) return { value: result.data, at: place };
  // A misspelt key explains the one that is missing, so it comes first.
  const issues = result.error.issues.toSorted((a, b) => Number(b.code === "unrecognized_keys") - Number(a.code === "unrecognized_keys"));
  const problems = issues.slice(0, 5).map((issue) => {
    const unknown = issue.code === "unrecognized_keys" ? issue.keys[0] : undefined;
    const where = issue.path.map(String).join(".");
    return `${place(issue.path, unknown)}: ${where === "" ? "" : `${where}: `}${unknown === undefined ? issue.message : `unknown key "${unknown}"`}`;
  });
  throw new CareofError("config-invalid", problems.join("\n"));
}

function offsetOf(document: Document, path: readonly PropertyKey[], key: string | undefined): number {
  let node: unknown = document.contents;
  let offset = start(node) ?? 0;
  for (const [depth, step] of [...path, ...(key === undefined ? [] : [key])].entries()) {
    if (isMap(node)) {
      const pair = node.items.find((item) => isScalar(item.key) && item.key.value === step);
      if (pair === undefined) break;
      offset = start(step === key ? pair.key : pair.value) ?? start(pair.key) ?? offset;
      node = pair.value;
    } else {
      node = document.getIn(path.slice(0, depth + 1), true);
      offset = start(node) ?? offset;
    }
  }
  return offset;
}

function start(node: unknown): number | undefined {
  return (node as Node | null | undefined)?.range?.[0];
}

/** A zod string that our own parser turns into its branded type, its complaint becoming the issue's message. */
export function parsed<T>(parse: (text: string) => T): z.ZodType<T> {
  return z.string().transform((text, context): T => {
    try {
      return parse(text);
    } catch (thrown) {
      context.addIssue({ code: "custom", message: thrown instanceof Error ? thrown.message : String(thrown) });
      return z.NEVER;
    }
  });
}

export interface Endpoint {
  readonly address: string;
  readonly port: number;
}

/** `192.0.2.1:4434`, `[::]:4434`. @throws CareofError `malformed-endpoint` */
export function endpoint(text: string): Endpoint {
  const match = /^(?:\[([^\]]+)\]|([^:[\]\s]+)):([0-9]{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  const address = match?.[1] ?? match?.[2];
  if (address === undefined || !(port <= 65535)) throw new CareofError("malformed-endpoint", `"${text.slice(0, 80)}" is not address:port`);
  return { address, port };
}

/** What more than one part's file uses. */
export const fields = {
  vm: parsed(vmId),
  host: parsed(hostId),
  ipv4: parsed(ipv4),
  ipAddress: parsed(ipAddress),
  mac: parsed(mac),
  prefix: parsed(prefix),
  endpoint: parsed(endpoint),
  keyId: z.int().min(0).max(0xffff_ffff).transform((value) => keyId(value)),
  logLevel: z.enum(["trace", "debug", "info", "warn", "error", "silent"]),
};
