import { Option, type Command } from "commander";
import { toCareofError, type CareofError } from "../../model/errors.js";
import { millis, type HostId, type VmId } from "../../model/ids.js";
import { NO_ANSWER, type ApiClient } from "../api-client.js";
import { client, hostArgument, operatorCommand, show, vmArgument, type Context, type OperatorOptions } from "../context.js";
import { begunMove } from "../lost-sight.js";
import { moveAll, type Moved } from "../move-all.js";
import { moveOne } from "../move-one.js";
import { moveWishes, withMoveOptions, type MoveOptions } from "../move-options.js";
import { bytes, duration, measured } from "../quantities.js";
import type { MigrationReply } from "../replies.js";
import { plain } from "../terminal.js";
import { limitOption } from "./drain.js";

type MigrateOptions = OperatorOptions & MoveOptions & { readonly wait: boolean; readonly all: boolean; readonly from?: HostId; readonly limit?: number };

/** Moves at once with --all. */
const DEFAULT_LIMIT = 2;

export function migrateCommand(context: Context): Command {
  return withMoveOptions(operatorCommand(
    "migrate",
    "move a running VM to another host, and say what that cost\n\nProgress goes to standard error, the result to standard output. Ctrl-C cancels the move, and the VM stays where it is; " +
      "a second Ctrl-C stops watching. Exit code 0 only when the move completed.\n\nA guest that writes faster than is copied is never done: progress says so, and what would help. Options that are not given are as " +
      "the home agent's configuration has them (handover).\n\nWith --all every running VM moves to the host, with --from every VM of one host, a few at a time. Unlike `careof drain` it lets the " +
      "host that was left take other VMs, and it needs this command until the end: Ctrl-C begins no other move, a second one cancels those under way. Exit code 0 only when all completed.",
    "  careof migrate web1 host-b\n  careof migrate web1 host-b --no-wait\n  careof migrate web1 host-b --bandwidth 50M --timeout 120 --on-timeout force\n  careof migrate web1 host-b --auto-converge --channels 4\n" +
    "  careof migrate web1 host-b --output json 2>/dev/null | jq .pauseMs\n  careof migrate --all --from host-a host-b\n  careof migrate --all host-b",
  )
    .summary("move a running VM to another host")
    .usage("[options] <vm> <host>\n       careof migrate [options] --all [--from <host>] <host>")
    .argument("[vm]", "name of the VM", vmArgument)
    .argument("[host]", "one of the hosts that the VM lists", hostArgument)
    .option("--no-wait", "return when the move has begun")
    .option("--all", "move every running VM", false)
    .addOption(new Option("--from <host>", "with --all: only the VMs of this host").argParser(hostArgument))
    .addOption(limitOption(`with --all: VMs that move at a time (default: ${String(DEFAULT_LIMIT)})`)))
    .action(async (first: VmId | undefined, second: HostId | undefined, options: MigrateOptions, command: Command) => {
      const api = client(context, options);
      const wrong = misuse(first, second, options);
      if (wrong !== null) command.error(`error: ${wrong}`, { exitCode: 2 });
      if (first === undefined || second === undefined) {
        await every(context, api, hostArgument(first ?? ""), options);
        return;
      }
      await one(context, api, first, second, options);
    });
}

function misuse(vm: VmId | undefined, host: HostId | undefined, { all, from, limit, wait }: MigrateOptions): string | null {
  if (vm === undefined) return all ? "missing required argument 'host'" : "missing required argument 'vm'";
  if (!all && host === undefined) return "missing required argument 'host'";
  if (!all && from !== undefined) return "--from goes with --all";
  if (!all && limit !== undefined) return "--limit goes with --all";
  if (all && host !== undefined) return "with --all only the host is named, to which they move";
  if (all && from !== undefined && vm === vmArgument(from)) return "--from names the host to which they would move";
  return all && !wait ? "--all needs this command until the end: --no-wait does not go with it; `careof drain` does" : null;
}

