import { existsSync, mkdirSync, readFileSync, readdirSync, readlinkSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { CareofError } from "../../model/errors.js";
import { command } from "./command.js";
import { guestNamespaceOf, namespacesOf } from "./plan.js";

/**
 * What a lab made, written before it is made, so that a later run can remove what a crashed one left. Removal goes by exact names
 * (namespaces and directory follow from the run's id) and ends only processes that run in these namespaces.
 */
const REGISTRY = "/run/careof-lab";
const RUN_ID = /^[0-9a-f]{6}$/;

const entrySchema = z.strictObject({ run: z.string().regex(RUN_ID), owner: z.strictObject({ pid: z.int().positive(), started: z.string() }) });

/** The lab's own directory: configuration, state, sockets, logs. Short, because socket paths must be. */
export function labDirectory(run: string): string {
  return join(tmpdir(), `careof-lab-${run}`);
}

/** Clock ticks since boot at which the process started, which with the pid names it for good; `null` if there is none. */
export function startTime(pid: number): string | null {
  try {
    const text = readFileSync(`/proc/${String(pid)}/stat`, "utf8");
    return text.slice(text.lastIndexOf(")") + 2).split(" ")[19] ?? null;
  } catch {
    return null;
  }
}

/** The words of the process's command, a NUL behind each; "" if there is none any more. */
export function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${String(pid)}/cmdline`, "utf8");
  } catch {
    return "";
  }
}

/** Enters a run and makes its directory. @throws CareofError `lab-taken` if there is one by that name */
export function register(run: string): void {
  mkdirSync(REGISTRY, { recursive: true, mode: 0o700 });
  const file = join(REGISTRY, `${run}.json`);
  if (!RUN_ID.test(run) || existsSync(file)) throw new CareofError("lab-taken", `there is a lab named ${run}, or ${run} is no name for one`);
  const owner = { pid: process.pid, started: startTime(process.pid) ?? "" };
  writeFileSync(`${file}.new`, JSON.stringify({ run, owner }));
  renameSync(`${file}.new`, file);
  mkdirSync(labDirectory(run), { mode: 0o700 });
}

/** Runs whose owner is gone. A file that is not a registry entry is left alone. */
export function abandonedRuns(): string[] {
  if (!existsSync(REGISTRY)) return [];
  return readdirSync(REGISTRY)
    .filter((name) => name.endsWith(".json"))
    .flatMap((name) => {
      const entry = readEntry(join(REGISTRY, name));
      if (entry === null || `${entry.run}.json` !== name) return [];
      return startTime(entry.owner.pid) === entry.owner.started ? [] : [entry.run];
    });
}

function readEntry(file: string): z.infer<typeof entrySchema> | null {
  try {
    return entrySchema.parse(JSON.parse(readFileSync(file, "utf8")));
  } catch {
    return null;
  }
}

/** All that a run may have. */
function namespaceNames(run: string): string[] {
  return [...Object.values(namespacesOf(run)), guestNamespaceOf(run)];
}

/** Processes in the run's namespaces, whoever started them: parts, QEMUs that outlive their agent, traffic. */
export function processesOf(run: string): number[] {
  const inodes = new Set(namespaceNames(run).flatMap((name) => inodeOf(`/run/netns/${name}`)));
  if (inodes.size === 0) return [];
  return readdirSync("/proc")
    .filter((name) => /^[0-9]+$/.test(name))
    .filter((name) => {
      try {
        return inodes.has(readlinkSync(`/proc/${name}/ns/net`).slice("net:[".length, -1));
      } catch {
        return false; // ended meanwhile
      }
    })
    .map(Number);
}

function inodeOf(file: string): string[] {
  try {
    return [String(statSync(file).ino)];
  } catch {
    return [];
  }
}

/** Ends what runs, removes what was made, and says what is left: nothing, unless the kernel refuses. Idempotent. */
export async function removeRun(run: string): Promise<string[]> {
  if (!RUN_ID.test(run)) throw new CareofError("malformed-run", `"${run}" is no lab's name`);
  await endProcesses(run);
  for (const name of namespaceNames(run)) {
    await unless(() => !existsSync(`/run/netns/${name}`), ["ip", "netns", "del", name]);
  }
  const directory = labDirectory(run);
  // Deepest first: file systems for pinned BPF objects, mounted by the parts.
  for (const mount of mountsBelow(directory)) await unless(() => !mountsBelow(directory).includes(mount), ["umount", mount]);
  rmSync(directory, { recursive: true, force: true, maxRetries: 3 });
  const left = leftOver(run);
  if (left.length === 0) rmSync(join(REGISTRY, `${run}.json`), { force: true });
  return left;
}

/** Runs what makes it so, unless it is so already or somebody else was faster: the reaper of a killed run and the next run may remove it at the same time. */
async function unless(so: () => boolean, words: readonly string[]): Promise<void> {
  if (so()) return;
  const result = await command(words);
  if (result.code !== 0 && !so()) throw new CareofError("command-failed", `${words.join(" ")} ended with ${String(result.code)}: ${result.stderr.trim()}`);
}

/** What of a run is there: processes, namespaces (and with them links, TAPs, sockets), mounts, files. */
export function leftOver(run: string): string[] {
  return [
    ...processesOf(run).map((pid) => `process ${String(pid)}`),
    ...namespaceNames(run).filter((name) => existsSync(`/run/netns/${name}`)).map((name) => `namespace ${name}`),
    ...mountsBelow(labDirectory(run)).map((mount) => `mount ${mount}`),
    ...(existsSync(labDirectory(run)) ? [`directory ${labDirectory(run)}`] : []),
  ];
}

async function endProcesses(run: string): Promise<void> {
  // QEMU would outlive its agent's SIGTERM by design, hence both signals go to every process of the namespaces.
  for (const { signal, patienceMs } of [{ signal: "SIGTERM", patienceMs: 3000 }, { signal: "SIGKILL", patienceMs: 3000 }] as const) {
    const until = Date.now() + patienceMs;
    let told: number[] = [];
    for (let pids = processesOf(run); pids.length > 0 && Date.now() < until; pids = processesOf(run)) {
      const untold = pids.filter((pid) => !told.includes(pid));
      for (const pid of untold) signalIfThere(pid, signal);
      told = pids;
      await sleep(20);
    }
  }
}

function signalIfThere(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (thrown) {
    if (!(thrown instanceof Error && "code" in thrown && thrown.code === "ESRCH")) throw thrown;
  }
}

function mountsBelow(directory: string): string[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => line.split(" ")[4] ?? "")
    .filter((mount) => mount.startsWith(`${directory}/`))
    .sort((one, other) => other.length - one.length);
}
