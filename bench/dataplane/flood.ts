import { spawn, type ChildProcess } from "node:child_process";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { z } from "zod";
import { inNamespace } from "../../deploy/lab/command.js";
import { compiled } from "../../deploy/lab/program.js";
import { CareofError } from "../../model/errors.js";

const PORT = "7005";
/** Sender and receiver keep to one processor each: who is moved about meanwhile measures the scheduler. What the kernel forwards, it does on the sender's. */
const SENDER_CPU = "0";
const RECEIVER_CPU = String(availableParallelism() - 1);
/** Beyond what the receiver itself waits for a first byte. */
const LIMIT_MS = 15_000;

const reportSchema = z.object({ bytes: z.number(), packets: z.number(), ns: z.number().positive(), busyNs: z.number() });

/** What arrived within a window of `ns`; `busyNs` is the time that all processors together did not idle, in the kernel's ticks. */
export type FloodReport = z.infer<typeof reportSchema>;

export interface Flood {
  readonly from: string;
  readonly to: string;
  readonly address: string;
  readonly kind: "tcp" | "udp";
  /** TCP: connections. UDP: so many addresses from `address` on get packets in turn. */
  readonly width: number;
  readonly warmMs: number;
  readonly windowMs: number;
}

/**
 * As much as goes through from one namespace to another (flood.c), counted at the receiver.
 * @throws CareofError `nothing-arrived`, `timed-out`
 */
export async function flood(of: Flood): Promise<FloodReport> {
  const program = await compiled(join("bench", "dataplane"), "flood");
  const streams = of.kind === "tcp" ? of.width : 1;
  const receiver = start(of.to, [program, "receive", of.kind, PORT, String(streams), String(of.warmMs), String(of.windowMs), RECEIVER_CPU]);
  let sender: ChildProcess | null = null;
  try {
    return await new Promise<FloodReport>((resolve, reject) => {
      const timer = setTimeout(() => { reject(new CareofError("timed-out", "the flood did not end")); }, LIMIT_MS + of.warmMs + of.windowMs);
      let said = "";
      receiver.stderr?.setEncoding("utf8").on("data", (text: string) => { said += text; });
      receiver.on("error", (cause) => { reject(new CareofError("no-command", `cannot start the receiver: ${cause.message}`, { cause })); });
      receiver.on("close", () => {
        clearTimeout(timer);
        reject(new CareofError("nothing-arrived", said.trim()));
      });
      if (receiver.stdout === null) return;
      createInterface({ input: receiver.stdout }).on("line", (line) => {
        if (line === "ready") sender = start(of.from, [program, "send", of.kind, of.address, PORT, String(of.width), SENDER_CPU]);
        else resolve(reportSchema.parse(JSON.parse(line)));
      });
    });
  } finally {
    await Promise.all([ended(receiver), ended(sender)]);
  }
}

function start(namespace: string, words: readonly string[]): ChildProcess {
  const [program = "", ...rest] = inNamespace(namespace, words);
  return spawn(program, rest, { stdio: ["ignore", "pipe", "pipe"], detached: true });
}

async function ended(child: ChildProcess | null): Promise<void> {
  if (child === null || child.exitCode !== null || child.signalCode !== null) return;
  const over = new Promise<void>((resolve) => { child.once("close", () => { resolve(); }); });
  child.kill("SIGKILL");
  await over;
}
