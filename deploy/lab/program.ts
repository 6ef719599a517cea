import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { must } from "./command.js";

/** The repository's root, seen from dist/deploy/lab. */
export const REPOSITORY = fileURLToPath(new URL("../../../", import.meta.url));

const COMPILE_MS = 60_000;

/** The lab's own program NAME. @throws CareofError as `compiled` */
export async function labProgram(name: "traffic" | "wire"): Promise<string> {
  return compiled(join("deploy", "lab"), name);
}

/**
 * Compiles NAME.c of a folder of the repository, with the NAME-*.h beside it, into .cache/lab once per state of its sources, and returns the program's path.
 * @throws CareofError `command-failed` with the compiler's words
 */
export async function compiled(folder: string, name: string): Promise<string> {
  const sources = join(REPOSITORY, folder);
  const hash = createHash("sha256");
  const belongs = new RegExp(`^${name}(-.*)?\\.[ch]$`);
  for (const file of readdirSync(sources).filter((each) => belongs.test(each)).sort()) hash.update(readFileSync(join(sources, file)));
  const program = join(REPOSITORY, ".cache", "lab", `${name}-${hash.digest("hex").slice(0, 16)}`);
  if (existsSync(program)) return program;
  mkdirSync(dirname(program), { recursive: true });
  const fresh = `${program}.${String(process.pid)}`;
  await must(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", fresh, join(sources, `${name}.c`)], { limitMs: COMPILE_MS });
  renameSync(fresh, program);
  return program;
}
