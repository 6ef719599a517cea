import { readFileSync } from "node:fs";
import { z } from "zod";
import { CareofError } from "./errors.js";

/** What runs: `version` of the package.json above the compiled tree. @throws CareofError `internal` for an installation that is not whole */
export function careofVersion(): string {
  const file = new URL("../../package.json", import.meta.url);
  try {
    return z.object({ version: z.string().min(1) }).parse(JSON.parse(readFileSync(file, "utf8"))).version;
  } catch (cause) {
    throw new CareofError("internal", `${file.pathname} does not say which version this is`, { cause });
  }
}
