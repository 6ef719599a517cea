import { rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import type { Test } from "tap";

const GREETING = '{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}\r\n';

interface Request { readonly execute: string; readonly id: number }

/** Speaks QMP on a unix socket as a QEMU of somebody else does: in this process, so that its owner is alive and is none of the agent's. */
export class QmpServer {
  readonly path: string;
  readonly asked: string[] = [];
  /** Accepts, and does not greet: another client has the monitor, or it hangs. */
  hangs = false;
  readonly #answers: Readonly<Record<string, unknown>>;
  readonly #open = new Set<Socket>();
  readonly #onAsked: (command: string) => void;
  #server: Server | null = null;

  constructor(t: Pick<Test, "teardown">, path: string, answers: Readonly<Record<string, unknown>> = {}, onAsked: (command: string) => void = () => undefined) {
    this.path = path;
    this.#answers = { "query-status": { status: "running", running: true }, "query-memory-size-summary": { "base-memory": 128 * 1024 * 1024 }, "query-migrate": {}, ...answers };
    this.#onAsked = onAsked;
    t.teardown(() => { this.close(); });
  }

  async listen(): Promise<void> {
    rmSync(this.path, { force: true });
    const server = createServer((socket) => {
      this.#open.add(socket);
      socket.on("error", () => undefined).on("close", () => this.#open.delete(socket));
      if (this.hangs) return;
      socket.write(GREETING);
      let rest = "";
      socket.on("data", (chunk) => {
        const lines = (rest + chunk.toString()).split("\n");
        rest = lines.pop() ?? "";
        for (const line of lines) this.#answer(JSON.parse(line) as Request, socket);
      });
    });
    this.#server = server;
    await new Promise<void>((resolve) => { server.listen(this.path, resolve); });
  }

  /** The socket goes, and everybody who has it. */
  close(): void {
    this.#server?.close();
    this.#server = null;
    this.cut();
  }

  /** Everybody who is connected is thrown out. */
  cut(): void {
    for (const socket of this.#open) socket.destroy();
  }

  #answer({ execute, id }: Request, socket: Socket): void {
    this.asked.push(execute);
    socket.write(`${JSON.stringify({ return: this.#answers[execute] ?? {}, id })}\r\n`);
    this.#onAsked(execute);
  }
}
