import t from "tap";
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { command } from "../../deploy/lab/command.js";
import { abandonedRuns, commandLine, leftOver, processesOf } from "../../deploy/lab/registry.js";
import { REPOSITORY } from "../../deploy/lab/program.js";

/** The demo as a person runs it: to its end, interrupted, and after a crash. */

const CLI = [process.execPath, join(REPOSITORY, "dist", "cli", "main.js"), "demo"] as const;
const files = mkdtempSync(join(tmpdir(), "careof-demo-test-"));
t.teardown(() => { rmSync(files, { recursive: true, force: true }); });

/** Of a move in the demo, which carries little. */
const GAP_MS = 100;
/** For what it says in some ten seconds. */
const SAYS_MS = 240_000;
/** For the reaper; some four seconds on a quiet machine. */
const REAPED_MS = 10_000;

const measured = z.number().nonnegative().nullable();
const count = z.number().int().nonnegative();
const resultSchema = z.strictObject({
  qemu: z.string().regex(/^[0-9]+\./),
  accel: z.enum(["kvm", "tcg"]),
  dataPlane: z.enum(["bpf", "ipip"]),
  moves: z.array(z.strictObject({
    vm: z.literal("web1"), from: z.string(), to: z.string(), result: z.literal("completed"),
    pauseMs: measured, gapDownMs: z.number().min(0).max(GAP_MS), gapUpMs: z.number().min(0).max(GAP_MS),
    serviceGapDownMs: measured, serviceGapUpMs: measured, tcpStallMs: measured,
    sentDown: count, receivedDown: count, sentUp: count, receivedUp: count, lostDown: count, lostUp: count, duplicated: count, reordered: count,
  })).length(2),
  tcp: z.strictObject({ survived: z.literal(true), bytes: z.number().positive() }),
});

interface Running {
  readonly child: ReturnType<typeof spawn>;
  readonly output: () => string;
  readonly ended: Promise<number | null>;
  readonly says: (pattern: RegExp, limitMs: number) => Promise<void>;
}

function demo(...words: readonly string[]): Running {
  const child = spawn(CLI[0], [...CLI.slice(1), ...words], { stdio: ["ignore", "pipe", "pipe"], cwd: files });
  let text = "";
  child.stdout.on("data", (part: Buffer) => { text += part.toString(); });
  child.stderr.on("data", (part: Buffer) => { text += part.toString(); });
  const ended = new Promise<number | null>((resolve) => child.on("close", resolve));
  const says = async (pattern: RegExp, limitMs: number): Promise<void> => {
    const end = Date.now() + limitMs;
    while (!pattern.test(text)) {
      if (Date.now() > end || child.exitCode !== null) throw new Error(`the demo did not say ${String(pattern)} but:\n${text}`);
      await sleep(50);
    }
  };
  return { child, output: () => text, ended, says };
}

/** The processes that would remove the run. */
function reapersOf(run: string): number[] {
  return readdirSync("/proc").filter((name) => /^[0-9]+$/.test(name)).map(Number).filter((pid) => commandLine(pid).endsWith(`run-reaper.js\0${run}\0`));
}

/** Runs that exist now, by their namespaces. */
function runs(): string[] {
  if (!existsSync("/run/netns")) return [];
  return [...new Set(readdirSync("/run/netns").flatMap((name) => /^co-([0-9a-f]{6})-[chrab]$/.exec(name)?.[1] ?? []))];
}

const before = runs();
const ours = (): string[] => runs().filter((run) => !before.includes(run));

