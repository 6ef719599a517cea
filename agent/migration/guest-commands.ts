import { toCareofError, type CareofError } from "../../model/errors.js";
import type { Guest, GuestStatus, StreamStatus } from "../hypervisor/driver.js";

/** What a hypervisor says of a guest when it is asked. */
export interface GuestSeen {
  readonly status: GuestStatus;
  readonly stream: StreamStatus;
}

/** What one migration asks of its guest: one after the other, so that a look sees what the command before it did. */
export class GuestCommands {
  readonly #guest: Guest | null;
  readonly #failed: (command: string, error: CareofError) => void;
  #last: Promise<void> = Promise.resolve();

  /** `guest`: `null` when it is gone already. `failed` must not throw. */
  constructor(guest: Guest | null, failed: (command: string, error: CareofError) => void) {
    this.#guest = guest;
    this.#failed = failed;
  }

  run(name: string, command: () => Promise<void> | undefined): void {
    this.#last = this.#last.then(command).catch((thrown: unknown) => { this.#failed(name, toCareofError(thrown)); });
  }

  /** Behind the commands that were given so far. */
  look(seen: (found: GuestSeen) => void): void {
    this.run("look", async () => {
      const status = this.#guest === null ? "gone" : await this.#guest.status();
      seen({ status, stream: this.#guest === null || status === "gone" ? "none" : (await this.#guest.progress()).status });
    });
  }
}
