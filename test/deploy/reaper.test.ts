import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import t, { type Test } from "tap";
import { command } from "../../deploy/lab/command.js";
import { abandonedRuns, commandLine, leftOver, processesOf, removeRun } from "../../deploy/lab/registry.js";

const PROGRAM = fileURLToPath(new URL("killed-lab.js", import.meta.url));
/** Some four seconds on a quiet machine. */
const WITHIN_MS = 60_000;

interface Made {
  readonly run: string;
  readonly end: (signal: NodeJS.Signals | null) => Promise<void>;
}

/** A lab with all its parts, made by a process that can be killed. */
async function make(t: Test, ...words: readonly string[]): Promise<Made> {
  const child = spawn(process.execPath, [PROGRAM, ...words], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = once(child, "exit");
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const said = await lines.next();
  const run = said.done === true ? "" : said.value;
  t.teardown(async () => {
    child.kill("SIGKILL");
    await ended;
    await removeRun(run);
  });
  return {
    run,
    end: async (signal) => {
      if (signal !== null) child.kill(signal);
      await ended;
    },
  };
}

function partsOf(run: string): number[] {
  return processesOf(run).filter((pid) => commandLine(pid).includes("dist/cli/main.js"));
}

if (process.getuid?.() !== 0) {
  t.pass("labs", { skip: "network namespaces need root" });
} else {
  await t.test("a lab whose process is killed is gone soon: its parts, namespaces, mounts and files", async (t) => {
    const { run, end } = await make(t);
    t.equal(partsOf(run).length, 3, "home agent and two host agents");
    t.ok(processesOf(run).length > 3, "and one that does not listen to SIGTERM");
    await end("SIGKILL");
    const until = Date.now() + WITHIN_MS;
    while (leftOver(run).length > 0 && Date.now() < until) await sleep(100);
    t.strictSame(leftOver(run), []);
  });

  await t.test("the reaper and the next run may remove it at the same time", async (t) => {
    const { run, end } = await make(t);
    await end("SIGKILL");
    t.ok(abandonedRuns().includes(run));
    t.strictSame(await removeRun(run), []);
    t.strictSame(leftOver(run), []);
  });

  await t.test("a lab that was left running on purpose stays", async (t) => {
    const { run, end } = await make(t, "keep");
    await end(null);
    await sleep(2000);
    t.equal(partsOf(run).length, 3, "home agent and two host agents");
  });
}

t.test("what is interrupted is ended at once and not heard any more", async (t) => {
  const over = new AbortController();
  const heard: string[] = [];
  const going = command(["sh", "-c", "trap '' TERM; while :; do echo on and on >&2; sleep 0.02; done"], { signal: over.signal, onStderr: (line) => { heard.push(line); } });
  while (heard.length < 3) await sleep(10);
  over.abort();
  const before = heard.length;
  t.match(await going, { code: 1 });
  t.equal(heard.length, before);
  t.match(await command(["sleep", "20"], { signal: over.signal }), { code: 1 }, "nor is anything begun");
});
