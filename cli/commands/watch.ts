import type { Command } from "commander";
import { CareofError } from "../../model/errors.js";
import { millis, type Millis } from "../../model/ids.js";
import type { ApiClient } from "../api-client.js";
import { client, operatorCommand, type Context, type OperatorOptions } from "../context.js";
import { rest } from "../migration-follower.js";
import type { Happening } from "../replies.js";
import { ScreenView } from "../watch-screen.js";
import { JsonView, LineView, type View } from "../watch-views.js";

/** Between two tries to reach a home agent that has gone. */
const PAUSE: Millis = millis(1000);

export function watchCommand(context: Context): Command {
  return operatorCommand(
    "watch",
    "show VMs, hosts and moves live, until Ctrl-C\n\nOn a terminal a table that is kept up to date, in a pipe a line per event; with --output json one JSON object a line, first the present state, then what happens: " +
      '{"event": "vm|host|migration|drain|alarm", "data": {...}}.',
    "  careof watch\n  careof watch --output json | jq -c 'select(.event == \"alarm\")'",
  )
    .summary("show VMs, hosts and moves live")
    .action(async (options: OperatorOptions) => {
      const over = new AbortController();
      const release = context.terminal.onInterrupt(() => { over.abort(); });
      const view = viewFor(context, options);
      try {
        await watch(context, client(context, options), view, over.signal);
      } finally {
        view.close();
        release();
      }
    });
}

function viewFor(context: Context, options: OperatorOptions): View {
  if (options.output === "json") return new JsonView(context.terminal);
  return context.terminal.outIsLive ? new ScreenView(context.terminal, context.clock) : new LineView(context.terminal, context.clock);
}

async function watch(context: Context, api: ApiClient, view: View, signal: AbortSignal): Promise<void> {
  const over = (): boolean => signal.aborted;
  let reached = false;
  while (!over()) {
    const stream = new AbortController();
    try {
      const events = await api.events(AbortSignal.any([signal, stream.signal]));
      for (const each of await present(api)) view.show(each, true);
      view.ready();
      reached = true;
      for await (const each of events) view.show(each, false);
    } catch (thrown) {
      if (over()) return;
      // The first time, a wrong address is more likely than a restart.
      if (!reached || !(thrown instanceof CareofError) || !thrown.retryable) throw thrown;
      view.lost(thrown);
    } finally {
      stream.abort();
    }
    await rest(context.clock, PAUSE, signal);
  }
}

async function present(api: ApiClient): Promise<Happening[]> {
  const [hosts, vms, migrations] = await Promise.all([api.hosts(), api.vms(), api.migrations()]);
  return [
    ...hosts.map((data) => ({ event: "host", data }) as const),
    ...vms.map((data) => ({ event: "vm", data }) as const),
    ...migrations.filter((each) => each.result === null).map((data) => ({ event: "migration", data }) as const),
  ];
}
