import type { Clock, Timer } from "../model/clock.js";
import type { CareofError } from "../model/errors.js";
import { millis } from "../model/ids.js";
import { vmTable } from "./commands/vms.js";
import { progressLine } from "./migration-progress.js";
import { localTime, measured } from "./quantities.js";
import type { Happening, HostReply, MigrationReply, VmReply } from "./replies.js";
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

/** A line per event; progress only where the phase changes. */
export class LineView implements View {
  readonly #terminal: Terminal;
  readonly #phases = new Map<string, string>();
  readonly #vms = new Map<string, string>();
  readonly #clock: Clock;

  constructor(terminal: Terminal, clock: Clock) {
    this.#terminal = terminal;
    this.#clock = clock;
  }

  show(happening: Happening): void {
    if (happening.event === "migration") {
      const { migration, phase, result } = happening.data;
      if (this.#phases.get(migration) === (result ?? phase)) return;
      if (result === null) this.#phases.set(migration, phase);
      else this.#phases.delete(migration);
    }
    const line = eventLine(happening);
    if (happening.event === "vm") {
      if (this.#vms.get(happening.data.vm) === line) return;
      this.#vms.set(happening.data.vm, line);
    }
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
      return plain(`${data.name} is ${data.state}`);
    case "migration":
      return data.result === null
        ? progressLine(data)
        : plain(`${data.vm} ${data.from} → ${data.to}  ${data.result}${data.reason === null ? "" : ` (${data.reason})`}: paused ${measured(data.pauseMs)}, gap ${measured(data.gapDownMs)} down, ${measured(data.gapUpMs)} up`);
    case "alarm":
      return plain(`ALARM ${data.alarm}: ${data.vm}${data.hosts.length === 0 ? "" : ` (${data.hosts.join(", ")})`} ${data.detail}`);
  }
}

/** So often at most, and at least (ages grow), the screen is drawn. */
const DRAW_SOONEST = millis(100);
const DRAW_LATEST = millis(1000);
const KEPT_EVENTS = 8;
const ALTERNATE = "\u001b[?1049h\u001b[?25l";
const NORMAL = "\u001b[?25h\u001b[?1049l";
const HOME_AND_CLEAR = "\u001b[H\u001b[J";

/** The whole terminal, redrawn. */
export class ScreenView implements View {
  readonly #terminal: Terminal;
  readonly #clock: Clock;
  readonly #vms = new Map<string, VmReply>();
  readonly #hosts = new Map<string, HostReply>();
  readonly #moves = new Map<string, MigrationReply>();
  readonly #events: string[] = [];
  #trouble: string | null = null;
  /** What is shown is from before a break; the present state will take its place. */
  #outdated = false;
  #timer: Timer | null = null;
  #drawnAt = millis(0);
  #open = false;

  constructor(terminal: Terminal, clock: Clock) {
    this.#terminal = terminal;
    this.#clock = clock;
  }

  show(happening: Happening, present: boolean): void {
    if (this.#outdated) for (const each of [this.#vms, this.#hosts, this.#moves]) each.clear();
    this.#outdated = false;
    const before = happening.event === "vm" ? this.#vms.get(happening.data.vm) : undefined;
    this.#remember(happening);
    const progress = happening.event === "migration" && happening.data.result === null;
    const refreshed = happening.event === "vm" && before !== undefined && eventLine({ event: "vm", data: before }) === eventLine(happening);
    if (!present && !progress && !refreshed) {
      this.#events.push(`${localTime(new Date(this.#clock.now()).toISOString()).slice(11)}  ${eventLine(happening)}`);
      this.#events.splice(0, this.#events.length - KEPT_EVENTS);
    }
    if (this.#open) this.#drawSoon();
  }

  ready(): void {
    this.#trouble = null;
    this.#draw();
  }

  lost(error: CareofError): void {
    this.#trouble = plain(error.message);
    this.#outdated = true;
    this.#draw();
  }

  close(): void {
    this.#timer?.cancel();
    if (this.#open) this.#terminal.out(NORMAL);
    this.#open = false;
  }

  #remember(happening: Happening): void {
    switch (happening.event) {
      case "vm":
        this.#vms.set(happening.data.vm, happening.data);
        break;
      case "host":
        this.#hosts.set(happening.data.name, happening.data);
        break;
      case "migration":
        if (happening.data.result === null) this.#moves.set(happening.data.migration, happening.data);
        else this.#moves.delete(happening.data.migration);
        break;
      case "alarm":
        break;
    }
  }

  #drawSoon(): void {
    const due = Math.max(0, this.#drawnAt + DRAW_SOONEST - this.#clock.monotonic());
    this.#timer?.cancel();
    this.#timer = this.#clock.after("draw", millis(due), () => { this.#draw(); });
  }

  #draw(): void {
    this.#timer?.cancel();
    this.#drawnAt = this.#clock.monotonic();
    const columns = this.#terminal.columns ?? 80;
    const hosts = [...this.#hosts.values()].map((host) => `${plain(host.name)} ${host.state === "connected" ? "✓" : "gone"}`).join("   ");
    const lines = [
      `careof  ${hosts}`,
      "",
      ...vmTable([...this.#vms.values()], this.#clock.now(), columns).trimEnd().split("\n"),
      ...(this.#moves.size === 0 ? [] : ["", ...[...this.#moves.values()].map(progressLine)]),
      "",
      ...this.#events,
      ...(this.#trouble === null ? [] : ["", `no contact, trying again: ${this.#trouble}`]),
    ];
    this.#terminal.out(`${this.#open ? "" : ALTERNATE}${HOME_AND_CLEAR}${lines.map((line) => line.slice(0, columns)).join("\r\n")}`);
    this.#open = true;
    this.#timer = this.#clock.after("draw", DRAW_LATEST, () => { this.#draw(); });
  }
}
