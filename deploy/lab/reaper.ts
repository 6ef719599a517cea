import { spawn, type ChildProcess } from "node:child_process";
import { fileURLToPath } from "node:url";

const PROGRAM = fileURLToPath(new URL("run-reaper.js", import.meta.url));
/** What it is told when nothing is to be removed. */
export const DISMISSED = "dismissed";

/**
 * Removes a run when the process that made it ends without having done so: a SIGKILL leaves nobody else to do it, and guests that run on would take the
 * machine's processors for ever. A process of its own that holds the other end of a pipe, which the kernel closes however this process ends.
 */
export class Reaper {
  readonly #child: ChildProcess;

  /** From now on. Start it before there is anything to remove. */
  constructor(run: string) {
    // In a session of its own: what ends this process's group must not end it. Without our output, which others may wait to see closed.
    this.#child = spawn(process.execPath, [PROGRAM, run], { stdio: ["pipe", "ignore", "ignore"], detached: true, cwd: "/" });
    // Without it, a later run removes what is left, as the registry says.
    this.#child.on("error", () => undefined);
    this.#child.stdin?.on("error", () => undefined);
    this.#child.unref();
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** The run is removed, or is to stay. Idempotent. */
  dismiss(): void {
    if (this.#child.stdin?.writable === true) this.#child.stdin.end(`${DISMISSED}\n`);
  }
}
