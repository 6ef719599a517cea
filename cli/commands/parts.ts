import { Command } from "commander";
import type { Context } from "../context.js";

/** The exit code of a part that was told twice to end. */
const INTERRUPTED = 130;

const ENDS = "SIGTERM and Ctrl-C end it cleanly.";

/** `home-agent`, `agent` and `heartbeat`: run until SIGTERM or Ctrl-C, then shut down cleanly. */
export function partCommands(context: Context): Command[] {
  return [
    part(context, "home-agent", "run the home agent: knows where every VM is and ends its tunnel", "home-agent.yaml", `${ENDS} The tunnels stay.\nSIGHUP, or careof reload, takes a changed configuration over.`, context.parts.homeAgent),
    part(context, "agent", "run the host agent: runs VMs on this host and carries their migrations", "agent.yaml", `${ENDS} Guests and tunnels stay.`, context.parts.agent),
    part(context, "heartbeat", "run the heartbeat service inside a guest", "heartbeat.yaml", ENDS, context.parts.heartbeat),
  ];
}

function part(context: Context, name: string, description: string, file: string, signals: string, start: (file: string, signal: AbortSignal) => Promise<void>): Command {
  return new Command(name)
    .description(description)
    .requiredOption("-c, --config <file>", "its configuration (YAML)")
    .addHelpText("after", `\n${signals}\n\nExamples:\n  careof ${name} --config /etc/careof/${file}`)
    .action(async (options: { readonly config: string }) => {
      await untilInterrupted(context, (signal) => start(options.config, signal));
    });
}

/** Gives `work` a signal that the first interrupt aborts; the second ends the process at once. */
export async function untilInterrupted<T>(context: Context, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const over = new AbortController();
  const release = context.terminal.onInterrupt(() => {
    if (over.signal.aborted) process.exit(INTERRUPTED);
    over.abort();
  });
  try {
    return await work(over.signal);
  } finally {
    release();
  }
}
