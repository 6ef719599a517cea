import koffi from "koffi";
import { closeSync, fstatSync, readSync, writeSync } from "node:fs";

const libc = koffi.load(null);
const posixSpawn = libc.func("posix_spawnp", "int", ["void *", "str", "void *", "void *", "const char **", "const char **"]);
const actionsInit = libc.func("posix_spawn_file_actions_init", "int", ["void *"]);
const actionsDup = libc.func("posix_spawn_file_actions_adddup2", "int", ["void *", "int", "int"]);
const actionsDestroy = libc.func("posix_spawn_file_actions_destroy", "int", ["void *"]);
const waitPid = libc.func("waitpid", "int", ["int", "void *", "int"]);
const memfd = libc.func("memfd_create", "int", ["str", "uint"]);
const kill = libc.func("kill", "int", ["int", "int"]);

const MFD_CLOEXEC = 1;
const WNOHANG = 1;
const SIGKILL = 9;
/** Larger than `posix_spawn_file_actions_t` of any libc. */
const ACTIONS_BYTES = 256;
const LIMIT_MS = 60_000;
const LOOK_MS = 1;

/**
 * What a command printed, in the network namespace of the calling thread; throws with its standard error when it fails, or has not ended after a minute. As `execFileSync`, but without fork(2): a copy of the page
 * tables of a process as large as a test costs a tenth of a second in user-mode-linux, and a topology takes some thirty commands.
 */
export function run(command: string, given: readonly string[], input = ""): string {
  const files = ["in", "out", "err"].map((name) => open(name));
  const [stdin = -1, stdout = -1, stderr = -1] = files;
  try {
    if (input !== "") writeSync(stdin, input, 0);
    const status = wait(start(command, given, files), command);
    if (status !== 0) throw new Error(`${command} ${given.join(" ")} failed (${status > 255 ? `exit ${String(status >> 8)}` : `signal ${String(status & 0x7f)}`}): ${content(stderr).trim()}`);
    return content(stdout);
  } finally {
    for (const fd of files) closeSync(fd);
  }
}

function open(name: string): number {
  return checked(memfd(name, MFD_CLOEXEC) as number, "memfd_create");
}

function start(command: string, given: readonly string[], files: readonly number[]): number {
  const actions = Buffer.alloc(ACTIONS_BYTES);
  const pid = Buffer.alloc(4);
  const environment = Object.entries(process.env).flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${value}`]));
  actionsInit(actions);
  try {
    files.forEach((fd, index) => { actionsDup(actions, fd, index); });
    const failure = posixSpawn(pid, command, actions, null, [command, ...given, null], [...environment, null]) as number;
    if (failure !== 0) throw new Error(`${command} cannot be started: errno ${String(failure)}`);
  } finally {
    actionsDestroy(actions);
  }
  return pid.readInt32LE(0);
}

/** The status of wait(2). */
function wait(pid: number, command: string): number {
  const status = Buffer.alloc(4);
  const clock = new Int32Array(new SharedArrayBuffer(4));
  for (const end = performance.now() + LIMIT_MS; checked(waitPid(pid, status, WNOHANG) as number, "waitpid") === 0;) {
    if (performance.now() > end) {
      kill(pid, SIGKILL);
      waitPid(pid, status, 0);
      throw new Error(`${command} has not ended after a minute`);
    }
    Atomics.wait(clock, 0, 0, LOOK_MS);
  }
  return status.readInt32LE(0);
}

/** From its beginning: the position is shared with the command, which left it at the end. */
function content(fd: number): string {
  const bytes = Buffer.alloc(fstatSync(fd).size);
  readSync(fd, bytes, 0, bytes.length, 0);
  return bytes.toString("utf8");
}

function checked(result: number, call: string): number {
  if (result < 0) throw new Error(`${call}: errno ${String(koffi.errno())}`);
  return result;
}
