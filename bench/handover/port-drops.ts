import { readFileSync } from "node:fs";

/** So often the counters are read, in ms: a port is removed with its counter some 100 ms after its guest has left. */
const EVERY_MS = 20;

/** CLOCK_MONOTONIC, in ms, as the windows have it. */
function monotonic(): number {
  return Number(process.hrtime.bigint() / 1000n) / 1000;
}

/** `name: 8 numbers of what was received, 8 of what was sent`; of the latter the fourth is what the device dropped. 0 where the interface is not. */
export function droppedAt(port: string, table: string): number {
  const line = table.split("\n").map((text) => text.trim()).find((text) => text.startsWith(`${port}:`));
  const dropped = line?.slice(port.length + 1).trim().split(/\s+/)[11];
  return dropped === undefined ? 0 : Number(dropped);
}

/** What the kernel counts as dropped at a port that comes and goes on several hosts, by the time at which it was dropped. */
export class PortDrops {
  readonly #tables: readonly string[];
  readonly #port: string;
  readonly #seen = new Map<string, number>();
  /** Dropped after one look and before the next. */
  readonly #steps: { readonly after: number; readonly before: number; readonly dropped: number }[] = [];
  readonly #timer: NodeJS.Timeout;
  #lookedAt = monotonic();

  /** @param processes one in each host's network namespace */
  constructor(port: string, processes: readonly number[]) {
    this.#port = port;
    this.#tables = processes.map((pid) => `/proc/${String(pid)}/net/dev`);
    this.#look();
    this.#timer = setInterval(() => { this.#look(); }, EVERY_MS);
  }

  /** From `t0` to `t1`, CLOCK_MONOTONIC milliseconds in the past: what may have been dropped then, as it was seen later, and on a busy machine much later. */
  between(t0: number, t1: number): number {
    this.#look();
    return this.#steps.reduce((sum, { after, before, dropped }) => sum + (before >= t0 && after <= t1 ? dropped : 0), 0);
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #look(): void {
    const after = this.#lookedAt;
    this.#lookedAt = monotonic();
    for (const table of this.#tables) {
      const now = droppedAt(this.#port, tableOf(table));
      // Less than before: the port was made anew, and its counter with it.
      const before = this.#seen.get(table) ?? 0;
      const dropped = now < before ? now : now - before;
      if (dropped > 0) this.#steps.push({ after, before: monotonic(), dropped });
      this.#seen.set(table, now);
    }
  }
}

/** Empty when the process is gone: whoever ended it says so. */
function tableOf(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
}
