import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { WaySource } from "../../../agent/migration/way-source.js";
import { millis } from "../../../model/ids.js";
import { FakeClock } from "../../model/fake-clock.js";

void t.test("whether what was sent has come is asked until all of it was asked about", async (test) => {
  const directory = mkdtempSync(join(tmpdir(), "careof-way-"));
  const target = createServer((socket) => { socket.on("error", () => undefined).resume(); });
  await new Promise<void>((resolve) => { target.listen(0, "127.0.0.1", resolve); });
  const hypervisors = createServer({ pauseOnConnect: true, allowHalfOpen: true });
  await new Promise<void>((resolve) => { hypervisors.listen(join(directory, "s"), resolve); });
  const coming = once(hypervisors, "connection") as Promise<[Socket]>;
  const writer = connect({ path: join(directory, "s") });
  const [hypervisor] = await coming;
  const address = target.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  const clock = new FakeClock();
  const marks: number[] = [];
  const way = new WaySource({
    address: "127.0.0.1", port: address.port, token: randomBytes(32), hypervisor, seal: { kind: "seal", key: randomBytes(16) }, clock, connectMs: millis(1000),
    mark: (bytes) => { marks.push(bytes); }, onEnd: () => undefined, onBroken: (cause) => { test.fail(cause.message); },
  });
  test.teardown(() => {
    way.close();
    writer.destroy();
    hypervisor.destroy();
    target.close();
    hypervisors.close();
    rmSync(directory, { recursive: true });
  });
  await once(target, "connection");
  way.begun();
  const sends = async (bytes: number): Promise<void> => {
    const wanted = way.bytes + bytes;
    writer.write(Buffer.alloc(bytes));
    while (way.bytes < wanted) await sleep(2);
  };
  await sends(100);
  clock.advance(millis(2000));
  test.same(marks, [100]);
  await sends(50);
  clock.advance(millis(2000));
  test.same(marks, [100], "one at a time");
  way.marked(100);
  clock.advance(millis(2000));
  test.same(marks, [100, 150], "and what was sent meanwhile, though nothing came behind it");
  way.marked(150);
  clock.advance(millis(6000));
  test.same(marks, [100, 150]);
  const taken = way.taken();
  test.same(marks, [100, 150, 150]);
  way.marked(150);
  await taken;
});
