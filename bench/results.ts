import { appendFileSync, existsSync, writeFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { join } from "node:path";
import { REPOSITORY } from "../deploy/lab/program.js";

const FILE = join(REPOSITORY, "bench", "RESULTS.md");
const TITLE = "# Results\n\nWritten by the benchmarks themselves (`npm run bench -- …`), newest last. Every figure comes with the machine, the command and the raw JSON.\n";

export function machine(): string {
  const cores = cpus();
  return `${String(cores.length)} × ${cores[0]?.model.trim() ?? "unknown processor"}, ${String(Math.round(totalmem() / 2 ** 30))} GiB, Linux ${release()}, Node ${process.version}`;
}

export interface ResultEntry {
  readonly title: string;
  readonly command: string;
  /** Markdown. */
  readonly body: string;
  readonly raw: unknown;
}

/** Appends to bench/RESULTS.md. */
export function record(entry: ResultEntry): void {
  if (!existsSync(FILE)) writeFileSync(FILE, TITLE);
  appendFileSync(FILE, [
    "", `## ${entry.title}`, "", `${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC · ${machine()}`, "", `\`${entry.command}\``, "", entry.body, "",
    "<details><summary>raw JSON</summary>", "", "```json", JSON.stringify(entry.raw), "```", "", "</details>", "",
  ].join("\n"));
}
