import type { Clock, Timer } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { millis, type Millis } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";
import { isAlive, pause, type ProcessIdentity } from "./process.js";
import type { Qmp, QmpEvent } from "./qmp.js";

/** A QEMU that ends closes its monitor a little before its process is gone. */
const LINGER_MS = 2000;
/** How often a monitor that does not answer is tried, and its process looked at. */
const AGAIN_MS = millis(500);

/** What a guest is asked over. `Qmp` is one: a connection, over when it breaks. */
export interface Monitor {
  /** `10.0.2`; empty while it is not known. */
  readonly version: string;
  /** Whether it can be asked now, as far as is known. */
  readonly reachable: boolean;
  /** Resolves when nothing will ever be asked over it again. */
  readonly closed: Promise<CareofError>;
  /** The reply's `return`, unchecked. @throws CareofError as `Qmp.execute`, `guest-unreachable` (retryable) */
  execute(command: string, parameters: Readonly<Record<string, unknown>>, timeout: Millis): Promise<unknown>;
  subscribe(listener: (event: QmpEvent) => void): () => void;
  close(): void;
}

export interface LastingMonitorOptions {
  readonly name: string;
  readonly identity: ProcessIdentity & { readonly control: string };
  /** To the process of that identity and no other. @throws CareofError */
  readonly connect: () => Promise<Qmp>;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * The monitor of a process that somebody else has started. It may break, hang, or belong to another client for a while, and the guest runs on all the same: so it is connected again as long as
 * its process lives.
 * ```
 *   reachable ── connection over, process lives on ──▶ unreachable ── connected ──▶ reachable
 *       └──────────────── process gone, `close` ───────────┴──────────────────────▶ closed
 * ```
 */
export class LastingMonitor implements Monitor {
  readonly closed: Promise<CareofError>;
  version = "";
  readonly #options: LastingMonitorOptions;
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  readonly #changes = new Set<(reachable: boolean) => void>();
  #end: (error: CareofError) => void = () => undefined;
  #qmp: Qmp | null;
  #timer: Timer | null = null;
  #wake: () => void = () => undefined;
  #over = false;

  /** `qmp`: a connection that there is already. */
  constructor(options: LastingMonitorOptions, qmp: Qmp | null) {
    this.#options = options;
    this.#qmp = qmp;
    this.closed = new Promise((resolve) => { this.#end = resolve; });
    this.#live(qmp).catch((thrown: unknown) => { this.#finish(new CareofError("qmp-closed", "the monitor is not watched any more", { cause: thrown })); });
  }

  get reachable(): boolean {
    return this.#qmp !== null;
  }

  async execute(command: string, parameters: Readonly<Record<string, unknown>>, timeout: Millis): Promise<unknown> {
    const { name, identity } = this.#options;
    if (this.#qmp === null) throw new CareofError("guest-unreachable", `${name} runs in process ${String(identity.pid)}, and its monitor ${identity.control} does not answer`, { retryable: true });
    return this.#qmp.execute(command, parameters, timeout);
  }

  subscribe(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => { this.#listeners.delete(listener); };
  }

  /** `listener` hears whenever it can be asked again, or cannot any more although its process lives. */
  onChange(listener: (reachable: boolean) => void): void {
    this.#changes.add(listener);
  }

  close(): void {
    this.#finish(new CareofError("qmp-closed", "closed by us", { retryable: true }));
  }

  async #live(first: Qmp | null): Promise<void> {
    const { name, identity, log } = this.#options;
    let qmp = first;
    for (;;) {
      if (qmp !== null) {
        const error = await this.#use(qmp);
        if (this.#isOver() || !(await this.#lingers())) break;
        log.error({ vm: name, pid: identity.pid, control: identity.control, reason: error.code }, "the monitor of a guest that somebody else has started does not answer: it runs on, and cannot be moved");
        this.#tell(false);
      }
      qmp = await this.#connectAgain();
      if (qmp === null) break;
      log.info({ vm: name, pid: identity.pid, control: identity.control }, "the monitor of a guest that somebody else has started answers again");
    }
    this.#finish(new CareofError("qmp-closed", `the process of ${name} is gone`, { retryable: true }));
  }

  /** Until it is over. */
  async #use(qmp: Qmp): Promise<CareofError> {
    const again = this.#qmp === null;
    this.#qmp = qmp;
    this.version = qmp.version;
    qmp.subscribe((event) => { for (const listener of [...this.#listeners]) listener(event); });
    if (again) this.#tell(true);
    const error = await qmp.closed;
    this.#qmp = null;
    return error;
  }

  /** Whether the process lives on without its connection. */
  async #lingers(): Promise<boolean> {
    const { identity, clock } = this.#options;
    const end = clock.monotonic() + LINGER_MS;
    while (!this.#over && isAlive(identity) && clock.monotonic() < end) await pause(clock);
    return !this.#over && isAlive(identity);
  }

  /** `null` when there is nothing to connect to any more. */
  async #connectAgain(): Promise<Qmp | null> {
    const { identity, connect } = this.#options;
    while (!this.#over && isAlive(identity)) {
      const qmp = await connect().catch(() => null);
      if (qmp !== null && !this.#isOver()) return qmp;
      qmp?.close();
      if (!this.#isOver()) await this.#rest();
    }
    return null;
  }

  #rest(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
      this.#timer = this.#options.clock.after("monitor-again", AGAIN_MS, resolve);
    });
  }

  /** `close` sets it meanwhile, which is not seen from where it is asked. */
  #isOver(): boolean {
    return this.#over;
  }

  #tell(reachable: boolean): void {
    for (const listener of [...this.#changes]) listener(reachable);
  }

  #finish(error: CareofError): void {
    if (this.#over) return;
    this.#over = true;
    this.#timer?.cancel();
    this.#wake();
    this.#qmp?.close();
    this.#end(error);
  }
}
