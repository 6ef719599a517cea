import { readdirSync } from "node:fs";
import { fileURLToPath, pathToFileURL } from "node:url";
import { join } from "node:path";
import { Linter } from "eslint";
import tseslint from "typescript-eslint";
import t from "tap";

const root = fileURLToPath(new URL("../../..", import.meta.url));
const rules: unknown = await import(pathToFileURL(join(root, "lint", "house.js")).href);

interface House {
  readonly HOUSE: Readonly<Record<string, unknown>>;
  readonly default: NonNullable<Linter.Config["plugins"]>[string];
}

function isHouse(value: unknown): value is House {
  return typeof value === "object" && value !== null && "HOUSE" in value && "default" in value;
}

if (!isHouse(rules)) throw new Error("lint/house.js does not export HOUSE and a plugin");
const { HOUSE, default: plugin } = rules;

/** What the rule says of `code` in `file`: the message ids. */
function verdict(file: string, code: string): string[] {
  const linter = new Linter({ cwd: root });
  const found = linter.verify(
    code,
    [{ files: ["**/*.ts"], plugins: { house: plugin }, rules: { "house/imports": "error" }, languageOptions: { parser: tseslint.parser } }],
    { filename: join(root, file) },
  );
  return found.map((message) => message.messageId ?? message.message);
}

const ways: readonly [name: string, of: (path: string) => string][] = [
  ["import", (path) => `import { x } from "${path}"; x();`],
  ["import for its effect", (path) => `import "${path}";`],
  ["import of a type", (path) => `import type { X } from "${path}"; export type Y = X;`],
  ["dynamic import", (path) => `export const x = import("${path}");`],
  ["dynamic import of a template", (path) => `export const x = import(\`${path}\`);`],
  ["export from", (path) => `export { x } from "${path}";`],
  ["export all", (path) => `export * from "${path}";`],
  ["type import", (path) => `export type X = import("${path}").X;`],
  ["import require", (path) => `import x = require("${path}"); x();`],
  ["require", (path) => `require("${path}");`],
  ["import.meta.resolve", (path) => `import.meta.resolve("${path}");`],
];

t.test("every way of importing is seen", (t) => {
  for (const [name, code] of ways) {
    t.same(verdict("home-agent/a.ts", code("../agent/main.js")), ["forbidden"], name);
    t.same(verdict("home-agent/a.ts", code("../model/ids.js")), [], `${name}, allowed`);
    t.same(verdict("home-agent/a.ts", code("careof/agent/main.js")), ["forbidden"], `${name}, by the package's own name`);
    t.same(verdict("home-agent/a.ts", code("ws")), [], `${name}, another package`);
  }
  t.end();
});

t.test("the table", (t) => {
  const table: readonly [file: string, target: string, allowed: boolean][] = [
    ["home-agent/bindings/machine.ts", "../../agent/main.js", false],
    ["home-agent/bindings/machine.ts", "../store/journal.js", true],
    ["home-agent/main.ts", "../net/tunnel.js", true],
    ["home-agent/main.ts", "../test/model/manual-clock.js", false],
    ["agent/main.ts", "../home-agent/main.js", false],
    ["agent/main.ts", "../net/tunnel.js", true],
    ["agent/main.ts", "../deploy/demo/main.js", false],
    ["model/ids.ts", "../proto/messages.js", false],
    ["model/ids.ts", "../net/tunnel.js", false],
    ["model/ids.ts", "./brand.js", true],
    ["proto/codec.ts", "../model/ids.js", true],
    ["proto/codec.ts", "../net/tunnel.js", false],
    ["net/tunnel.ts", "../model/ids.js", true],
    ["net/tunnel.ts", "../proto/messages.js", false],
    ["net/tunnel.ts", "../agent/main.js", false],
    ["guest/main.ts", "../proto/heartbeat.js", true],
    ["guest/main.ts", "../net/tunnel.js", false],
    ["cli/commands/where.ts", "../api-client.js", true],
    ["cli/commands/where.ts", "../../agent/main.js", false],
    ["cli/main.ts", "../agent/main.js", true],
    ["cli/main.ts", "../home-agent/main.js", true],
    ["cli/main.ts", "../guest/main.js", true],
    ["cli/main.ts", "../deploy/demo/main.js", true],
    ["cli/main.ts", "../net/probe.js", false],
    ["cli/main.ts", "../test/a.js", false],
    ["cli/sub/main.ts", "../../agent/main.js", false],
    ["deploy/doctor/main.ts", "../../agent/main.js", true],
    ["bench/a.ts", "../agent/main.js", true],
    ["test/a.ts", "../agent/main.js", true],
    ["home-agent/a.ts", "../home-agent/../agent/main.js", false],
    ["home-agent/a.ts", "./../agent/main.js", false],
    ["home-agent/a.ts", "../dist/agent/main.js", false],
    ["home-agent/a.ts", "..", false],
    ["home-agent/a.ts", "careof", false],
    ["home-agent/a.ts", "node:fs", true],
    ["home-agent/a.ts", "careof-like", true],
  ];
  for (const [file, target, allowed] of table) {
    t.same(verdict(file, `import "${target}";`), allowed ? [] : ["forbidden"], `${file} ${allowed ? "may" : "may not"} import ${target}`);
  }
  t.end();
});

t.test("what cannot be read is refused", (t) => {
  for (const code of ["const p = '../agent/main.js'; void import(p);", "void import(`../${'agent'}/main.js`);", "import '/agent/main.js';", "import '#agent';", "import 'file:///agent/main.js';", "import 'data:text/javascript,1';"]) {
    t.same(verdict("home-agent/a.ts", code), ["unreadable"], code);
    t.same(verdict("deploy/a.ts", code), [], `${code} where anything is allowed`);
  }
  t.end();
});

t.test("every folder with TypeScript in it stands in the table", (t) => {
  const outside = new Set(["node_modules", "dist"]);
  for (const entry of readdirSync(root, { withFileTypes: true })) {
    if (!entry.isDirectory() || entry.name.startsWith(".") || outside.has(entry.name)) continue;
    if (readdirSync(join(root, entry.name), { recursive: true, encoding: "utf8" }).some((name) => name.endsWith(".ts"))) t.ok(Object.hasOwn(HOUSE, entry.name), entry.name);
  }
  t.end();
});
