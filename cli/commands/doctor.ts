import { Command } from "commander";
import { outputOption, type Context, type Output } from "../context.js";

export function doctorCommand(context: Context): Command {
  return new Command("doctor")
    .description("check whether this machine can be a home agent or a host, and say how to mend what is missing")
    .addOption(outputOption())
    .option("-c, --config <file>", "also check this configuration of a home agent or a host agent, and what it names")
    .option("--fix", "set the sysctls that the checks ask for, until the machine starts anew; says what it set and what it could not")
    .option("--persist", "with --fix: also write them to /etc/sysctl.d/60-careof.conf, so that they stay")
    .addHelpText("after", "\nExit code 1 when a check failed or a fix was refused; a warning is no failure.\n--output json: the checks as an array; with --fix {checks, fixes, file}.\n\nExamples:\n  careof doctor\n  careof doctor --config /etc/careof/agent.yaml\n  careof doctor --config /etc/careof/home-agent.yaml --fix --persist")
    .action(async (options: { readonly output: Output; readonly config?: string; readonly fix?: boolean; readonly persist?: boolean }, command: Command) => {
      const [fix, persist] = [options.fix ?? false, options.persist ?? false];
      if (persist && !fix) command.error("error: --persist goes with --fix", { exitCode: 2 });
      context.exitCode = await context.parts.doctor({ output: options.output, configFile: options.config ?? null, fix, persist, write: (text) => { context.terminal.out(text); } });
    });
}
