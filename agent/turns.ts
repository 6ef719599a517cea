/** Work on one thing after the other, on different things at once. */
export class Turns<K> {
  readonly #last = new Map<K, Promise<unknown>>();

  /** Runs `work` when everything asked for `key` before is over, however that ended. */
  take<T>(key: K, work: () => Promise<T>): Promise<T> {
    const mine = (this.#last.get(key) ?? Promise.resolve()).then(work, work);
    const over = (): void => { if (this.#last.get(key) === mine) this.#last.delete(key); };
    this.#last.set(key, mine);
    mine.then(over, over);
    return mine;
  }
}
