#!/usr/bin/env node
import { readFileSync } from "node:fs";
import { z } from "zod";
import { SystemClock } from "../model/clock.js";
import type { Context } from "./context.js";
import { run } from "./program.js";
import { ProcessTerminal } from "./terminal.js";

/** What still holds the process after a command is done (a connection kept open) may do so for this long. */
const LINGER_MS = 1000;

const { version } = z.object({ version: z.string() }).parse(JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")));

const context: Context = {
  terminal: new ProcessTerminal(),
  clock: new SystemClock({ keepAlive: true }),
  version,
  exitCode: 0,
  parts: {
    homeAgent: async (file, signal) => (await import("../home-agent/main.js")).runHomeAgent(file, signal),
    agent: async (file, signal) => (await import("../agent/main.js")).runAgent(file, signal),
    heartbeat: async (file, signal) => (await import("../guest/main.js")).runHeartbeat(file, signal),
    demo: async (args, signal) => (await import("../deploy/demo/main.js")).runDemo(args, signal),
    doctor: async (options) => (await import("../deploy/doctor/main.js")).runDoctor(options),
  },
};

// `careof watch | head`: whoever read has gone, and nothing that is written would be seen. What a move has come to is known by the time that it is written.
process.stdout.on("error", (error: NodeJS.ErrnoException) => { process.exit(error.code === "EPIPE" ? context.exitCode : 1); });
// What is said meanwhile is not seen any more: the command goes on to its end, and its exit code says what that was.
process.stderr.on("error", () => undefined);

process.exitCode = await run(process.argv.slice(2), context);
setTimeout(() => { process.exit(); }, LINGER_MS).unref();
