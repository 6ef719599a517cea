import { Command } from "commander";
import { outputOption, type Context, type Output } from "../context.js";

export function doctorCommand(context: Context): Command {
  return new Command("doctor")
    .description("check whether this machine can be a home agent or a host, and say how to mend what is missing")
    .addOption(outputOption())
    .option("-c, --config <file>", "also check this configuration of a home agent or a host agent, and what it names")
    .addHelpText("after", "\nExit code 1 when a check failed; a warning is not a failure.\n\nExamples:\n  careof doctor\n  careof doctor --config /etc/careof/agent.yaml")
    .action(async (options: { readonly output: Output; readonly config?: string }) => {
      context.exitCode = await context.parts.doctor({ output: options.output, configFile: options.config ?? null, write: (text) => { context.terminal.out(text); } });
    });
}
