import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { countedMoves } from "../../deploy/lab/counted.js";
import { Lab } from "../../deploy/lab/lab.js";
import { HOSTS, PLAN, type HostName } from "../../deploy/lab/plan.js";
import type { Traffic } from "../../deploy/lab/traffic.js";
import type { HandoverCase } from "./cases.js";
import type { Counted } from "./outcome.js";
import { PortDrops } from "./port-drops.js";

const gateSchema = z.object({ sinceMarkerMs: z.number().nullable() });
/** Of an agent's log, since a move's gate. */
const GATE_LINES = 300;
/** For what was sent last to arrive. */
const ARRIVAL_MS = 400;
/** Traffic that is counted before and after each move. */
export const MARGIN_MS = 2000;

/** Moves at a stretch, under one set of sessions. */
export interface Turn {
  readonly moves: number;
  /** Traffic that is counted before and after each move. */
  readonly marginMs: number;
  /** After the last move, before the idle session is used. */
  readonly idleMs: number;
  /** As `CountedSeries.shared`. */
  readonly shared: boolean;
}

/** The moves of one turn. */
export interface Turned {
  readonly counted: readonly Counted[];
  /** To be called once: resolves when so much time has passed since the last move as the turn wants, and the session that has been idle all the time was used. Whether every session lived. */
  readonly rest: () => Promise<boolean>;
}

/** Uses the session that has been idle all the time, and says whether every one lives. */
async function ended(traffic: Traffic): Promise<boolean> {
  await traffic.idle();
  return (await traffic.quit()).survived && traffic.broken.length === 0;
}

/** careof in the lab, with a guest that is moved to and fro. */
export class Moves {
  readonly #case: HandoverCase;
  readonly #lab: Lab;
  readonly #holds: string;
  readonly #drops: PortDrops;
  /** Of each move, in ms: from the marker's arrival to the opening of the gate; from there to the stop it is the hypervisor's turn. `null`: without a gate. */
  readonly gates: (number | null)[] = [];
  #at: HostName = "host-a";

  private constructor(of: HandoverCase, lab: Lab, holds: string) {
    this.#case = of;
    this.#lab = lab;
    this.#holds = holds;
    this.#drops = new PortDrops(`co-${PLAN.guest.name}`, HOSTS.map((host) => lab.part(host).pid));
  }

  static async open(of: HandoverCase): Promise<Moves> {
    const holds = mkdtempSync(join(tmpdir(), "careof-bench-"));
    mkdirSync(holds, { recursive: true, mode: 0o700 });
    // The agents inherit it; without a file in it nothing is held (agent/hold.ts).
    process.env["CAREOF_HOLD"] = of.pauseMs > 0 ? holds : "";
    const lab = await Lab.start({ wires: of.wires, ...(of.lead === false ? { homeAgent: { handover: { lead: false } } } : {}) });
    try {
      await lab.startGuest("host-a");
      return new Moves(of, lab, holds);
    } catch (thrown) {
      await lab.close();
      throw thrown;
    }
  }

  /** So many moves under one set of sessions. */
  async run({ moves, marginMs, idleMs, shared }: Turn, say: (counted: Counted) => void): Promise<Turned> {
    const { pps, bulkMbit } = this.#case;
    // Sessions of its own, so that nothing but them is left while the wait lasts; first, since the guest sends its numbered packets to whoever came last.
    const quiet = idleMs > 0 ? await this.#lab.traffic({ pps: 0, bulkMbit: 0 }) : null;
    const traffic = await this.#lab.traffic({ pps, bulkMbit });
    try {
      const counted: Counted[] = [];
      await countedMoves(traffic, { moves, marginMs, arrivalMs: ARRIVAL_MS + 4 * this.#case.delayMs, shared }, () => this.#move(), (one) => {
        const whole = { ...one, portDropped: this.#drops.between(one.window.t0, one.window.t1) };
        counted.push(whole);
        say(whole);
      });
      const survived = await ended(traffic);
      const since = performance.now();
      return { counted, rest: async () => { await sleep(Math.max(0, idleMs - (performance.now() - since))); return (quiet === null || await ended(quiet)) && survived; } };
    } finally {
      traffic.kill();
    }
  }

  async close(): Promise<void> {
    this.#drops.close();
    const left = await this.#lab.close();
    rmSync(this.#holds, { recursive: true, force: true });
    if (left.length > 0) process.stderr.write(`left over: ${left.join(", ")}\n`);
  }

  /** As the source's agent has logged it. */
  #gate(source: string, migration: string): number | null {
    const host = HOSTS.find((name) => name === source);
    const line = host === undefined ? undefined : this.#lab.part(host).tail(GATE_LINES).split("\n").reverse().find((text) => text.includes('"gate opened"') && text.includes(`"${migration}"`));
    return line === undefined ? null : gateSchema.parse(JSON.parse(line)).sinceMarkerMs;
  }

  async #move(): ReturnType<Lab["migrate"]> {
    const { pauseMs } = this.#case;
    const to: HostName = this.#at === "host-a" ? "host-b" : "host-a";
    const held = join(this.#holds, "grant");
    if (pauseMs > 0) writeFileSync(held, "");
    const moving = this.#lab.migrate(to, (line) => {
      // The source has released: the guest stands, and stands still for as long as the case wants.
      if (pauseMs > 0 && / released /.test(line)) setTimeout(() => { rmSync(held, { force: true }); }, pauseMs);
    });
    try {
      const move = await moving;
      this.#at = to;
      this.gates.push(this.#gate(move.from, move.migration));
      return move;
    } finally {
      rmSync(held, { force: true });
    }
  }
}
