import { mkdir, open, readFile, rename, unlink, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { CareofError, toCareofError } from "../../model/errors.js";
import { encodeRecord, readRecords } from "./journal-format.js";
import { DirectoryLock } from "./lock.js";
import { MAX_KEY, type Change, type CommitResult, type Store } from "./store.js";
import { Table, writesOf } from "./table.js";

const FILE = "journal";

/**
 * One record of the file, after its checksum was found right. `synced`: so many bytes of the file were on disk when it was written, so that a broken record among
 * them is told from one that a crash tore off.
 */
const synced = z.number().int().min(0).default(0);
const recordSchema = z.union([
  z.strictObject({ fence: z.number().int().min(0), synced }),
  z.strictObject({ writes: z.array(z.tuple([z.string().min(1).max(MAX_KEY), z.unknown()])).min(1), synced }),
  z.strictObject({ synced: z.number().int().min(1) }),
  z.strictObject({ row: z.tuple([z.string().min(1).max(MAX_KEY), z.number().int().min(1), z.unknown()]) }),
]);
type JournalRecord = z.infer<typeof recordSchema>;

export interface JournalOptions {
  readonly directory: string;
  /** Commits that one fdatasync may cover. */
  readonly maxBatch?: number;
  /** Commits waiting, beyond which more are `unavailable`. */
  readonly maxQueue?: number;
  /** The file is rewritten when it is larger than this and than four times what it was after the last rewriting, in bytes. */
  readonly compactAbove?: number;
}

interface Waiting {
  readonly expectedRevision: number;
  readonly fence: number;
  readonly change: Change;
  readonly answer: (result: CommitResult) => void;
}

/**
 * The store as one append-only file: what waits while the disk is busy goes with the next write and one fdatasync. A tail that a crash tore off is cut
 * at the next start; it was never acknowledged. Rewritten now and then (a new file, renamed).
 */
export class Journal implements Store {
  readonly #directory: string;
  readonly #maxBatch: number;
  readonly #maxQueue: number;
  readonly #compactAbove: number;
  readonly #table: Table;
  readonly #lock: DirectoryLock;
  #file: FileHandle;
  #size: number;
  #sizeAfterRewrite: number;
  readonly #queue: Waiting[] = [];
  #writer: Promise<void> | null = null;
  /** After a failed write nothing is known of the file's end: the next commit rewrites it. */
  #suspect = false;
  #closed = false;
  /** Bytes of the file that are on disk for sure. */
  #synced: number;
  /** Bytes that were cut off at the start. */
  readonly cut: number;

  private constructor(options: JournalOptions, lock: DirectoryLock, table: Table, file: FileHandle, size: number, cut: number) {
    this.#directory = options.directory;
    this.#maxBatch = options.maxBatch ?? 1024;
    this.#maxQueue = options.maxQueue ?? 65_536;
    this.#compactAbove = options.compactAbove ?? 16 * 1024 * 1024;
    this.#lock = lock;
    this.#table = table;
    this.#file = file;
    this.#size = size;
    this.#synced = size;
    this.#sizeAfterRewrite = size;
    this.cut = cut;
  }

  /** @throws CareofError `store-locked` (another process has it), `store-unavailable` (the disk), `store-corrupt` (a broken record that is no torn tail, or one that no version wrote) */
  static async open(options: JournalOptions): Promise<Journal> {
    let lock: DirectoryLock | null = null;
    let file: FileHandle | null = null;
    try {
      await mkdir(options.directory, { recursive: true, mode: 0o700 });
      lock = await DirectoryLock.take(options.directory);
      const path = join(options.directory, FILE);
      file = await open(path, "a+", 0o600);
      const { records, end, length, corrupt } = readRecords(await readFile(file));
      if (corrupt) throw new CareofError("store-corrupt", `${path} is broken at byte ${String(end)}, and what follows was written after that was safe: the disk has lost acknowledged data; nothing was changed, put back a copy`);
      const table = new Table();
      for (const record of records) load(table, record);
      if (end < length) await file.truncate(end);
      // A process that was killed may have left what it wrote in memory only.
      await file.datasync();
      await syncDirectory(options.directory);
      const journal = new Journal(options, lock, table, file, end, length - end);
      await journal.#vouch();
      return journal;
    } catch (thrown) {
      await file?.close();
      await lock?.release();
      const error = toCareofError(thrown, "store-unavailable");
      throw error.code === "store-unavailable" ? new CareofError("store-unavailable", `${options.directory}: ${error.message}`, { retryable: true, cause: error }) : error;
    }
  }

  async takeOver(): Promise<number> {
    const fence = this.#table.fence + 1;
    try {
      if (this.#closed) throw new Error("closed");
      await this.#idle();
      if (this.#suspect) await this.#rewrite();
      await this.#append(encodeRecord({ fence, synced: this.#synced }));
      this.#table.fence = fence;
      await this.#vouch();
      return fence;
    } catch (cause) {
      this.#suspect = true;
      throw new CareofError("store-unavailable", `the journal cannot be written: ${toCareofError(cause).message}`, { retryable: true, cause });
    }
  }

  commit(expectedRevision: number, fence: number, change: Change): Promise<CommitResult> {
    if (this.#closed) return Promise.resolve({ result: "unavailable", why: "closed" });
    if (this.#queue.length >= this.#maxQueue) return Promise.resolve({ result: "unavailable", why: `${String(this.#queue.length)} commits are waiting` });
    const badKey = writesOf(change).find(({ key }) => key.length < 1 || key.length > MAX_KEY);
    if (badKey !== undefined) return Promise.resolve({ result: "unavailable", why: `a key has 1 to ${String(MAX_KEY)} characters` });
    return new Promise((answer) => {
      this.#queue.push({ expectedRevision, fence, change, answer });
      this.#writer ??= this.#write();
    });
  }

  entries(prefix: string): ReturnType<Store["entries"]> {
    return this.#table.entries(prefix);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#idle();
    try {
      await this.#file.close();
    } finally {
      await this.#lock.release();
    }
  }

  async #idle(): Promise<void> {
    while (this.#writer !== null) await this.#writer;
  }

  async #write(): Promise<void> {
    while (this.#queue.length > 0) {
      const batch = this.#queue.splice(0, this.#maxBatch);
      const answers = await this.#writeBatch(batch);
      batch.forEach((waiting, i) => {
        waiting.answer(answers[i] ?? { result: "unavailable", why: "not answered" });
      });
      // Whatever follows at once does the same.
      if (this.#queue.length === 0) await this.#vouch();
    }
    this.#writer = null;
  }

  async #writeBatch(batch: readonly Waiting[]): Promise<readonly CommitResult[]> {
    const staged = new Map<string, number>();
    const revision = (key: string): number => staged.get(key) ?? this.#table.revision(key);
    const accepted: Change[] = [];
    const answers = batch.map(({ expectedRevision, fence, change }): CommitResult => {
      const present = revision(change.key);
      if (fence < this.#table.fence) return { result: "conflict", revision: present, fenced: true };
      if (present !== expectedRevision) return { result: "conflict", revision: present, fenced: false };
      for (const { key } of writesOf(change)) staged.set(key, revision(key) + 1);
      accepted.push(change);
      return { result: "ok", revision: present + 1 };
    });
    if (accepted.length === 0) return answers;
    try {
      if (this.#suspect) await this.#rewrite();
      await this.#append(Buffer.concat(accepted.map((change) => encodeRecord({ writes: writesOf(change).map(({ key, value }) => [key, value]), synced: this.#synced }))));
      for (const change of accepted) this.#table.apply(change);
    } catch (thrown) {
      this.#suspect = true;
      const why = toCareofError(thrown).message;
      return batch.map(() => ({ result: "unavailable", why }));
    }
    if (this.#size > this.#compactAbove && this.#size > 4 * this.#sizeAfterRewrite) {
      // What was acknowledged is safe in the old file; a failure here only means trying again with the next commit.
      await this.#rewrite().catch(() => { this.#suspect = true; });
    }
    return answers;
  }

  async #append(bytes: Buffer): Promise<void> {
    let at = 0;
    while (at < bytes.length) at += (await this.#file.write(bytes, at)).bytesWritten;
    await this.#file.datasync();
    this.#size += bytes.length;
    this.#synced = this.#size;
  }

  /**
   * Says in the file that all before is on disk. Without a sync: it costs next to nothing, survives the process, and what of it a crash of the machine loses is
   * at worst the knowledge that the last records were acknowledged.
   */
  async #vouch(): Promise<void> {
    if (this.#suspect || this.#synced === 0) return;
    const bytes = encodeRecord({ synced: this.#synced });
    try {
      for (let at = 0; at < bytes.length;) at += (await this.#file.write(bytes, at)).bytesWritten;
      this.#size += bytes.length;
    } catch {
      // Half of it may be there. Nobody waits for it: the next commit begins with a new file.
      this.#suspect = true;
    }
  }

  /** Only what holds now, in a new file that takes the old one's place. */
  async #rewrite(): Promise<void> {
    const path = join(this.#directory, FILE);
    const temporary = `${path}.new`;
    await unlink(temporary).catch((thrown: unknown) => {
      if ((thrown as NodeJS.ErrnoException).code !== "ENOENT") throw thrown;
    });
    const file = await open(temporary, "a+", 0o600);
    let size = 0;
    try {
      let pending: Buffer[] = [encodeRecord({ fence: this.#table.fence })];
      const flush = async (): Promise<void> => {
        const bytes = Buffer.concat(pending);
        pending = [];
        await file.appendFile(bytes);
        size += bytes.length;
      };
      for (const { key, revision, value } of this.#table.all()) {
        pending.push(encodeRecord({ row: [key, revision, value] }));
        if (pending.length >= 1000) await flush();
      }
      await flush();
      await file.sync();
      await rename(temporary, path);
      await syncDirectory(this.#directory);
    } catch (thrown) {
      await file.close();
      throw thrown;
    }
    const old = this.#file;
    this.#file = file;
    this.#size = size;
    this.#synced = size;
    this.#sizeAfterRewrite = size;
    this.#suspect = false;
    await old.close();
  }
}

function load(table: Table, record: unknown): void {
  const read = recordSchema.safeParse(record);
  if (!read.success) throw new CareofError("store-corrupt", "the journal has a record that this version does not know");
  const known: JournalRecord = read.data;
  if ("fence" in known) table.fence = known.fence;
  else if ("row" in known) table.load(...known.row);
  else if ("writes" in known) {
    const [first, ...also] = known.writes.map(([key, value]) => ({ key, value }));
    if (first !== undefined) table.apply({ ...first, also });
  }
}

async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
