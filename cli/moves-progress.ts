import { millis, type Millis } from "../model/ids.js";
import { duration, measured } from "./quantities.js";
import type { MigrationReply } from "./replies.js";
import { plain, type Terminal } from "./terminal.js";

/** Where lines are kept, the sum comes so often at most. */
const PERIOD = millis(2000);
const CLEAR = "\r\u001b[K";

/** Several moves on standard error: a line for each that has ended, and the sum of them; on a terminal that one is drawn over and names those under way. */
export class MovesProgress {
  readonly #terminal: Terminal;
  readonly #now: () => Millis;
  readonly #moving = new Map<string, MigrationReply>();
  readonly #ended = new Set<string>();
  #sum = "";
  #said = "";
  #saidAt: Millis | null = null;
  #drawn = false;

  constructor(terminal: Terminal, now: () => Millis) {
    this.#terminal = terminal;
    this.#now = now;
  }

  show(view: MigrationReply): void {
    if (this.#ended.has(view.migration)) return;
    if (view.result === null) this.#moving.set(view.migration, view);
    else {
      this.#moving.delete(view.migration);
      this.#ended.add(view.migration);
      this.say(endLine(view));
    }
    this.#draw();
  }

  /** `host-a: 3 of 20 moved, 2 moving`. */
  sum(text: string): void {
    this.#sum = plain(text);
    this.#draw();
  }

  /** A line that stays. */
  say(text: string): void {
    this.clear();
    this.#terminal.err(`${plain(text)}\n`);
  }

  clear(): void {
    if (this.#drawn) this.#terminal.err(CLEAR);
    this.#drawn = false;
  }

  #draw(): void {
    if (this.#sum === "") return;
    if (this.#terminal.errIsLive) {
      const line = [this.#sum, ...[...this.#moving.values()].map(underWay)].join("  ");
      this.#terminal.err(`${CLEAR}${line.slice(0, (this.#terminal.columns ?? 80) - 1)}`);
      this.#drawn = true;
      return;
    }
    const now = this.#now();
    if (this.#sum === this.#said || (this.#saidAt !== null && now - this.#saidAt < PERIOD)) return;
    this.#said = this.#sum;
    this.#saidAt = now;
    this.#terminal.err(`${this.#sum}\n`);
  }
}

/** `web1 → host-b 34%`. */
function underWay({ vm, to, phase, progress }: MigrationReply): string {
  const share = phase !== "copy" || progress === null || progress.total <= 0 ? phase : `${(Math.min(1, Math.max(0, 1 - progress.remaining / progress.total)) * 100).toFixed(0)}%`;
  return plain(`${vm} → ${to} ${share}`);
}

function endLine({ vm, from, to, result, reason, totalMs, pauseMs }: MigrationReply): string {
  if (result === "completed") return `${vm} → ${to}${totalMs === null ? "" : `  ${duration(totalMs)}`}, paused ${measured(pauseMs)}`;
  if (result === "lost") return `${vm} is LOST (${reason ?? "?"}): look on ${from} and ${to}`;
  return `${vm} stays on ${from}: ${reason ?? result ?? "?"}`;
}
