/** A value that JSON can carry, as it was put; whoever reads it checks it. */
export type Stored = unknown;

/** Keys written together: all of them are there after a crash, or none. `value: null` removes a key. */
export interface Write {
  /** 1 to 200 characters. */
  readonly key: string;
  readonly value: Stored;
}

/** `key`'s revision is what `expectedRevision` speaks of; `also` goes along, its revisions unchecked. */
export interface Change extends Write {
  readonly also?: readonly Write[];
}

/**
 * `ok`: it is on disk, and survives any crash of the process or the machine (I6). `conflict`: nothing was written; somebody else wrote the key, or
 * (`fenced`) has taken the store over. `unavailable`: nothing was acknowledged; it may be tried again.
 */
export type CommitResult =
  | { readonly result: "ok"; readonly revision: number }
  | { readonly result: "conflict"; readonly revision: number; readonly fenced: boolean }
  | { readonly result: "unavailable"; readonly why: string };

/**
 * Where owners, epochs and migrations are kept. Contract, tested against every implementation:
 *
 * - A key's revision is 0 until it is written for the first time and grows by 1 with each write, a removal included.
 * - `commit` writes only if the key's revision is `expectedRevision` and `fence` is not older than the newest fence that the store has seen. It never throws, and is
 *   answered in the order of the calls of one key. What was committed together is read together.
 * - `takeOver` returns a fence above all before it; it is durable when the promise resolves. Commits with an older fence are refused from then on.
 * - `entries` gives what is committed, in the order of the keys.
 */
export interface Store {
  /** @throws CareofError `store-unavailable` */
  takeOver(): Promise<number>;
  commit(expectedRevision: number, fence: number, change: Change): Promise<CommitResult>;
  entries(prefix: string): Iterable<{ readonly key: string; readonly value: Stored; readonly revision: number }>;
  /** Everything that was asked for is answered first. Afterwards `commit` is `unavailable`. */
  close(): Promise<void>;
}

export const MAX_KEY = 200;
