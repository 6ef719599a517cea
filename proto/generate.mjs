// Makes proto/gen/careof.js and .d.ts from proto/careof.proto, and puts the code where the compiled tree expects it. Does nothing when both are newer
// than their sources.
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { createRequire } from "node:module";

const here = dirname(fileURLToPath(import.meta.url));
const source = join(here, "careof.proto");
const js = join(here, "gen", "careof.js");
const types = join(here, "gen", "careof.d.ts");
const built = join(here, "..", "dist", "proto", "gen", "careof.js");
const fresh = (file, than) => existsSync(file) && statSync(file).mtimeMs >= statSync(than).mtimeMs;

if (![js, types].every((file) => fresh(file, source) && fresh(file, fileURLToPath(import.meta.url)))) {
  mkdirSync(dirname(js), { recursive: true });
  const cli = dirname(createRequire(import.meta.url).resolve("protobufjs-cli/package.json"));
  const run = (tool, ...args) => execFileSync(process.execPath, [join(cli, "bin", tool), ...args], { stdio: ["ignore", "inherit", "inherit"] });
  run("pbjs", "-t", "static-module", "-w", "es6", "--dependency", "protobufjs/minimal.js", "--no-create", "--no-delimited", "--no-convert", "--no-service", "--force-number", "-o", js, source);
  run("pbts", "--no-comments", "-o", types, js);
  writeFileSync(types, readFileSync(types, "utf8").replace(/from "protobufjs"/, 'from "protobufjs/minimal.js"').replace(/^import Long = .*\n/m, ""));
}
if (!fresh(built, js)) {
  mkdirSync(dirname(built), { recursive: true });
  copyFileSync(js, built);
}
