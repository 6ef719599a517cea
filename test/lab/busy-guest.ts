import type { Test } from "tap";
import { z } from "zod";
import { Lab } from "../../deploy/lab/lab.js";
import { PLAN, type HostName } from "../../deploy/lab/plan.js";
import type { Traffic } from "../../deploy/lab/traffic.js";
import { Witness } from "../../deploy/lab/witness.js";

/** For what follows by itself. */
const FOLLOWS_MS = 60_000;

const moveSchema = z.object({ migration: z.string(), result: z.string(), reason: z.string(), totalMs: z.number().nullable(), pauseMs: z.number().nullable(), bytes: z.number().nullable(), detail: z.string().nullable() });

export interface Moved {
  readonly move: z.infer<typeof moveSchema>;
  /** On standard error, while it lasted. */
  readonly said: string;
}

/** A lab whose guest writes to its memory as fast as it can, under traffic, and is moved to and fro. */
export class BusyGuest {
  readonly lab: Lab;
  readonly witness: Witness;
  readonly traffic: Traffic;
  #at: HostName = "host-a";

  private constructor(lab: Lab, witness: Witness, traffic: Traffic) {
    this.lab = lab;
    this.witness = witness;
    this.traffic = traffic;
  }

  static async start(t: Pick<Test, "teardown">, dirtyMb: number): Promise<BusyGuest> {
    const lab = await Lab.start({ witnessed: true, dirtyMb });
    const witness = new Witness(lab);
    t.teardown(async () => {
      witness.close();
      await lab.close();
    });
    await lab.startGuest("host-a");
    return new BusyGuest(lab, witness, await lab.traffic({ pps: 200, bulkMbit: 0 }));
  }

  get at(): HostName {
    return this.#at;
  }

  get other(): HostName {
    return this.#at === "host-a" ? "host-b" : "host-a";
  }

  /** Moves it to the other host, and checks what holds however it ends. */
  async move(t: Test, words: readonly string[], result: "completed" | "failed", limitMs: number): Promise<Moved> {
    const to = this.other;
    const ran = await this.lab.careof(["migrate", PLAN.guest.name, to, "--output", "json", ...words], limitMs);
    const found = moveSchema.parse(JSON.parse(ran.stdout));
    t.comment(`${words.join(" ")}: ${ran.stdout.trim()}`);
    t.equal(found.result, result);
    t.equal(ran.code, result === "completed" ? 0 : 1);
    if (found.result === "completed") this.#at = to;
    t.match(await this.lab.where(), { state: "bound", host: this.#at });
    await this.lab.until("it runs there alone", FOLLOWS_MS, () => Promise.resolve(this.witness.running().join() === this.#at));
    t.strictSame(this.witness.doubles(), [], "the guest never ran twice");
    t.strictSame(this.traffic.broken, [], "no session broke");
    return { move: found, said: ran.stderr };
  }

  /** It was one guest all the time; ends the lab. */
  async wasOne(t: Test): Promise<void> {
    await this.traffic.idle();
    t.equal((await this.traffic.quit()).survived, true);
    t.strictSame(await this.lab.close(), []);
  }
}
