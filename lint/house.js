// The house's import table as a lint rule: which folder may import which. Static, dynamic and type imports, `export from`, `require` and the package's own
// name are all the same to it. What cannot be read from the source (a computed path) is refused, because it could be anything.
import { posix, relative, sep } from "node:path";

const ANYTHING = Symbol("anything");

/** Folder -> the other folders that it may import. */
export const HOUSE = {
  model: [],
  proto: ["model"],
  net: ["model"],
  "home-agent": ["model", "proto", "net"],
  agent: ["model", "proto", "net"],
  guest: ["model", "proto"],
  cli: ["model", "proto"],
  deploy: ANYTHING,
  bench: ANYTHING,
  test: ANYTHING,
  lint: [],
};

/** Files that may import more than their folder. */
const STARTERS = { "cli/main.ts": ["home-agent", "agent", "guest", "deploy"] };

const PACKAGE = "careof";

/** The text of a literal or of a template without holes, else undefined. */
function literalText(node) {
  if (node?.type === "Literal" && typeof node.value === "string") return node.value;
  if (node?.type === "TSLiteralType") return literalText(node.literal);
  if (node?.type === "TemplateLiteral" && node.expressions.length === 0) return node.quasis[0].value.cooked;
  return undefined;
}

/** The path below the root that `specifier`, standing in `file`, names; null for other packages and Node's modules, undefined where that cannot be known. */
function targetOf(specifier, file) {
  if (specifier === PACKAGE) return "";
  if (specifier.startsWith(`${PACKAGE}/`)) return posix.normalize(specifier.slice(PACKAGE.length + 1));
  if (/^\.{1,2}(\/|$)/.test(specifier)) return posix.normalize(posix.join(posix.dirname(file), specifier));
  if (/^(\/|#|[a-z]+:)/i.test(specifier) && !specifier.startsWith("node:")) return undefined;
  return null;
}

export const imports = {
  meta: {
    type: "problem",
    docs: { description: "keep the import table of the house" },
    schema: [],
    messages: {
      forbidden: '"{{from}}" may not import "{{to}}": the house allows {{allowed}}.',
      unreadable: "This import cannot be checked against the house: write a relative path as a plain string.",
    },
  },
  create(context) {
    const file = relative(context.cwd, context.filename).split(sep).join("/");
    const from = file.split("/")[0];
    const table = Object.hasOwn(HOUSE, from) ? HOUSE[from] : ANYTHING;
    if (table === ANYTHING) return {};
    const allowed = [...table, ...(STARTERS[file] ?? [])];

    function check(source) {
      if (source === null || source === undefined) return;
      const specifier = literalText(source);
      const target = specifier === undefined ? undefined : targetOf(specifier, file);
      if (target === undefined) {
        context.report({ node: source, messageId: "unreadable" });
        return;
      }
      if (target === null) return;
      const to = target.replace(/^(\.\/)?dist\//, "").split("/")[0];
      if (to === from || allowed.includes(to)) return;
      context.report({ node: source, messageId: "forbidden", data: { from, to, allowed: allowed.length === 0 ? "nothing" : allowed.join(", ") } });
    }

    return {
      ImportDeclaration: (node) => { check(node.source); },
      ImportExpression: (node) => { check(node.source); },
      ExportNamedDeclaration: (node) => { check(node.source); },
      ExportAllDeclaration: (node) => { check(node.source); },
      TSImportType: (node) => { check(node.source ?? node.argument); },
      TSExternalModuleReference: (node) => { check(node.expression); },
      CallExpression: (node) => {
        const { callee } = node;
        const plain = callee.type === "Identifier" && callee.name === "require";
        const resolved = callee.type === "MemberExpression" && callee.object.type === "MetaProperty" && callee.property.name === "resolve";
        if (plain || resolved) check(node.arguments[0]);
      },
    };
  },
};

export default { meta: { name: "house" }, rules: { imports } };
