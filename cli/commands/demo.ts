import { Command } from "commander";
import type { Context } from "../context.js";
import { untilInterrupted } from "./parts.js";

export function demoCommand(context: Context): Command {
  return new Command("demo")
    .description("move a real guest between two subnets of this machine and back, under traffic")
    .usage("[options]")
    // The demo knows its own options and says what they are.
    .helpOption(false)
    .allowUnknownOption()
    .allowExcessArguments()
    .argument("[options...]", "see careof demo --help")
    .action(async (_options: readonly string[], _parsed: unknown, command: Command) => {
      context.exitCode = await untilInterrupted(context, (signal) => context.parts.demo(command.args, signal));
    });
}
