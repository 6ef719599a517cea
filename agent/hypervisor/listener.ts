import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** Set in /proc/net/unix for a socket that listens (linux/net.h, __SO_ACCEPTCON). */
const ACCEPTS = 0x10000;

/** The process that listens on a unix socket, `null` when none of this machine does. Looks through /proc, which shows other users' processes to root alone. */
export function listenerOf(path: string): number | null {
  const inode = inodeOf(path, readFileSync("/proc/net/unix", "utf8"));
  if (inode === null) return null;
  for (const pid of readdirSync("/proc")) {
    if (/^[0-9]+$/.test(pid) && holds(pid, `socket:[${inode}]`)) return Number(pid);
  }
  return null;
}

/** Whether that process listens on a unix socket; one that has taken its name since does not count. */
export function listensOn(path: string, pid: number): boolean {
  const inode = inodeOf(path, readFileSync("/proc/net/unix", "utf8"));
  return inode !== null && holds(String(pid), `socket:[${inode}]`);
}

/** `Num RefCount Protocol Flags Type St Inode Path`, hexadecimal but for the inode. */
export function inodeOf(path: string, table: string): string | null {
  for (const line of table.split("\n")) {
    const [, , , flags = "0", , , inode, ...name] = line.trim().split(/ +/);
    if (name.join(" ") === path && (Number.parseInt(flags, 16) & ACCEPTS) !== 0) return inode ?? null;
  }
  return null;
}

function holds(pid: string, wanted: string): boolean {
  try {
    return readdirSync(`/proc/${pid}/fd`).some((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`) === wanted);
  } catch (thrown) {
    // It has ended meanwhile, or it closed the file: then it is not the one that is looked for, which goes on.
    const code = thrown instanceof Error && "code" in thrown ? thrown.code : "";
    if (code === "ENOENT" || code === "ESRCH" || code === "EACCES") return false;
    throw thrown;
  }
}
