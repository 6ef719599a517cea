import type { Command } from "commander";
import { toCareofError, type CareofError } from "../../model/errors.js";
import { millis, type HostId, type VmId } from "../../model/ids.js";
import type { ApiClient } from "../api-client.js";
import { client, hostArgument, operatorCommand, show, vmArgument, type Context, type OperatorOptions } from "../context.js";
import { follow } from "../migration-follower.js";
import { MigrationProgress } from "../migration-progress.js";
import { bytes, duration, measured } from "../quantities.js";
import type { MigrationReply } from "../replies.js";
import { plain } from "../terminal.js";

type MigrateOptions = OperatorOptions & { readonly wait: boolean };

/** Refusals that say something about the VM or the hosts; what else fails (nobody answers, nonsense) says nothing about the move. */
const NO_ANSWER = new Set(["home-agent-unreachable", "timed-out", "bad-reply", "left"]);

export function migrateCommand(context: Context): Command {
  return operatorCommand(
    "migrate",
    "move a running VM to another host, and say what that cost\n\nProgress goes to standard error, the result to standard output. Ctrl-C cancels the move, and the VM stays where it is; " +
      "a second Ctrl-C stops watching. Exit code 0 only when the move completed.",
    "  careof migrate web1 host-b\n  careof migrate web1 host-b --no-wait\n  careof migrate web1 host-b --output json 2>/dev/null | jq .pauseMs",
  )
    .summary("move a running VM to another host")
    .argument("<vm>", "name of the VM", vmArgument)
    .argument("<host>", "one of the hosts that the VM lists", hostArgument)
    .option("--no-wait", "return when the move has begun")
    .action(async (vm: VmId, host: HostId, options: MigrateOptions) => {
      const api = client(context, options);
      let begun: MigrationReply;
      try {
        begun = await api.migrate(vm, host);
      } catch (thrown) {
        const error = toCareofError(thrown);
        if (options.output === "json" && !NO_ANSWER.has(error.code)) context.terminal.out(`${JSON.stringify(refused(vm, host, error))}\n`);
        throw error;
      }
      if (!options.wait) {
        show(context, options, contract(begun), () => `${plain(`${begun.migration}: ${begun.vm} moves from ${begun.from} to ${begun.to}`)}; follow it with \`careof watch\`\n`);
        return;
      }
      const ended = begun.result === null ? await watched(context, api, begun) : begun;
      context.exitCode = ended.result === "completed" ? 0 : 1;
      show(context, options, contract(ended), () => outcome(ended));
    });
}

async function watched(context: Context, api: ApiClient, begun: MigrationReply): Promise<MigrationReply> {
  const progress = new MigrationProgress(context.terminal, () => context.clock.monotonic());
  const over = new AbortController();
  let cancelling: Promise<void> | null = null;
  const release = context.terminal.onInterrupt(() => {
    if (cancelling !== null) {
      over.abort();
      return;
    }
    progress.say(`cancelling ${begun.migration}; Ctrl-C again stops watching it`);
    cancelling = api.cancel(begun.migration).then(
      () => undefined,
      (thrown: unknown) => { progress.say(`it cannot be cancelled: ${plain(toCareofError(thrown).message)}`); },
    );
  });
  try {
    progress.show(begun);
    return await follow({
      api, clock: context.clock, migration: begun.migration, signal: over.signal,
      onChange: (view) => { progress.show(view); },
      onLost: (error) => { progress.say(`${plain(error.message)}; the move goes on, trying again`); },
    });
  } finally {
    progress.clear();
    release();
  }
}

/** What scripts rely on, in this order. */
function contract(view: MigrationReply): Record<string, unknown> {
  const { migration, vm, from, to, result, reason, totalMs, pauseMs, gapDownMs, gapUpMs, bytes: copied } = view;
  return { migration, vm, from, to, result, reason: reason ?? (result === "completed" ? "accepted" : reason), totalMs, pauseMs, gapDownMs, gapUpMs, bytes: copied };
}

function refused(vm: VmId, host: HostId, error: CareofError): Record<string, unknown> {
  return { migration: null, vm, from: null, to: host, result: "failed", reason: error.code, totalMs: null, pauseMs: null, gapDownMs: null, gapUpMs: null, bytes: null };
}

/** A queue that was too short is the operator's to lengthen. */
function lost(packets: number): string {
  return packets === 0 ? "" : `; ${String(packets)} packets were LOST: the queue of its port was full (ports.queueLength)`;
}

function outcome(view: MigrationReply): string {
  const took = view.totalMs === null ? "" : ` in ${duration(millis(view.totalMs))}`;
  const why = view.reason === null ? "" : ` (${view.reason})`;
  switch (view.result) {
    case "completed":
      return plain(`${view.vm} moved from ${view.from} to ${view.to}${took}: paused ${measured(view.pauseMs)}, gap down ${measured(view.gapDownMs)}, up ${measured(view.gapUpMs)}${view.bytes === null ? "" : `, ${bytes(view.bytes)}`}${lost(view.overflowed ?? 0)}`) + "\n";
    case "lost":
      return plain(`${view.vm} is LOST${why}: look on ${view.from} and ${view.to} where it is, then \`careof resolve ${view.vm} HOST\``) + "\n";
    case "cancelled":
      return plain(`${view.vm} was not moved: cancelled${took}; it runs on ${view.from}`) + "\n";
    case "failed":
    case null:
      return plain(`${view.vm} was not moved${why}; \`careof where ${view.vm}\` says where it runs`) + "\n";
  }
}
