import { millis, type Millis } from "../model/ids.js";
import { howFar, progressLine } from "./migration-progress.js";
import { duration, measured } from "./quantities.js";
import type { MigrationReply } from "./replies.js";
import { plain, type Terminal } from "./terminal.js";

/** Where lines are kept, the sum comes so often at most. */
const PERIOD = millis(2000);
/** And a move that takes longer says after so long each time how far it is. */
const MOVE_PERIOD = millis(10_000);
const CLEAR = "\r\u001b[K";

/**
 * Several moves on standard error: a line for each that has ended or does not converge, and the sum of them; on a terminal that one is drawn over and names those under way, where lines are kept
 * each of these that takes long has its own.
 */
export class MovesProgress {
  readonly #terminal: Terminal;
  readonly #now: () => Millis;
  readonly #moving = new Map<string, MigrationReply>();
  readonly #ended = new Set<string>();
  /** Of which it was said what keeps them from ending. */
  readonly #warned = new Set<string>();
  readonly #toldAt = new Map<string, Millis>();
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
    if (view.result === null) {
      this.#moving.set(view.migration, view);
      this.#warn(view);
      this.#tell(view);
    } else {
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

  /** Once: the figures in it change all the time. */
  #warn({ migration, vm, to, detail }: MigrationReply): void {
    if (detail === null || this.#warned.has(migration)) return;
    this.#warned.add(migration);
    this.say(`${vm} → ${to}: ${detail}`);
  }

  #tell(view: MigrationReply): void {
    if (this.#terminal.errIsLive) return;
    const now = this.#now();
    const before = this.#toldAt.get(view.migration);
    if (before !== undefined && now - before < MOVE_PERIOD) return;
    this.#toldAt.set(view.migration, now);
    if (before !== undefined) this.say(progressLine(view));
  }

  #draw(): void {
    if (this.#sum === "") return;
    if (this.#terminal.errIsLive) {
      const line = [this.#sum, ...[...this.#moving.values()].map(underWay)].join("  ");
      this.#terminal.err(`${CLEAR}${line.slice(0, (this.#terminal.errColumns ?? 80) - 1)}`);
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

/** `web1 → host-b 34%`, `web1 → host-b disks 12%`. */
function underWay(view: MigrationReply): string {
  return plain(`${view.vm} → ${view.to} ${view.phase === "copy" ? howFar(view) : view.phase}`);
}

function endLine({ vm, from, to, result, reason, totalMs, pauseMs, detail }: MigrationReply): string {
  const why = detail === null || detail === "" ? "" : `; ${detail}`;
  if (result === "completed") return `${vm} → ${to}${totalMs === null ? "" : `  ${duration(totalMs)}`}, paused ${measured(pauseMs)}${why}`;
  if (result === "lost") return `${vm} is LOST (${reason ?? "?"}): look on ${from} and ${to}${why}`;
  return `${vm} stays on ${from}: ${reason ?? result ?? "?"}${why}`;
}