await t.test("to its end: figures, report, plot", async (t) => {
  const run = demo("--quick", "--json", "out.json", "--svg", "figure.svg");
  t.equal(await run.ended, 0, run.output());
  t.match(run.output(), /paper, 2009/);
  const result = resultSchema.parse(JSON.parse(readFileSync(join(files, "out.json"), "utf8")));
  t.comment(JSON.stringify(result));
  t.match(result.moves.map((move) => [move.from, move.to]), [["host-a", "host-b"], ["host-b", "host-a"]]);
  for (const move of result.moves) {
    t.ok(move.sentDown + move.sentUp >= 4000, "enough is counted");
    t.ok(move.lostDown + move.lostUp < 20, "hardly a packet is lost");
  }
  const page = readFileSync(join(files, "demo-report.html"), "utf8");
  t.match(page, /29 seconds with hardly a byte/);
  t.notMatch(page, /<script|<link|src=|url\(|href=/, "nothing is fetched, nothing runs");
  t.match(readFileSync(join(files, "figure.svg"), "utf8"), /^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg"/);
  t.strictSame(ours(), [], "nothing is left");
});

await t.test("interrupted in the midst of a move: exit 1, nothing is left, and only the demo speaks of it", async (t) => {
  const run = demo("--quick");
  await run.says(/moving to host-b: .* copy/, SAYS_MS);
  const [name] = ours();
  run.child.kill("SIGINT");
  t.equal(await run.ended, 1);
  t.match(run.output(), /\ncareof demo: interrupted[^\n]*\n$/);
  t.notMatch(run.output(), /cancel|cannot reach/, "the command that was under way is not asked");
  t.strictSame(ours(), []);
  t.ok(name !== undefined);
  t.strictSame(leftOver(name ?? ""), []);
});

await t.test("a part that dies is named, last, behind the end of its log", async (t) => {
  const run = demo("--quick");
  await run.says(/answers at/, SAYS_MS);
  const [name] = ours();
  const victim = processesOf(name ?? "").find((pid) => commandLine(pid).includes("host-b.yaml"));
  t.ok(victim !== undefined);
  if (victim !== undefined) process.kill(victim, "SIGKILL");
  t.equal(await run.ended, 1);
  t.match(run.output(), /\{.*\}\n\ncareof demo: host-b was killed by SIGKILL [^\n]*\n$/s);
  t.strictSame(ours(), []);
});

await t.test("killed outright: nothing is left within 10 s", async (t) => {
  const run = demo("--quick");
  await run.says(/answers at/, SAYS_MS);
  const [name = ""] = ours();
  run.child.kill("SIGKILL");
  await run.ended;
  const until = Date.now() + REAPED_MS;
  while (leftOver(name).length > 0 && Date.now() < until) await sleep(100);
  t.strictSame(leftOver(name), []);
});

await t.test("killed outright with its reaper: the next run removes what it left", async (t) => {
  const first = demo("--quick");
  await first.says(/starting web1 on host-a/, SAYS_MS);
  const [name = ""] = ours();
  const reapers = reapersOf(name);
  t.equal(reapers.length, 1);
  for (const pid of reapers) process.kill(pid, "SIGKILL");
  first.child.kill("SIGKILL");
  await first.ended;
  t.ok(abandonedRuns().includes(name));
  const second = demo("--quick");
  await second.says(/removed what an earlier run left/, SAYS_MS);
  t.strictSame(leftOver(name), []);
  second.child.kill("SIGTERM");
  t.equal(await second.ended, 1);
  t.strictSame(ours(), []);
});

await t.test("wrong use is exit 2, and without root one sentence and exit 1", async (t) => {
  for (const words of [["--pps", "1"], ["--pps", "x"], ["--nope"], ["extra"]]) {
    t.match(await command([...CLI, ...words]), { code: 2, stderr: /usage: careof demo/ }, words.join(" "));
  }
  t.match(await command([...CLI, "--help"]), { code: 0, stdout: /usage: careof demo/ });
  // Loaded as root, because the repository may be readable for nobody else, and without the test runner's own hooks.
  const main = pathToFileURL(join(REPOSITORY, "dist", "deploy", "demo", "main.js")).href;
  const program = `const { runDemo } = await import(${JSON.stringify(main)}); process.setgid(65534); process.setuid(65534); process.exitCode = await runDemo([], new AbortController().signal);`;
  const plain = await command(["env", "-u", "NODE_OPTIONS", process.execPath, "--input-type=module", "-e", program]);
  t.equal(plain.code, 1, plain.stdout + plain.stderr);
  t.match(plain.stderr.trim().split("\n").length, 1);
  t.match(plain.stderr, /root/);
});
