import type { Change, Stored, Write } from "./store.js";

interface Row {
  readonly revision: number;
  readonly value: Stored;
}

/** What a journal's records add up to. A removed key keeps its revision, so that it never starts again. */
export class Table {
  readonly #rows = new Map<string, Row>();
  fence = 0;

  revision(key: string): number {
    return this.#rows.get(key)?.revision ?? 0;
  }

  apply(change: Change): void {
    for (const { key, value } of [change, ...(change.also ?? [])]) this.#rows.set(key, { revision: this.revision(key) + 1, value });
  }

  /** As it stood in a snapshot. */
  load(key: string, revision: number, value: Stored): void {
    this.#rows.set(key, { revision, value });
  }

  get size(): number {
    return this.#rows.size;
  }

  *all(): Iterable<{ readonly key: string; readonly value: Stored; readonly revision: number }> {
    for (const [key, row] of this.#rows) yield { key, ...row };
  }

  entries(prefix: string): readonly { readonly key: string; readonly value: Stored; readonly revision: number }[] {
    return [...this.all()].filter((row) => row.value !== null && row.key.startsWith(prefix)).sort((a, b) => (a.key < b.key ? -1 : 1));
  }
}

export function writesOf(change: Change): readonly Write[] {
  return [{ key: change.key, value: change.value }, ...(change.also ?? [])];
}
