import { millis, type Millis } from "../model/ids.js";
import { bytes, duration } from "./quantities.js";
import type { MigrationReply } from "./replies.js";
import { plain, type Terminal } from "./terminal.js";

/** Where lines are kept, one comes so often; a line that is drawn over may change at every event. */
const PERIOD = millis(1000);
const CLEAR = "\r\u001b[K";

/** One migration's progress on standard error: a live line on a terminal, else a line per phase and second. */
export class MigrationProgress {
  readonly #terminal: Terminal;
  readonly #now: () => Millis;
  #phase = "";
  #saidAt = millis(0);
  #drawn = false;
  #warned = false;

  constructor(terminal: Terminal, now: () => Millis) {
    this.#terminal = terminal;
    this.#now = now;
  }

  show(view: MigrationReply): void {
    this.#warn(view);
    const line = progressLine(view);
    if (this.#terminal.errIsLive) {
      const columns = this.#terminal.errColumns ?? 80;
      this.#terminal.err(`${CLEAR}${line.slice(0, columns - 1)}`);
      this.#drawn = true;
      return;
    }
    const now = this.#now();
    if (view.phase === this.#phase && now - this.#saidAt < PERIOD) return;
    this.#phase = view.phase;
    this.#saidAt = now;
    this.#terminal.err(`${line}\n`);
  }

  /** Once: the figures in it change all the time, and stand in the line as well. */
  #warn({ detail, result }: MigrationReply): void {
    if (this.#warned || detail === null || result !== null) return;
    this.#warned = true;
    this.say(plain(detail));
  }

  /** A line that stays. */
  say(text: string): void {
    this.clear();
    this.#terminal.err(`${text}\n`);
  }

  clear(): void {
    if (this.#drawn) this.#terminal.err(CLEAR);
    this.#drawn = false;
  }
}

/** `web1 host-a → host-b  copy  34%  112 MB left  95 MB/s  pass 2  2.3 s left`, in at most 80 columns for ordinary names. */
export function progressLine(view: MigrationReply): string {
  const parts = [`${view.vm} ${view.from} → ${view.to}`, view.result ?? view.phase];
  const { progress } = view;
  // The disks come first; while they are copied nothing of the memory is.
  if (progress !== null && progress.total === 0 && progress.diskTotal > 0 && view.result === null) {
    const left = Math.max(0, progress.diskTotal - progress.diskCopied);
    parts.push(howFar(view), `${bytes(left)} left`);
    if (progress.diskBytesPerSecond > 0) parts.push(`${bytes(progress.diskBytesPerSecond)}/s`);
    if (progress.diskBytesPerSecond > 0 && left > 0) parts.push(timeLeft(left, progress.diskBytesPerSecond));
  }
  if (progress !== null && progress.total > 0 && view.result === null) {
    parts.push(howFar(view), `${bytes(progress.remaining)} left`);
    if (progress.bytesPerSecond > 0) parts.push(`${bytes(progress.bytesPerSecond)}/s`);
    if (progress.passes > 0) parts.push(`pass ${String(progress.passes)}`);
    if (view.detail !== null) parts.push(`writes ${bytes(progress.dirtyBytesPerSecond)}/s${progress.throttlePercent > 0 ? `, held back ${String(progress.throttlePercent)}%` : ""}`);
    else if (progress.bytesPerSecond > 0 && progress.remaining > 0) parts.push(timeLeft(progress.remaining, progress.bytesPerSecond));
  }
  return plain(parts.join("  "));
}

/** `34%`, `disks 12%`; the phase, where nothing is counted. */
export function howFar({ phase, progress }: MigrationReply): string {
  if (progress === null) return phase;
  // Pages that the guest dirties are sent again: what remains says how far it is, what was sent does not.
  if (progress.total > 0) return percent(progress.remaining, progress.total);
  return progress.diskTotal > 0 ? `disks ${percent(progress.diskTotal - progress.diskCopied, progress.diskTotal)}` : phase;
}

function percent(left: number, total: number): string {
  return `${(Math.min(1, Math.max(0, 1 - left / total)) * 100).toFixed(0)}%`;
}

function timeLeft(count: number, perSecond: number): string {
  return `${duration((count / perSecond) * 1000)} left`;
}
