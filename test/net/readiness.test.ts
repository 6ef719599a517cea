import { Buffer } from "node:buffer";
import { readdirSync, readSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import koffi from "koffi";
import t from "tap";
import { Readiness } from "../../net/readiness.js";
import { close, eventDescriptor } from "../../net/syscall.js";

const SIGUSR2 = 12;
const LIMIT_MS = 20_000;
const tgkill = koffi.load(null).func("tgkill", "int", ["int", "int", "int"]);

/** A signal that meets the waiting thread ends its poll(2) with EINTR, whatever was asked of the kernel when the handler was set. */
t.test("a signal does not end the waiting", { timeout: 60_000 }, async (t) => {
  let [signals, ready] = [0, 0];
  const handler = (): void => { signals++; };
  process.on("SIGUSR2", handler);
  const failures: unknown[] = [];
  const readiness = new Readiness((error) => { failures.push(error); });
  const descriptor = eventDescriptor();
  readiness.add(descriptor, () => {
    readSync(descriptor, Buffer.alloc(8));
    ready++;
  });
  t.teardown(() => {
    process.off("SIGUSR2", handler);
    readiness.close();
    close(descriptor);
  });
  for (let round = 1; round <= 3; round++) {
    // Not the main thread: that one waits for Node itself.
    const others = readdirSync("/proc/self/task").map(Number).filter((thread) => thread !== process.pid);
    for (const thread of others) tgkill(process.pid, thread, SIGUSR2);
    for (const end = performance.now() + LIMIT_MS; signals < round && performance.now() < end;) await sleep(5);
    t.ok(signals >= round, "it was handled");
    await sleep(50);
    const one = Buffer.alloc(8);
    one.writeBigUInt64LE(1n);
    writeSync(descriptor, one);
    for (const end = performance.now() + LIMIT_MS; ready < round && failures.length === 0 && performance.now() < end;) await sleep(5);
    t.same([ready, failures], [round, []], "and what is waited for is heard");
  }
});
