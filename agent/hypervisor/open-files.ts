import { lstatSync, readdirSync, statSync } from "node:fs";

/** What a file is, whatever its name. Text, because numbers of inodes may be larger than a number holds exactly. */
export interface FileId {
  readonly dev: string;
  readonly ino: string;
}

/** Of what stands at the path itself. A symbolic link, a device or a directory is none. */
export interface FileAt extends FileId {
  readonly kind: "file" | "link" | "other";
}

/** `null`: nothing is there. */
export function fileAt(path: string): FileAt | null {
  const found = lstatSync(path, { bigint: true, throwIfNoEntry: false });
  if (found === undefined) return null;
  return { dev: String(found.dev), ino: String(found.ino), kind: found.isSymbolicLink() ? "link" : found.isFile() ? "file" : "other" };
}

/** What is behind a name that a process gives a file of its own, if it has that file open; `null`: it has not, or the name is another file's by now. */
export function openFile(pid: number, path: string): FileId | null {
  const named = idOf(path);
  if (named === null) return null;
  const directory = `/proc/${String(pid)}/fd`;
  return filesOf(directory).some((fd) => sameFile(idOf(`${directory}/${fd}`), named)) ? named : null;
}

export function sameFile(a: FileId | null, b: FileId | null): boolean {
  return a !== null && b !== null && a.dev === b.dev && a.ino === b.ino;
}

function idOf(path: string): FileId | null {
  try {
    const { dev, ino } = statSync(path, { bigint: true });
    return { dev: String(dev), ino: String(ino) };
  } catch (thrown) {
    if (isMissing(thrown)) return null;
    throw thrown;
  }
}

function filesOf(directory: string): readonly string[] {
  try {
    return readdirSync(directory);
  } catch (thrown) {
    if (isMissing(thrown)) return [];
    throw thrown;
  }
}

function isMissing(thrown: unknown): boolean {
  const code = thrown instanceof Error && "code" in thrown ? thrown.code : "";
  return code === "ENOENT" || code === "ENOTDIR" || code === "ESRCH" || code === "EACCES" || code === "ELOOP";
}
