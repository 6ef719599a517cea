import { connect } from "node:net";
import { createInterface } from "node:readline";
import { z } from "zod";

/**
 * A program of its own, started in a host's namespace: says on standard output when the guest runs there and when it does not, by a second monitor that
 * the lab gives to QEMU (an abstract socket, hence of that namespace). Lines of {"t": wall clock ms, "runs": boolean, "status"}.
 */
const greeting = z.looseObject({ QMP: z.looseObject({}) });
const status = z.looseObject({ return: z.looseObject({ status: z.string(), running: z.boolean() }) });
const change = z.looseObject({ event: z.enum(["STOP", "RESUME", "SHUTDOWN"]), timestamp: z.looseObject({ seconds: z.number(), microseconds: z.number() }) });

const RETRY_MS = 10;
const path = `\0${process.argv[2] ?? ""}`;

function say(t: number, runs: boolean, word: string): void {
  process.stdout.write(`${JSON.stringify({ t, runs, status: word })}\n`);
}

function watch(): void {
  const socket = connect(path);
  let greeted = false;
  const lines = createInterface({ input: socket });
  lines.on("error", () => undefined); // the socket's, see below
  lines.on("line", (line) => {
    const message: unknown = JSON.parse(line);
    if (greeting.safeParse(message).success) {
      greeted = true;
      socket.write('{"execute":"qmp_capabilities"}\n{"execute":"query-status"}\n');
    }
    const answered = status.safeParse(message);
    if (answered.success) say(Date.now(), answered.data.return.running, answered.data.return.status);
    const changed = change.safeParse(message);
    if (changed.success) say(changed.data.timestamp.seconds * 1000 + changed.data.timestamp.microseconds / 1000, changed.data.event === "RESUME", changed.data.event);
  });
  // No QEMU there, or no longer: the close that follows tries again.
  socket.on("error", () => undefined);
  socket.on("close", () => {
    if (greeted) say(Date.now(), false, "gone");
    setTimeout(watch, RETRY_MS);
  });
}

watch();
