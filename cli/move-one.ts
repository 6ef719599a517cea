import type { Clock } from "../model/clock.js";
import { CareofError, toCareofError } from "../model/errors.js";
import type { HostId, VmId } from "../model/ids.js";
import type { ApiClient } from "./api-client.js";
import { begunMove, lostSight, type Sighted } from "./lost-sight.js";
import { follow } from "./migration-follower.js";
import { MigrationProgress } from "./migration-progress.js";
import type { MigrationReply } from "./replies.js";
import { plain, type Terminal } from "./terminal.js";

export interface MoveOneOptions {
  readonly api: ApiClient;
  readonly clock: Clock;
  readonly terminal: Terminal;
  readonly vm: VmId;
  readonly to: HostId;
  readonly begin: () => Promise<MigrationReply>;
}

/**
 * Moves one VM and follows it to its end. Ctrl-C cancels the move, as soon as it has begun where that is still being waited for; twice: nobody watches any more.
 * @throws CareofError the refusal, or a code of `NO_ANSWER` when it is not known whether it has begun
 */
export async function moveOne(options: MoveOneOptions): Promise<Sighted> {
  const { api, terminal, clock, vm } = options;
  const progress = new MigrationProgress(terminal, () => clock.monotonic());
  const over = new AbortController();
  let begun: MigrationReply | null = null;
  const cancelled = new AbortController();
  const cancel = ({ migration }: MigrationReply): void => {
    progress.say(`cancelling ${migration}; Ctrl-C again stops watching it`);
    api.cancel(migration).catch((thrown: unknown) => { progress.say(`it cannot be cancelled: ${plain(toCareofError(thrown).message)}`); });
  };
  const release = terminal.onInterrupt(() => {
    if (cancelled.signal.aborted) {
      over.abort();
      return;
    }
    cancelled.abort();
    if (begun === null) progress.say(`the move of ${vm} is cancelled as soon as it has begun; Ctrl-C again stops waiting for that`);
    else cancel(begun);
  });
  try {
    const first = await Promise.race([begunMove(api, vm, options.to, options.begin), left(over.signal, vm)]);
    begun = first;
    if (first.result !== null) return { outcome: "ended", view: first };
    if (cancelled.signal.aborted) cancel(first);
    return await followed(options, first, progress, over.signal);
  } finally {
    progress.clear();
    release();
  }
}

/** Rejects when `signal` aborts. */
function left(signal: AbortSignal, vm: VmId): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener("abort", () => { reject(new CareofError("left", `nobody waits any more for whether the move of ${vm} has begun`)); }, { once: true });
  });
}

async function followed({ api, clock, vm }: MoveOneOptions, begun: MigrationReply, progress: MigrationProgress, signal: AbortSignal): Promise<Sighted> {
  let last = begun;
  progress.show(begun);
  try {
    const view = await follow({
      api, clock, migration: begun.migration, signal,
      onChange: (each) => {
        last = each;
        progress.show(each);
      },
      onLost: (error) => { progress.say(`${plain(error.message)}; the move goes on, trying again`); },
    });
    return { outcome: "ended", view };
  } catch (thrown) {
    return await lostSight(api, vm, last, toCareofError(thrown));
  }
}
