import { Buffer } from "node:buffer";
import { readdirSync, readlinkSync, readSync, writeSync } from "node:fs";
import { stat } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import koffi from "koffi";
import t from "tap";
import type { CareofError } from "../../model/errors.js";
import { Readiness } from "../../net/readiness.js";
import { close, eventDescriptor } from "../../net/syscall.js";

const SIGUSR2 = 12;
const LIMIT_MS = 20_000;
const tgkill = koffi.load(null).func("tgkill", "int", ["int", "int", "int"]);

function ring(descriptor: number): void {
  const one = Buffer.alloc(8);
  one.writeBigUInt64LE(1n);
  writeSync(descriptor, one);
}

/** Of this process; one that is closed while they are listed is none. */
function eventDescriptors(): number {
  return readdirSync("/proc/self/fd").filter((name) => {
    try {
      return readlinkSync(`/proc/self/fd/${name}`) === "anon_inode:[eventfd]";
    } catch {
      return false;
    }
  }).length;
}

async function comes(is: () => boolean): Promise<boolean> {
  for (const end = performance.now() + LIMIT_MS; !is() && performance.now() < end;) await sleep(5);
  return is();
}

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
    ring(descriptor);
    for (const end = performance.now() + LIMIT_MS; ready < round && failures.length === 0 && performance.now() < end;) await sleep(5);
    t.same([ready, failures], [round, []], "and what is waited for is heard");
  }
});

/** More than Node's pool has threads, each of which would wait without end. */
t.test("however many wait, files are still answered, and each hears of its own", { timeout: 120_000 }, async (t) => {
  const count = Math.max(4, Number(process.env["UV_THREADPOOL_SIZE"] ?? 4)) + 1;
  const failures: unknown[] = [];
  const before = eventDescriptors();
  const all = Array.from({ length: count }, () => {
    const [readiness, descriptor] = [new Readiness((error) => { failures.push(error); }), eventDescriptor()];
    const each = { readiness, descriptor, heard: 0 };
    const listen = (): void => {
      readiness.add(descriptor, () => {
        readSync(descriptor, Buffer.alloc(8));
        each.heard++;
      });
    };
    listen();
    return { each, listen };
  });
  const heard = (): readonly number[] => all.map(({ each }) => each.heard);
  t.teardown(() => {
    for (const { each } of all) each.readiness.close();
    for (const { each } of all) close(each.descriptor);
  });
  const [first, second, third] = all;
  if (first === undefined || second === undefined || third === undefined) throw new Error("there are at least four");
  const answered = async (): Promise<boolean> => (await Promise.race([stat("/"), sleep(LIMIT_MS, null, { ref: false })])) !== null;
  // What is on its way to the pool is there by then.
  await sleep(50);
  t.ok(await answered(), "a file is looked at while they wait");
  for (const { each } of all) ring(each.descriptor);
  t.ok(await comes(() => heard().every((times) => times === 1)));
  t.same(heard(), all.map(() => 1), "each has heard of its own, once");

  first.each.readiness.remove(first.each.descriptor);
  second.each.readiness.close();
  second.each.readiness.close();
  second.listen();
  // Somebody else's is not for it to remove.
  second.each.readiness.remove(third.each.descriptor);
  for (const { each } of all) ring(each.descriptor);
  t.ok(await comes(() => heard().slice(2).every((times) => times === 2)));
  t.same(heard().slice(0, 2), [1, 1], "what was removed is silent, and who is closed");
  first.listen();
  t.ok(await comes(() => first.each.heard === 2), "what waited is heard of when it is added again");
  t.ok(await answered());

  for (const { each } of all) each.readiness.close();
  t.ok(await comes(() => eventDescriptors() === before + count), "with the last one it ends");
  const another = new Readiness((error) => { failures.push(error); });
  let again = 0;
  another.add(second.each.descriptor, () => {
    readSync(second.each.descriptor, Buffer.alloc(8));
    again++;
  });
  t.ok(await comes(() => again === 1), "and begins anew");
  another.close();
  t.ok(await comes(() => eventDescriptors() === before + count));
  t.same([heard().slice(0, 2), failures], [[2, 1], []]);
});

t.test("closed by whom it calls: nobody of its own is called any more, and the others are", { timeout: 60_000 }, async (t) => {
  const fail = (error: CareofError): void => { t.fail(error.message); };
  const [closing, other] = [new Readiness(fail), new Readiness(fail)];
  const descriptors = Array.from({ length: 3 }, () => eventDescriptor());
  t.teardown(() => {
    for (const each of [closing, other]) each.close();
    for (const descriptor of descriptors) close(descriptor);
  });
  const called: string[] = [];
  const [one = 0, two = 0, three = 0] = descriptors;
  for (const descriptor of descriptors) ring(descriptor);
  // The thread is sent again when this call is over: then all of them are ready at once.
  other.add(three, () => {
    for (const [name, descriptor] of [["one", one], ["two", two]] as const) {
      closing.add(descriptor, () => {
        called.push(name);
        closing.close();
      });
    }
    other.add(three, () => {
      readSync(three, Buffer.alloc(8));
      called.push("three");
    });
  });
  t.ok(await comes(() => called.includes("three")));
  await sleep(50);
  t.same(called.sort(), ["one", "three"]);
});
