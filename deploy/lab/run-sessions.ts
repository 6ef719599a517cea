import { connect, type Socket } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * A program of its own, started in a namespace: keeps a TCP session to each guest named on its command line (`traffic serve`, port 7001) and, for every line of input, asks
 * a question on each of them. It never connects again: a session that breaks stays broken. Output: one line of JSON per question, an array of `{address, counter, instance, error}`.
 */
const PORT = 7001;
const OPEN_MS = 180_000;
const ANSWER_MS = 60_000;

interface Session {
  readonly address: string;
  readonly socket: Socket;
  heard: (line: string) => void;
  broken: string | null;
}

async function open(address: string): Promise<Session> {
  const end = Date.now() + OPEN_MS;
  for (;;) {
    try {
      const socket = await new Promise<Socket>((resolve, reject) => {
        const opening = connect({ host: address, port: PORT, timeout: 5000 }, () => { resolve(opening); });
        opening.once("error", reject).once("timeout", () => { opening.destroy(new Error("no answer")); });
      });
      socket.setTimeout(0);
      const session: Session = { address, socket, heard: () => undefined, broken: null };
      const broke = (why: string): void => {
        session.broken ??= why;
        session.heard("");
      };
      socket.on("error", (error) => { broke(error.message); }).on("close", () => { broke("closed"); });
      createInterface({ input: socket }).on("line", (line) => { session.heard(line); });
      return session;
    } catch (thrown) {
      if (Date.now() > end) throw thrown;
      await sleep(250);
    }
  }
}

async function question(session: Session, number: number): Promise<object> {
  const { address, socket } = session;
  const line = session.broken !== null ? "" : await new Promise<string>((resolve) => {
    const timer = setTimeout(() => { resolve("no answer"); }, ANSWER_MS);
    session.heard = (heard): void => {
      clearTimeout(timer);
      resolve(heard);
    };
    socket.write(`ping ${String(number)}\n`);
  });
  const match = /^pong (\d+) (\d+) ([0-9a-f]{16})$/.exec(line);
  const fits = match !== null && Number(match[1]) === number;
  return { address, counter: fits ? Number(match[2]) : null, instance: fits ? (match[3] ?? null) : null, error: fits ? null : (session.broken ?? line) };
}

const sessions = await Promise.all(process.argv.slice(2).map(open));
process.stdout.write("[]\n");
let number = 0;
createInterface({ input: process.stdin }).on("line", () => {
  number += 1;
  const asked = number;
  Promise.all(sessions.map((session) => question(session, asked))).then(
    (answers) => { process.stdout.write(`${JSON.stringify(answers)}\n`); },
    (thrown: unknown) => { throw thrown; },
  );
}).on("close", () => { process.exit(); });
