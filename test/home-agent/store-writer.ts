import { setTimeout as sleep } from "node:timers/promises";
import { Journal } from "../../home-agent/store/journal.js";

/** Commits without end to the directory given, and says on standard output what was acknowledged: `key revision`. Killed by its test. */
const directory = process.argv[2];
if (directory === undefined) throw new Error("usage: store-writer DIRECTORY");
const journal = await Journal.open({ directory, compactAbove: 20_000 });
const fence = await journal.takeOver();
const writers = Array.from({ length: 8 }, async (_, writer) => {
  const key = `vm/${String(writer)}`;
  let revision = [...journal.entries(key)][0]?.revision ?? 0;
  for (;;) {
    const answer = await journal.commit(revision, fence, { key, value: { writer, revision: revision + 1, fill: "x".repeat(200) }, also: [{ key: `also/${String(writer)}`, value: revision + 1 }] });
    if (answer.result === "unavailable") {
      process.stdout.write(`unavailable ${key}\n`);
      await sleep(20);
      continue;
    }
    if (answer.result !== "ok") throw new Error(JSON.stringify(answer));
    revision = answer.revision;
    process.stdout.write(`${key} ${String(revision)}\n`);
  }
});
await Promise.all(writers);
