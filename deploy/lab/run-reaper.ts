import { setTimeout as sleep } from "node:timers/promises";
import { DISMISSED } from "./reaper.js";
import { removeRun } from "./registry.js";

/** A command that was under way when its process was killed may still make something after the first look. */
const ATTEMPTS = 3;
const BETWEEN_MS = 500;

/** `node run-reaper.js RUN`, started by `Reaper`: waits for the end of standard input. Exit 0 when nothing of the run is left, or nothing was to be done. */
async function reap(run: string): Promise<number> {
  let told = "";
  for await (const text of process.stdin.setEncoding("utf8")) told += String(text);
  if (told.includes(DISMISSED)) return 0;
  for (let attempt = 1; ; attempt++) {
    try {
      const left = await removeRun(run);
      await sleep(BETWEEN_MS);
      if (left.length === 0 && (await removeRun(run)).length === 0) return 0;
    } catch (thrown) {
      // Nobody reads what it would say; the run stays in the registry for the next one that is made.
      if (attempt === ATTEMPTS) throw thrown;
      await sleep(BETWEEN_MS);
    }
    if (attempt === ATTEMPTS) return 1;
  }
}

process.exitCode = await reap(process.argv[2] ?? "");
