import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { z } from "zod";
import { agentSchema } from "../../agent/config.js";
import { heartbeatSchema } from "../../guest/config.js";
import { homeAgentSchema } from "../../home-agent/config.js";

/** The README against what it speaks of: a key, a command or a file that is not there any more, or not in it, fails here. */

const root = fileURLToPath(new URL("../../..", import.meta.url));
const readme = readFileSync(join(root, "README.md"), "utf8");

interface Key {
  /** `required`, a default as it is written, or null where the schema has none to show. */
  readonly fallback: string | null;
}

const scalar = z.union([z.string(), z.number(), z.boolean()]);

interface Shape {
  readonly properties?: Readonly<Record<string, Shape>> | undefined;
  readonly required?: readonly string[] | undefined;
  readonly items?: Shape | undefined;
  readonly default?: unknown;
}
const shape: z.ZodType<Shape> = z.looseObject({
  get properties() { return z.record(z.string(), shape).optional(); },
  required: z.array(z.string()).optional(),
  get items() { return shape.optional(); },
  default: z.unknown().optional(),
});

/** Every key that a file may have, as `vms[].qemu.cpus`. */
function keysOf(schema: z.ZodType): Map<string, Key> {
  const keys = new Map<string, Key>();
  const walk = (at: Shape, path: string, required: boolean): void => {
    if (at.properties !== undefined) {
      for (const [name, below] of Object.entries(at.properties)) walk(below, path === "" ? name : `${path}.${name}`, required && at.required?.includes(name) === true);
    } else if (at.items?.properties !== undefined) {
      // What every entry needs, whether there is one or not.
      walk(at.items, `${path}[]`, true);
    } else {
      const value = scalar.safeParse(at.default);
      keys.set(path, { fallback: required ? "required" : value.success && value.data !== "" ? String(value.data) : null });
    }
  };
  walk(shape.parse(z.toJSONSchema(schema, { io: "input", unrepresentable: "any" })), "", true);
  return keys;
}

/** The rows of the one table below a heading: key and default. */
function rowsBelow(heading: string): Map<string, string> {
  const from = readme.indexOf(`\n### ${heading}`);
  const section = from < 0 ? "" : readme.slice(from + 1).split(/\n##+ /)[0] ?? "";
  return new Map([...section.matchAll(/^\| `([^`]+)` \| ([^|]*) \|/gm)].map(([, key = "", fallback = ""]) => [key, fallback.trim()]));
}

t.test("every key of every configuration file has a row, with its default, and no row is of a key that there is not", (t) => {
  for (const [heading, schema] of [["Home agent", homeAgentSchema], ["Host agent", agentSchema], ["Heartbeat service", heartbeatSchema]] as const) {
    const rows = rowsBelow(heading);
    const keys = keysOf(schema);
    t.ok(keys.size > 4, heading);
    t.strictSame([...rows.keys()].filter((key) => !keys.has(key)), [], `${heading}: rows without a key`);
    t.strictSame([...keys.keys()].filter((key) => !rows.has(key)), [], `${heading}: keys without a row`);
    for (const [key, { fallback }] of keys) {
      const said = rows.get(key);
      if (said === undefined) continue;
      if (fallback === null) t.not(said, "required", `${heading}: ${key} is not required`);
      else t.equal(said, fallback, `${heading}: ${key}`);
    }
  }
  t.end();
});

t.test("every command of careof, every script of npm and every file that it names is there", (t) => {
  const program = readFileSync(join(root, "cli", "program.ts"), "utf8");
  const commands = [...program.matchAll(/"\.\/commands\/([a-z-]+)\.js"/g)].map(([, name = ""]) => name).filter((name) => name !== "parts");
  t.ok(commands.length > 10);
  for (const name of commands.filter((each) => each !== "demo")) t.match(readme, new RegExp(`careof ${name}\\b`), `careof ${name}`);
  const { scripts } = z.object({ scripts: z.record(z.string(), z.string()) }).parse(JSON.parse(readFileSync(join(root, "package.json"), "utf8")));
  for (const [, name = ""] of readme.matchAll(/npm run ([a-z:]+)/g)) t.ok(name in scripts, `npm run ${name}`);
  for (const [, file = ""] of readme.matchAll(/\]\(([^)#]+)\)/g)) t.doesNotThrow(() => readFileSync(join(root, file)), file);
  for (const [, file = ""] of readme.matchAll(/\b((?:deploy|guest|proto|test)\/[a-z/-]+\.[a-z]+)\b/g)) t.doesNotThrow(() => readFileSync(join(root, file)), file);
  t.end();
});
