import { CareofError } from "../../model/errors.js";
import type { Change, CommitResult, Store } from "./store.js";
import { Table } from "./table.js";

/** A store that forgets everything with its process, and can be made to fail. For tests. */
export class MemoryStore implements Store {
  readonly #table: Table;
  #closed = false;
  /** While set, nothing can be written. */
  unavailable = false;
  /** Every commit waits for this before it is answered. */
  delay: Promise<void> = Promise.resolve();
  commits = 0;

  /** `of`: the store whose content this one shares, as a second process that opened the same one would. */
  constructor(of?: MemoryStore) {
    this.#table = of === undefined ? new Table() : of.#table;
  }

  takeOver(): Promise<number> {
    if (this.unavailable || this.#closed) return Promise.reject(new CareofError("store-unavailable", "the store is not available", { retryable: true }));
    this.#table.fence += 1;
    return Promise.resolve(this.#table.fence);
  }

  async commit(expectedRevision: number, fence: number, change: Change): Promise<CommitResult> {
    await this.delay;
    if (this.unavailable || this.#closed) return { result: "unavailable", why: this.#closed ? "closed" : "made unavailable" };
    const revision = this.#table.revision(change.key);
    if (fence < this.#table.fence) return { result: "conflict", revision, fenced: true };
    if (revision !== expectedRevision) return { result: "conflict", revision, fenced: false };
    this.#table.apply(structuredClone(change));
    this.commits += 1;
    return { result: "ok", revision: revision + 1 };
  }

  entries(prefix: string): ReturnType<Store["entries"]> {
    return this.#table.entries(prefix);
  }

  close(): Promise<void> {
    this.#closed = true;
    return Promise.resolve();
  }
}
