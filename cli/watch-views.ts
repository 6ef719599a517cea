import type { Clock } from "../model/clock.js";
import type { CareofError } from "../model/errors.js";
import { sumLine } from "./commands/drain.js";
import { progressLine } from "./migration-progress.js";
import { localTime, measured } from "./quantities.js";
import type { Happening } from "./replies.js";
import { plain, type Terminal } from "./terminal.js";

/** How `watch` shows what happens. */
export interface View {
  /** `present`: it is so already and did not happen now. */
  show(happening: Happening, present: boolean): void;
  /** The present state is complete. */
  ready(): void;
  /** The contact is lost and is tried again. */
  lost(error: CareofError): void;
  close(): void;
}

/** One JSON object a line. */
export class JsonView implements View {
  readonly #terminal: Terminal;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  show(happening: Happening): void {
    this.#terminal.out(`${JSON.stringify(happening)}\n`);
  }

  ready(): void {
    // Nothing: a reader sees the state itself.
  }

  lost(error: CareofError): void {
    this.#terminal.err(`no contact, trying again: ${plain(error.message)}\n`);
  }

  close(): void {
    // Nothing is held.
  }
}

/** A line per event; progress only where the phase changes, or when it shows that the move does not come to an end by itself. */
export class LineView implements View {
  readonly #terminal: Terminal;
  readonly #phases = new Map<string, string>();
  /** Moves of which it was said what keeps them from ending: once, since the figures in it change all the time. */
  readonly #warned = new Set<string>();
  readonly #vms = new Map<string, string>();
  readonly #clock: Clock;

  constructor(terminal: Terminal, clock: Clock) {
    this.#terminal = terminal;
    this.#clock = clock;
  }

  show(happening: Happening): void {
    if (happening.event === "migration") {
      const { migration, phase, result, detail } = happening.data;
      const warns = result === null && detail !== null && !this.#warned.has(migration);
      if (this.#phases.get(migration) === (result ?? phase) && !warns) return;
      if (result === null) this.#phases.set(migration, phase);
      else for (const each of [this.#phases, this.#warned]) each.delete(migration);
      if (warns) this.#warned.add(migration);
      this.#say(`${eventLine(happening)}${warns ? `  ${plain(detail)}` : ""}`);
      return;
    }
    const line = eventLine(happening);
    if (happening.event === "vm") {
      if (this.#vms.get(happening.data.vm) === line) return;
      this.#vms.set(happening.data.vm, line);
    }
    this.#say(line);
  }

  #say(line: string): void {
    this.#terminal.out(`${localTime(new Date(this.#clock.now()).toISOString())}  ${line}\n`);
  }

  ready(): void {
    // The lines so far are the state.
  }

  lost(error: CareofError): void {
    this.#terminal.err(`no contact, trying again: ${plain(error.message)}\n`);
  }

  close(): void {
    this.#phases.clear();
  }
}

/** What happened, in one line. */
export function eventLine({ event, data }: Happening): string {
  switch (event) {
    case "vm":
      return plain(`${data.vm} is ${data.state}${data.host === null ? "" : ` in care of ${data.host}`}${data.careOf === null ? "" : ` (${data.careOf})`}, epoch ${String(data.epoch)}`);
    case "host":
      return plain(`${data.name} is ${data.state}${data.draining ? ", draining" : ""}`);
    case "migration":
      return data.result === null
        ? progressLine(data)
        : plain(`${data.vm} ${data.from} → ${data.to}  ${data.result}${data.reason === null ? "" : ` (${data.reason})`}: paused ${measured(data.pauseMs)}, gap ${measured(data.gapDownMs)} down, ${measured(data.gapUpMs)} up${data.detail === null || data.detail === "" ? "" : `; ${data.detail}`}`);
    case "drain":
      return plain(data.state === "undrained" ? `${data.host} takes VMs again` : `drain of ${sumLine(data)}${data.state === "running" ? "" : ` (${data.state})`}`);
    case "alarm":
      return plain(`ALARM ${data.alarm}: ${data.vm}${data.hosts.length === 0 ? "" : ` (${data.hosts.join(", ")})`} ${data.detail}`);
  }
}
