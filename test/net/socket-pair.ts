import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Test } from "tap";

/** Two unix sockets that are connected to one another, of which nothing has been read. They are gone with the test. */
export async function socketPair(test: Test): Promise<readonly [Socket, Socket]> {
  const directory = mkdtempSync(join(tmpdir(), "careof-pair-"));
  const server = createServer({ pauseOnConnect: true, allowHalfOpen: true });
  await new Promise<void>((resolve) => { server.listen(join(directory, "s"), resolve); });
  const coming = new Promise<Socket>((resolve) => { server.once("connection", resolve); });
  const client = connect({ path: join(directory, "s"), allowHalfOpen: true });
  const accepted = await coming;
  server.close();
  for (const socket of [client, accepted]) {
    socket.on("error", () => socket.destroy());
    test.teardown(() => { socket.destroy(); });
  }
  rmSync(directory, { recursive: true });
  return [client, accepted];
}
