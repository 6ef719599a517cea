import type { Clock, Timer } from "../model/clock.js";
import type { CareofError } from "../model/errors.js";
import { millis } from "../model/ids.js";
import { localTime } from "./quantities.js";
import type { Happening, HostReply, MigrationReply, VmReply } from "./replies.js";
import { plain, type Terminal } from "./terminal.js";
import { layout } from "./watch-layout.js";
import { eventLine, type View } from "./watch-views.js";

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
      case "drain":
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
    const { columns, rows } = this.#terminal;
    const lines = layout({
      hosts: [...this.#hosts.values()], vms: [...this.#vms.values()], moves: [...this.#moves.values()], events: this.#events, trouble: this.#trouble, now: this.#clock.now(),
    }, { columns: columns ?? 80, rows: rows ?? Number.POSITIVE_INFINITY });
    this.#terminal.out(`${this.#open ? "" : ALTERNATE}${HOME_AND_CLEAR}${lines.join("\r\n")}`);
    this.#open = true;
    this.#timer = this.#clock.after("draw", DRAW_LATEST, () => { this.#draw(); });
  }
}
