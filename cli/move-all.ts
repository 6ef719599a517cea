import type { Clock } from "../model/clock.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { vmId, type HostId, type VmId } from "../model/ids.js";
import { NO_ANSWER, type ApiClient } from "./api-client.js";
import { onInterrupts } from "./interrupts.js";
import { begunMove, lostSight } from "./lost-sight.js";
import { follow } from "./migration-follower.js";
import { MovesProgress } from "./moves-progress.js";
import type { MigrationReply, VmReply } from "./replies.js";
import { plain, type Terminal } from "./terminal.js";

export interface MoveAllOptions {
  readonly api: ApiClient;
  readonly clock: Clock;
  readonly terminal: Terminal;
  /** Only VMs of this host; `null` for all that run. */
  readonly from: HostId | null;
  readonly to: HostId;
  /** Moves at once. */
  readonly limit: number;
  readonly begin: (vm: VmId) => Promise<MigrationReply>;
}

/**
 * What became of one VM. `ended`: its migration, which has a result. `there`: there was nothing to do. `refused`: no migration began. `unknown`: one may go on, of which nothing more was heard; `view` is the
 * last that was.
 */
export type Moved = { readonly vm: VmId; readonly from: string | null } & (
  | { readonly outcome: "ended"; readonly view: MigrationReply }
  | { readonly outcome: "there" }
  | { readonly outcome: "refused"; readonly error: CareofError }
  | { readonly outcome: "unknown"; readonly view: MigrationReply | null; readonly error: CareofError }
);

/**
 * Moves every VM, in the order of the configuration, a few at a time. Ctrl-C: no other begins; twice: those under way are cancelled; three times: nobody watches any more. Whatever happens on the way, every VM has its result.
 * @throws CareofError when the VMs cannot even be listed
 */
export async function moveAll(options: MoveAllOptions): Promise<readonly Moved[]> {
  const { from, to } = options;
  const vms = (await options.api.vms()).filter((vm) => vm.host !== null && vm.state !== "expired" && (from === null || vm.host === from));
  return new MoveAll(options, vms.map(({ vm, host }) => ({ vm: vmId(vm), host, there: host === to }))).run();
}

interface Listed {
  readonly vm: VmId;
  readonly host: VmReply["host"];
  readonly there: boolean;
}

class MoveAll {
  readonly #options: MoveAllOptions;
  readonly #vms: readonly Listed[];
  readonly #progress: MovesProgress;
  readonly #over = new AbortController();
  readonly #underWay = new Set<string>();
  readonly #done = new Map<VmId, Moved>();
  /** Why no other VM begins to move. */
  #stopped: CareofError | null = null;
  #cancelling = false;

  constructor(options: MoveAllOptions, vms: readonly Listed[]) {
    this.#options = options;
    this.#vms = vms;
    this.#progress = new MovesProgress(options.terminal, () => options.clock.monotonic());
  }

  async run(): Promise<readonly Moved[]> {
    const { api, terminal, limit } = this.#options;
    const release = onInterrupts(terminal, {
      stop: () => {
        this.#stopped ??= new CareofError("cancelled-by-operator", "not begun");
        return Promise.resolve();
      },
      cancel: () => {
        this.#cancelling = true;
        return Promise.allSettled([...this.#underWay].map((id) => api.cancel(id)));
      },
      leave: () => { this.#over.abort(); },
      say: (text) => { this.#progress.say(text); },
    });
    const waiting = [...this.#vms];
    const lane = async (): Promise<void> => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
        this.#done.set(next.vm, await this.#one(next));
        this.#sum();
      }
    };
    try {
      await Promise.all(Array.from({ length: Math.min(limit, this.#vms.length) }, lane));
      return this.#vms.flatMap(({ vm }) => this.#done.get(vm) ?? []);
    } finally {
      this.#progress.clear();
      release();
    }
  }

  async #one({ vm, host: from, there }: Listed): Promise<Moved> {
    if (there) return { vm, from, outcome: "there" };
    if (this.#stopped !== null) return { vm, from, outcome: "refused", error: this.#stopped };
    let begun: MigrationReply;
    try {
      begun = await begunMove(this.#options.api, vm, this.#options.to, () => this.#options.begin(vm));
    } catch (thrown) {
      const error = toCareofError(thrown);
      // It came there by somebody else's doing since the list was made.
      if (error.code === "already-here") return { vm, from, outcome: "there" };
      this.#progress.say(NO_ANSWER.has(error.code) ? `${vm}: ${plain(error.message)}` : `${vm} stays on ${from ?? "?"}: ${plain(error.message)}`);
      return NO_ANSWER.has(error.code) ? { vm, from, outcome: "unknown", view: null, error } : { vm, from, outcome: "refused", error };
    }
    return this.#follow(vm, from, begun);
  }

  async #follow(vm: VmId, from: string | null, begun: MigrationReply): Promise<Moved> {
    const { api, clock } = this.#options;
    const { migration } = begun;
    let last = begun;
    this.#underWay.add(migration);
    this.#progress.show(begun);
    this.#sum();
    try {
      // He who has asked for all of them to be cancelled means this one too.
      if (this.#cancelling) await api.cancel(migration).catch((thrown: unknown) => { this.#progress.say(`${migration} was not cancelled: ${plain(toCareofError(thrown).message)}`); });
      const view = await follow({
        api, clock, migration, signal: this.#over.signal,
        onChange: (each) => {
          last = each;
          this.#progress.show(each);
        },
        onLost: (error) => { this.#progress.say(`${plain(error.message)}; the moves go on, trying again`); },
      });
      return { vm, from, outcome: "ended", view };
    } catch (thrown) {
      const error = toCareofError(thrown);
      this.#progress.say(`${migration}: ${plain(error.message)}`);
      if (error.code !== "unknown-migration") this.#stopped ??= error;
      return { vm, from, ...await lostSight(api, vm, last, error) };
    } finally {
      this.#underWay.delete(migration);
    }
  }

  #sum(): void {
    const wanted = this.#vms.filter(({ there }) => !there).length;
    const moved = [...this.#done.values()].filter((each) => each.outcome === "ended" && each.view.result === "completed").length;
    this.#progress.sum(`${String(moved)} of ${String(wanted)} moved to ${this.#options.to}, ${String(this.#underWay.size)} moving`);
  }
}