async function one(context: Context, api: ApiClient, vm: VmId, host: HostId, options: MigrateOptions): Promise<void> {
  const begin = (): Promise<MigrationReply> => api.migrate(vm, host, moveWishes(options));
  if (!options.wait) {
    const begun = await begunMove(api, vm, host, begin).catch((thrown: unknown) => { throw notBegun(context, options, vm, host, toCareofError(thrown)); });
    show(context, options, contract(begun), () => `${plain(`${begun.migration}: ${begun.vm} moves from ${begun.from} to ${begun.to}`)}; follow it with \`careof watch\`\n`);
    return;
  }
  const { clock, terminal } = context;
  const end = await moveOne({ api, clock, terminal, vm, to: host, begin }).catch((thrown: unknown) => { throw notBegun(context, options, vm, host, toCareofError(thrown)); });
  if (end.outcome === "unknown") throw unended(context, options, host, { vm, from: end.view.from, ...end });
  const { view } = end;
  context.exitCode = view.result === "completed" ? 0 : 1;
  show(context, options, contract(view), () => outcome(view));
}

function notBegun(context: Context, options: MigrateOptions, vm: VmId, host: HostId, error: CareofError): CareofError {
  return unended(context, options, host, NO_ANSWER.has(error.code) ? { vm, from: null, outcome: "unknown", view: null, error } : { vm, from: null, outcome: "refused", error });
}

/** Of a move that has no end here, a program is told all the same: one that may have begun is not one that failed. People read it on standard error. Returns what is to be thrown. */
function unended(context: Context, options: MigrateOptions, host: HostId, moved: Moved & { readonly outcome: "refused" | "unknown" }): CareofError {
  if (options.output === "json") context.terminal.out(`${JSON.stringify(result(moved, host))}\n`);
  return moved.error;
}

async function every(context: Context, api: ApiClient, to: HostId, options: MigrateOptions): Promise<void> {
  const { terminal, clock } = context;
  const from = options.from ?? null;
  const moved = await moveAll({ api, clock, terminal, from, to, limit: options.limit ?? DEFAULT_LIMIT, begin: (vm) => api.migrate(vm, to, moveWishes(options)) });
  const there = moved.filter(({ outcome }) => outcome === "there").length;
  const done = moved.filter(completed).length;
  context.exitCode = done + there === moved.length ? 0 : 1;
  show(context, options, moved.map((each) => result(each, to)), () => {
    if (moved.length === there) return plain(from === null ? `no VM runs elsewhere than on ${to}` : `no VM runs on ${from}`) + "\n";
    const sum = `${String(done)} of ${String(moved.length - there)} VMs moved to ${to}${there === 0 ? "" : `, ${String(there)} ${there === 1 ? "was" : "were"} there already`}`;
    return [sum, ...moved.filter((each) => each.outcome !== "there" && !completed(each)).map(shortfall)].map((line) => `${plain(line)}\n`).join("");
  });
}

function completed(moved: Moved): boolean {
  return moved.outcome === "ended" && moved.view.result === "completed";
}

/** Why a VM is not where it was to go. */
function shortfall(moved: Moved): string {
  switch (moved.outcome) {
    case "there": return `${moved.vm} was there already`;
    case "refused": return `${moved.vm} was not moved (${moved.error.code}): ${moved.error.message}`;
    case "unknown": return `${moved.vm}: how its move ended is not known (${moved.error.code}); \`careof where ${moved.vm}\` says where it runs`;
    case "ended": {
      const { result, reason, detail } = moved.view;
      const why = detail === null || detail === "" ? "" : `: ${detail}`;
      if (result !== "lost") return `${moved.vm} was not moved (${reason ?? result ?? "?"})${why}`;
      return reason === "postcopy-broken" ? `${moved.vm} is dead (${reason}): \`careof start ${moved.vm} HOST\` starts it from its disks${why}` : `${moved.vm} is LOST (${reason ?? "?"}): \`careof resolve ${moved.vm} HOST\`${why}`;
    }
  }
}

