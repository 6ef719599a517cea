import type { Clock } from "../model/clock.js";
import { CareofError, toCareofError } from "../model/errors.js";
import { vmId, type HostId, type VmId } from "../model/ids.js";
import type { ApiClient } from "./api-client.js";
import { onInterrupts } from "./interrupts.js";
import { follow } from "./migration-follower.js";
import { MovesProgress } from "./moves-progress.js";
import type { MigrationReply } from "./replies.js";
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

/** What became of one VM: its migration, or why none began. */
export type Moved = { readonly vm: VmId; readonly from: string | null; readonly view: MigrationReply; readonly error: null } | { readonly vm: VmId; readonly from: string | null; readonly view: null; readonly error: CareofError };

/**
 * Moves every VM, in the order of the configuration, a few at a time. Ctrl-C: no other begins; twice: those under way are cancelled.
 * @throws CareofError `left` when the third Ctrl-C stops watching, `home-agent-unreachable` when it stays away
 */
export async function moveAll({ api, clock, terminal, from, to, limit, begin }: MoveAllOptions): Promise<readonly Moved[]> {
  const vms = (await api.vms()).filter((vm) => vm.host !== null && vm.host !== to && vm.state !== "expired" && (from === null || vm.host === from));
  const progress = new MovesProgress(terminal, () => clock.monotonic());
  const over = new AbortController();
  const underWay = new Set<string>();
  const done: Moved[] = [];
  let stopped = false;
  const waiting = [...vms];
  const sum = (): void => { progress.sum(`${String(done.filter((each) => each.view?.result === "completed").length)} of ${String(vms.length)} moved to ${to}, ${String(underWay.size)} moving`); };
  const release = onInterrupts(terminal, {
    stop: () => {
      stopped = true;
      return Promise.resolve();
    },
    cancel: () => Promise.allSettled([...underWay].map((id) => api.cancel(id))),
    leave: () => { over.abort(); },
    say: (text) => { progress.say(text); },
  });
  const one = async (vm: VmId, host: string | null): Promise<Moved> => {
    if (stopped) return { vm, from: host, view: null, error: new CareofError("cancelled-by-operator", `${vm}: not begun`) };
    let begun: MigrationReply;
    try {
      begun = await begin(vm);
    } catch (thrown) {
      const error = toCareofError(thrown);
      progress.say(`${vm} stays on ${host ?? "?"}: ${plain(error.message)}`);
      return { vm, from: host, view: null, error };
    }
    underWay.add(begun.migration);
    progress.show(begun);
    sum();
    const view = await follow({
      api, clock, migration: begun.migration, signal: over.signal,
      onChange: (each) => { progress.show(each); },
      onLost: (error) => { progress.say(`${plain(error.message)}; the moves go on, trying again`); },
    });
    underWay.delete(begun.migration);
    return { vm, from: host, view, error: null };
  };
  const lane = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      done.push(await one(vmId(next.vm), next.host));
      sum();
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(limit, vms.length) }, lane));
    const order = new Map(vms.map((vm, i) => [vm.vm, i]));
    return done.sort((a, b) => (order.get(a.vm) ?? 0) - (order.get(b.vm) ?? 0));
  } finally {
    progress.clear();
    release();
  }
}
