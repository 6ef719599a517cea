import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Clock } from "../model/clock.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { millis } from "../model/ids.js";
import type { Logger } from "../model/log.js";

/**
 * Places of a migration at which a test may let this agent stand still, each a message that comes late: `prepare` everything is ready and not yet said · `lead` the
 * marker was seen, the gate is shut · `stop` the guest stands, its last state is not sent · `completed` all is sent, RELEASE is not written ·
 * `release` RELEASE is written, not sent · `grant` RELEASE has come, the guest is not continued · `settle` it runs, and nobody was told.
 */
export type HoldPoint = "prepare" | "lead" | "stop" | "completed" | "release" | "grant" | "settle";

/**
 * A seam for fault tests, which have to strike in one phase exactly. Contract: `pass` calls `go` once; at once (before it returns), unless a test holds this point.
 * Other messages go on meanwhile, as they would if this one came late by itself, so that no state can be reached here that bad luck could not.
 */
export interface Hold {
  pass(point: HoldPoint, go: () => void): void;
}

export const NO_HOLD: Hold = { pass: (_point, go) => { go(); } };

const LOOK_MS = millis(10);
/** A test that was killed leaves its files; nothing stands still longer than this for them. */
const LIMIT_MS = 60_000;

/**
 * Off unless the process was started with CAREOF_HOLD=DIRECTORY. A point is held while DIRECTORY has a file of its name. The directory must belong to this process's user
 * and be writable by nobody else: who can use it can end this process as well.
 * @throws CareofError `config-invalid`
 */
export function holdOf(directory: string | undefined, clock: Clock, log: Logger): Hold {
  if (directory === undefined || directory === "") return NO_HOLD;
  requirePrivate(directory);
  log.warn({ directory }, "CAREOF_HOLD is set: migrations stand still where a test wants it");
  return {
    pass: (point, go) => {
      const file = join(directory, point);
      if (!existsSync(file)) {
        go();
        return;
      }
      log.warn({ hold: point }, "standing still");
      const end = clock.monotonic() + LIMIT_MS;
      const look = (): void => {
        if (existsSync(file) && clock.monotonic() < end) {
          clock.after("hold", LOOK_MS, look);
          return;
        }
        log.warn({ hold: point }, "going on");
        go();
      };
      look();
    },
  };
}

function requirePrivate(directory: string): void {
  try {
    const { uid, mode } = statSync(directory);
    if (uid === process.geteuid?.() && (mode & 0o022) === 0) return;
  } catch (cause) {
    throw new CareofError("config-invalid", `CAREOF_HOLD=${directory}: ${toCareofError(cause).message}`, { cause });
  }
  throw new CareofError("config-invalid", `CAREOF_HOLD=${directory} belongs to somebody else, or others may write there`);
}
