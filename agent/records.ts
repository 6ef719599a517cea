import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import type { z } from "zod";
import { CareofError, toCareofError } from "../model/errors.js";
import { syncDirectoryNow, writeDurably } from "./synced.js";

/** A record is a few hundred bytes, a VM's specification with long arguments some thousand. */
const MAX_BYTES = 256 * 1024;
/** Names come from VM ids: this keeps every other file of the directory out. */
const NAME = /^[a-z0-9][a-z0-9._-]{0,62}$/;

/**
 * Small durable records, one file each, of one directory. When `write` returns, the record survives the power being cut: temporary file, fsync, rename, fsync
 * of the directory. A crash at any point leaves the old record or the new one. Synchronous on purpose: what depends on a record must not run beside
 * its write, and one takes some 0.2 ms.
 * @throws CareofError `record-write-failed` (retryable), `record-unreadable`
 */
export class Records<T> {
  readonly #directory: string;
  readonly #schema: z.ZodType<T>;

  constructor(directory: string, schema: z.ZodType<T>) {
    this.#directory = directory;
    this.#schema = schema;
    makeDurably(directory);
    for (const name of readdirSync(directory)) if (name.endsWith(".new")) rmSync(join(directory, name));
  }

  write(name: string, record: T): void {
    const file = this.#file(name);
    const bytes = Buffer.from(`${JSON.stringify(record)}\n`);
    if (bytes.length > MAX_BYTES) throw new CareofError("record-write-failed", `${file} would have ${String(bytes.length)} bytes`);
    this.#durably(file, () => { writeDurably(file, bytes); });
  }

  /** Idempotent. */
  remove(name: string): void {
    const file = this.#file(name);
    this.#durably(file, () => {
      rmSync(file, { force: true });
      syncDirectoryNow(this.#directory);
    });
  }

  /** Every record, by name. A record that cannot be understood is an error: guessing could let two guests run. */
  all(): ReadonlyMap<string, T> {
    const names = readdirSync(this.#directory).filter((name) => name.endsWith(".json")).sort();
    return new Map(names.map((name) => [name.slice(0, -5), this.#read(join(this.#directory, name))]));
  }

  #read(file: string): T {
    try {
      return this.#schema.parse(JSON.parse(readFileSync(file, "utf8")));
    } catch (cause) {
      throw new CareofError("record-unreadable", `${file}: ${toCareofError(cause).message}. Look whether its guest runs here, then mend or remove the file`, { cause });
    }
  }

  #durably(file: string, write: () => void): void {
    try {
      write();
    } catch (cause) {
      throw new CareofError("record-write-failed", `cannot write ${file}: ${toCareofError(cause).message}`, { retryable: true, cause });
    }
  }

  #file(name: string): string {
    if (!NAME.test(name)) throw new CareofError("record-write-failed", `"${name.slice(0, 80)}" cannot name a record`);
    return join(this.#directory, `${name}.json`);
  }
}

/** One more than at the last start (RFC 5847 §3), durable before it is returned. A file that cannot be read counts as lost state: it starts from the time. */
export function nextRestartCounter(stateDir: string, nowMs: number): number {
  makeDurably(stateDir);
  const file = join(stateDir, "restart-counter");
  let last = Math.floor(nowMs / 1000);
  try {
    const stored = Number(readFileSync(file, "utf8").trim());
    if (Number.isSafeInteger(stored) && stored > 0) last = stored;
  } catch (thrown) {
    if (!(thrown instanceof Error && "code" in thrown && thrown.code === "ENOENT")) throw toCareofError(thrown, "record-unreadable");
    last = 0;
  }
  writeDurably(file, Buffer.from(`${String(last + 1)}\n`));
  return last + 1;
}

/** A directory whose own name is lost takes every record along, however well those were written. */
function makeDurably(directory: string): void {
  const first = mkdirSync(directory, { recursive: true, mode: 0o700 });
  if (first === undefined) return;
  for (let made = directory; ; made = dirname(made)) {
    syncDirectoryNow(dirname(made));
    if (made === first || made === dirname(made)) return;
  }
}
