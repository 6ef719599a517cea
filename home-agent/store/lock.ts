import { open, readFile, unlink } from "node:fs/promises";
import { join } from "node:path";
import { CareofError } from "../../model/errors.js";

/**
 * One process per directory. The file names the holder by process id and start time, so that what a crash left behind is told from a holder
 * that lives, also when its id was given to another process.
 */
export class DirectoryLock {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /** @throws CareofError `store-locked` */
  static async take(directory: string): Promise<DirectoryLock> {
    const path = join(directory, "lock");
    const me = `${String(process.pid)} ${(await startTime(process.pid)) ?? ""}`;
    for (;;) {
      try {
        const file = await open(path, "wx", 0o600);
        try {
          await file.writeFile(me);
        } finally {
          await file.close();
        }
        return new DirectoryLock(path);
      } catch (thrown) {
        if (errno(thrown) !== "EEXIST") throw thrown;
      }
      const holder = await readFile(path, "utf8").catch(missing);
      if (holder === null) continue;
      const [pid = "", started = ""] = holder.split(" ");
      if (/^[0-9]+$/.test(pid) && started !== "" && (await startTime(Number(pid))) === started) {
        throw new CareofError("store-locked", `${directory} is in use by process ${pid}`);
      }
      await unlink(path).catch(missing);
    }
  }

  async release(): Promise<void> {
    await unlink(this.#path).catch(missing);
  }
}

/** In clock ticks since boot (proc(5), field 22); `null` when there is no such process. */
async function startTime(pid: number): Promise<string | null> {
  const stat = await readFile(`/proc/${String(pid)}/stat`, "utf8").catch(missing);
  return stat === null ? null : (stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? null);
}

function missing(thrown: unknown): null {
  if (errno(thrown) === "ENOENT" || errno(thrown) === "ESRCH") return null;
  throw thrown;
}

function errno(thrown: unknown): unknown {
  return thrown instanceof Error && "code" in thrown ? thrown.code : undefined;
}
