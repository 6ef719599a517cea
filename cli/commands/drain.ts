import { InvalidArgumentError, Option, type Command } from "commander";
import { toCareofError } from "../../model/errors.js";
import type { HostId } from "../../model/ids.js";
import type { ApiClient } from "../api-client.js";
import { client, hostArgument, operatorCommand, show, type Context, type OperatorOptions } from "../context.js";
import { followDrain, isUnderWay } from "../drain-follower.js";
import { onInterrupts } from "../interrupts.js";
import { moveWishes, withMoveOptions, type MoveOptions } from "../move-options.js";
import { MovesProgress } from "../moves-progress.js";
import { age } from "../quantities.js";
import type { DrainReply, DrainSummaryReply } from "../replies.js";
import { table } from "../table.js";
import { plain } from "../terminal.js";

interface DrainOptions extends OperatorOptions, MoveOptions {
  readonly to?: readonly HostId[];
  readonly limit?: number;
  readonly order?: string;
  readonly show: boolean;
  readonly wait: boolean;
}

export function drainCommand(context: Context): Command {
  return withMoveOptions(operatorCommand(
    "drain",
    "move every VM away from a host, which takes no other until `careof undrain`\n\nA few VMs move at a time, each to the host of its list on which the most memory is left. The home agent does it: when this command ends, or the home agent is " +
      "restarted, it goes on. Ctrl-C: no other VM begins to move, those that do go on; a second Ctrl-C cancels them, a third stops watching. The host still takes no VM then; the same command again goes " +
      "on, and tries again what was left, with each option as it was last time where it is not given. Options of the moves that were never given are as the home agent's configuration has them (handover). Progress goes to standard error, the result to standard output. Exit code 0 only when every VM is away.",
    "  careof drain host-a\n  careof drain host-a --to host-b,host-c --limit 4 --order largest\n  careof drain host-a --bandwidth 50M --timeout 120 --on-timeout force\n  careof drain host-a --show\n  careof drain host-a --output json | jq .left",
  )
    .summary("move every VM away from a host")
    .argument("<host>", "name of the host", hostArgument)
    .addOption(new Option("--to <hosts>", "only to these, separated by commas (default: any host that a VM lists)").argParser(hostList))
    .addOption(limitOption("VMs that move at a time (default: the home agent's drain.limit, 2)"))
    .addOption(new Option("--order <order>", "which VM goes first: as the configuration lists them, by name, by memory (default: config)").choices(["config", "name", "smallest", "largest"]))
    .option("--show", "show how far it is, and begin nothing", false)
    .option("--no-wait", "return when it has begun; `careof drain` without it watches the same drain, and Ctrl-C interrupts it"))
    .action(async (host: HostId, options: DrainOptions, command: Command) => {
      const api = client(context, options);
      const { to, limit, order } = options;
      const wishes = moveWishes(options);
      if (options.show && (to !== undefined || limit !== undefined || order !== undefined || !options.wait)) command.error("error: --show begins nothing: --to, --limit, --order and --no-wait do not go with it", { exitCode: 2 });
      if (options.show && Object.keys(wishes).length > 0) command.error("error: --show begins nothing: options of the moves do not go with it", { exitCode: 2 });
      if (to?.includes(host) === true) command.error(`error: option '--to <hosts>': the VMs of ${host} cannot move to ${host}`, { exitCode: 2 });
      const begun = options.show ? await api.drain(host) : await api.beginDrain(host, { to, limit, order, ...wishes });
      const ended = options.show || !options.wait || !isUnderWay(begun) ? begun : await watched(context, api, begun, host);
      context.exitCode = ended.state === "completed" || options.show || !options.wait ? 0 : 1;
      show(context, options, ended, () => report(ended, context.clock.now(), context.terminal.columns));
    });
}

export function undrainCommand(context: Context): Command {
  return operatorCommand("undrain", "let a host take VMs again\n\nWhat moves away goes on; nothing comes back by itself.", "  careof undrain host-a")
    .summary("let a host take VMs again")
    .argument("<host>", "name of the host", hostArgument)
    .action(async (host: HostId, options: OperatorOptions) => {
      const reply = await client(context, options).undrain(host);
      show(context, options, reply, () => plain(`${host} takes VMs again`) + "\n");
    });
}

/** Moves at once. */
export function limitOption(description: string): Option {
  return new Option("--limit <number>", description).argParser((text: string): number => {
    if (!/^[1-9][0-9]?$/.test(text) || Number(text) > 64) throw new InvalidArgumentError("it must be a number from 1 to 64");
    return Number(text);
  });
}

function hostList(text: string, before: readonly HostId[] | undefined): readonly HostId[] {
  return [...(before ?? []), ...text.split(",").map(hostArgument)];
}

async function watched(context: Context, api: ApiClient, begun: DrainReply, host: HostId): Promise<DrainReply> {
  const progress = new MovesProgress(context.terminal, () => context.clock.monotonic());
  const over = new AbortController();
  const release = onInterrupts(context.terminal, {
    stop: () => api.interruptDrain(host, false),
    cancel: () => api.interruptDrain(host, true),
    leave: () => { over.abort(); },
    say: (text) => { progress.say(text); },
  });
  try {
    progress.sum(sumLine(begun));
    return await followDrain({
      api, clock: context.clock, host, signal: over.signal,
      onSum: (sum) => { progress.sum(sumLine(sum)); },
      onMove: (view) => { progress.show(view); },
      onLost: (error) => { progress.say(`${plain(toCareofError(error).message)}; the drain goes on, trying again`); },
    });
  } finally {
    progress.clear();
    release();
  }
}

/** `host-a: 3 of 20 moved, 2 moving, 15 waiting`. */
export function sumLine({ host, state, total, moved, moving, waiting, left }: DrainSummaryReply): string {
  const parts = [`${String(moved)} of ${String(total)} moved`, ...([["moving", moving], ["waiting", waiting], ["left", left]] as const).flatMap(([name, count]) => (count === 0 ? [] : [`${String(count)} ${name}`]))];
  return `${host}: ${parts.join(", ")}${state === "stopping" ? " (stopping)" : ""}`;
}

/** Those that are not away, and why; below them in whole sentences where the terminal is too narrow for that. */
function leftovers(vms: DrainReply["vms"], columns: number | null): string {
  const rows = (why: (vm: DrainReply["vms"][number]) => string): string[][] => vms.map((each) => [each.vm, each.state, each.to ?? "–", why(each)]);
  const heading = ["VM", "STATE", "TO", "WHY"];
  const whole = table(heading, rows(({ reason, detail }) => (detail === "" ? (reason ?? "–") : detail)), null);
  if (columns === null || whole.split("\n").every((line) => line.length <= columns)) return whole;
  const sentences = vms.flatMap(({ vm, detail }) => (detail === "" ? [] : [`${plain(`${vm}: ${detail}`)}\n`]));
  return table(heading, rows(({ reason }) => reason ?? "–"), columns) + sentences.join("");
}

function report(drain: DrainReply, now: number, columns: number | null): string {
  const { host, state, startedAt } = drain;
  const rest = drain.vms.filter((each) => each.state !== "moved" && each.state !== "stopped");
  const lines = [`${sumLine(drain)} (${state}, begun ${age(startedAt, now)} ago)\n`];
  if (rest.length > 0) lines.push(leftovers(rest, columns));
  const again = state === "incomplete" || state === "interrupted" ? `\`careof drain ${host}\` goes on; ` : "";
  return `${lines.join("")}${again}${plain(host)} takes no VMs until \`careof undrain ${plain(host)}\`\n`;
}