/** As of one move. `result` is `null` where nobody knows how it ended; a VM that was there already is `completed`, without a migration. */
function result(moved: Moved, to: HostId): Record<string, unknown> {
  const { vm, from } = moved;
  switch (moved.outcome) {
    case "ended": return contract(moved.view);
    case "there": return { ...unmeasured(vm, from, to), result: "completed", reason: "already-here", detail: null };
    case "refused": return { ...refused(vm, to, moved.error), from };
    case "unknown": return { ...(moved.view === null ? unmeasured(vm, from, to) : contract(moved.view)), result: null, reason: moved.error.code, detail: moved.error.message };
  }
}

/** What scripts rely on, in this order. */
function contract(view: MigrationReply): Record<string, unknown> {
  const { migration, vm, from, to, result, reason, totalMs, pauseMs, gapDownMs, gapUpMs, bytes: copied, detail, overflowed, hold, undelivered } = view;
  return { migration, vm, from, to, result, reason: reason ?? (result === "completed" ? "accepted" : reason), totalMs, pauseMs, gapDownMs, gapUpMs, bytes: copied, detail, overflowed: overflowed ?? null, hold: hold ?? null, undelivered: undelivered ?? null };
}

function refused(vm: VmId, host: HostId, error: CareofError): Record<string, unknown> {
  return { ...unmeasured(vm, null, host), result: "failed", reason: error.code, detail: error.message };
}

/** Of a migration that there was none of. */
function unmeasured(vm: VmId, from: string | null, to: HostId): Record<string, unknown> {
  return { migration: null, vm, from, to, result: null, reason: null, totalMs: null, pauseMs: null, gapDownMs: null, gapUpMs: null, bytes: null, detail: null, overflowed: null, hold: null, undelivered: null };
}

/** A queue that was too short is the operator's to lengthen. */
function lost(packets: number): string {
  return packets === 0 ? "" : `; ${String(packets)} packets were LOST: the queue of its port was full (ports.queueLength)`;
}

/** Between the lead and the end of a move that is given up, packets go to the target. */
function undelivered({ undelivered: packets = null, to }: MigrationReply): string {
  return packets === null || packets === 0 ? "" : `; ${String(packets)} packets that waited for it at ${to} were LOST`;
}

/** Then what was on its way when the guest stopped is passed on, and what was in its port's queue is lost. */
function notLed(hold: string | null): string {
  return hold === null || hold === "led" ? "" : `; packets may have been lost at the switch (${hold})`;
}

function outcome(view: MigrationReply): string {
  const took = view.totalMs === null ? "" : ` in ${duration(millis(view.totalMs))}`;
  const why = view.reason === null ? "" : ` (${view.reason})`;
  const more = view.detail === null || view.detail === "" ? "" : `${plain(view.detail)}\n`;
  switch (view.result) {
    case "completed":
      return plain(`${view.vm} moved from ${view.from} to ${view.to}${took}: paused ${measured(view.pauseMs)}, gap down ${measured(view.gapDownMs)}, up ${measured(view.gapUpMs)}${view.bytes === null ? "" : `, ${bytes(view.bytes)}`}${lost(view.overflowed ?? 0)}${notLed(view.hold ?? null)}`) + `\n${more}`;
    case "lost":
      if (view.reason === "postcopy-broken") return plain(`${view.vm} is dead${why}: it had gone to ${view.to} ahead of its memory, and the rest of that cannot come any more; \`careof start ${view.vm} HOST\` starts it from its disks`) + `\n${more}`;
      return plain(`${view.vm} is LOST${why}: look on ${view.from} and ${view.to} where it is, then \`careof resolve ${view.vm} HOST\``) + `\n${more}`;
    case "cancelled":
      return plain(`${view.vm} was not moved: cancelled${took}; it runs on ${view.from}${undelivered(view)}`) + "\n";
    case "failed":
    case null:
      return plain(`${view.vm} was not moved${why}; \`careof where ${view.vm}\` says where it runs${undelivered(view)}`) + `\n${more}`;
  }
}
