import { Command, CommanderError } from "commander";
import { toCareofError } from "../model/errors.js";
import { adoptCommand, releaseCommand } from "./commands/adopt.js";
import { cancelCommand } from "./commands/cancel.js";
import { demoCommand } from "./commands/demo.js";
import { drainCommand, undrainCommand } from "./commands/drain.js";
import { doctorCommand } from "./commands/doctor.js";
import { historyCommand } from "./commands/history.js";
import { hostsCommand } from "./commands/hosts.js";
import { keygenCommand } from "./commands/keygen.js";
import { migrateCommand } from "./commands/migrate.js";
import { partCommands } from "./commands/parts.js";
import { portCommand } from "./commands/port.js";
import { reloadCommand } from "./commands/reload.js";
import { resolveCommand } from "./commands/resolve.js";
import { startCommand } from "./commands/start.js";
import { stopCommand } from "./commands/stop.js";
import { vmsCommand } from "./commands/vms.js";
import { watchCommand } from "./commands/watch.js";
import { whereCommand } from "./commands/where.js";
import type { Context } from "./context.js";
import { plain } from "./terminal.js";

/** A line of help for a pipe. */
const HELP_WIDTH = 80;

export function program(context: Context): Command {
  const { terminal } = context;
  const careof = new Command("careof")
    .description("A virtual machine keeps its address while it moves between hosts in different subnets.")
    .version(context.version, "-V, --version", "which version this is")
    .helpCommand("help [command]", "what a command does")
    .addHelpText("after", "\nExit codes: 0 done, 1 refused or failed (see standard error), 2 wrong usage.\nOperators' commands talk to the home agent at --api URL, or CAREOF_API, or\nhttp://127.0.0.1:8434.");
  careof.commandsGroup("Where is it:");
  for (const make of [whereCommand, vmsCommand, hostsCommand, historyCommand, watchCommand]) careof.addCommand(make(context));
  careof.commandsGroup("Act on it:");
  for (const make of [migrateCommand, cancelCommand, drainCommand, undrainCommand, startCommand, stopCommand, adoptCommand, releaseCommand, resolveCommand, portCommand, reloadCommand]) careof.addCommand(make(context));
  careof.commandsGroup("Set up and try:");
  for (const make of [keygenCommand, doctorCommand, demoCommand]) careof.addCommand(make(context));
  careof.commandsGroup("The parts:");
  for (const command of partCommands(context)) careof.addCommand(command);
  for (const command of every(careof)) {
    command.exitOverride().configureOutput({
      writeOut: (text) => { terminal.out(text); },
      writeErr: (text) => { terminal.err(text); },
      getOutHelpWidth: () => terminal.columns ?? HELP_WIDTH,
      getErrHelpWidth: () => terminal.errColumns ?? HELP_WIDTH,
    }).showHelpAfterError(`(${path(command)} --help says how)`);
  }
  return careof;
}

function every(command: Command): Command[] {
  return [command, ...command.commands.flatMap(every)];
}

/** As it is typed: `careof keygen host`. */
function path(command: Command): string {
  return command.parent === null ? command.name() : `${path(command.parent)} ${command.name()}`;
}

/** Runs one command line (without `node careof`). Never rejects; resolves to the exit code. */
export async function run(args: readonly string[], context: Context): Promise<number> {
  try {
    await program(context).parseAsync([...args], { from: "user" });
    return context.exitCode;
  } catch (thrown) {
    if (thrown instanceof CommanderError) return thrown.exitCode === 0 ? 0 : 2;
    const error = toCareofError(thrown);
    const lines = error.message.split("\n").map(plain);
    context.terminal.err(`careof: ${lines.join("\n        ")} (${error.code})\n`);
    return 1;
  }
}
