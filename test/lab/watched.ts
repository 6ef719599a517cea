import type { Test } from "tap";
import { z } from "zod";
import { happening, type DrainSummaryReply, type Happening, type MigrationReply, type VmReply } from "../../cli/replies.js";
import type { Lab } from "../../deploy/lab/lab.js";
import { Running } from "./running.js";

const lineSchema = z.object({ event: z.string(), data: z.unknown() });

/** What `careof watch --output json` tells, as it happens. */
export class Watched {
  readonly #running: Running;

  private constructor(running: Running) {
    this.#running = running;
  }

  /** Resolves when the present state is told: nothing is missed from then on. */
  static async start(t: Pick<Test, "teardown">, lab: Lab): Promise<Watched> {
    const watched = new Watched(Running.piped(t, lab, ["watch", "--output", "json"]));
    await lab.until("watch tells the present state", 60_000, () => Promise.resolve(watched.vms.length > 0));
    return watched;
  }

  /** In order. @throws ZodError for a line that is not as it is promised */
  get told(): readonly Happening[] {
    return this.#running.lines.flatMap((line) => {
      const { event, data } = lineSchema.parse(JSON.parse(line));
      const told = happening(event, data);
      return told === null ? [] : [told];
    });
  }

  get vms(): readonly VmReply[] {
    return this.told.flatMap((each) => (each.event === "vm" ? [each.data] : []));
  }

  get drains(): readonly DrainSummaryReply[] {
    return this.told.flatMap((each) => (each.event === "drain" ? [each.data] : []));
  }

  get moves(): readonly MigrationReply[] {
    return this.told.flatMap((each) => (each.event === "migration" ? [each.data] : []));
  }

  /** Ctrl-C. Returns its exit code. */
  async end(): Promise<number | null> {
    this.#running.interrupt();
    return this.#running.ended;
  }
}

/** What one move went through: its phases, and then its result, each once. */
export function wayOf(moves: readonly MigrationReply[], migration: string): readonly string[] {
  const words = moves.filter((each) => each.migration === migration).map(({ phase, result }) => result ?? phase);
  return words.filter((word, at) => word !== words[at - 1]);
}

/** How many moves were under way at once, at most: each from the first that is heard of it to its result. */
export function mostAtOnce(moves: readonly MigrationReply[]): number {
  const under = new Set<string>();
  return moves.reduce((most, { migration, result }) => {
    if (result === null) under.add(migration);
    else under.delete(migration);
    return Math.max(most, under.size);
  }, 0);
}
