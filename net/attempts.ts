import { toCareofError, type CareofError } from "../model/errors.js";

/** Several things that do not depend on one another: each is tried, and then it is said that one has failed. */
export class Attempts {
  #first: CareofError | null = null;

  /** What `work` throws is kept until the end. */
  make(work: () => void): void {
    try {
      work();
    } catch (thrown) {
      this.#first ??= toCareofError(thrown);
    }
  }

  /** @throws CareofError the first failure */
  end(): void {
    if (this.#first !== null) throw this.#first;
  }
}
