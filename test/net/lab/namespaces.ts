import { execFileSync, spawn, type ChildProcessByStdio } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { inNamespace } from "../../../net/netns.js";
import { unmount } from "../../../net/syscall.js";

/** Ten thousand routes are more than a megabyte. */
const MAX_OUTPUT = 32 * 1024 * 1024;

/** What a command printed; throws with its standard error when it fails. */
function run(command: string, given: readonly string[], input = ""): string {
  return execFileSync(command, given, { input, encoding: "utf8", stdio: ["pipe", "pipe", "pipe"], timeout: 60_000, maxBuffer: MAX_OUTPUT });
}

/** One network namespace of a test. Never entered by `ip netns exec`, which would remount /sys. */
export class Namespace {
  readonly name: string;
  readonly path: string;

  constructor(name: string) {
    this.name = name;
    this.path = `/run/netns/${name}`;
    run("ip", ["netns", "add", name]);
    this.ip("link set lo up");
  }

  /** Runs synchronous work, or the synchronous beginning of asynchronous work, in here. */
  within<T>(work: () => T): T {
    return inNamespace(this.path, work);
  }

  /** Lines for `ip -batch`. */
  ip(...lines: readonly string[]): void {
    run("nsenter", [`--net=${this.path}`, "ip", "-batch", "-"], `${lines.join("\n")}\n`);
  }

  exec(command: string, ...given: readonly string[]): string {
    return run("nsenter", [`--net=${this.path}`, command, ...given]);
  }

  sysctl(name: string, value: string): void {
    this.exec("sysctl", "-qw", `${name}=${value}`);
  }

  spawn(command: string, ...given: readonly string[]): ChildProcessByStdio<null, Readable, Readable> {
    return spawn("nsenter", [`--net=${this.path}`, command, ...given], { stdio: ["ignore", "pipe", "pipe"] });
  }

  destroy(): void {
    if (existsSync(this.path)) run("ip", ["netns", "del", this.name]);
  }
}

/** Names of this process's own namespaces, removed by exact name. */
export class Namespaces {
  readonly #made: Namespace[] = [];
  readonly folder = mkdtempSync(join(tmpdir(), "co-net-"));

  make(label: string): Namespace {
    const made = new Namespace(`co-net${String(process.pid)}-${label}`);
    this.#made.push(made);
    return made;
  }

  /** A veth pair between two namespaces. */
  connect(a: Namespace, aName: string, b: Namespace, bName: string): void {
    a.ip(`link add ${aName} type veth peer name ${bName} netns ${b.name}`, `link set ${aName} up`);
    b.ip(`link set ${bName} up`);
  }

  destroy(): void {
    for (const made of this.#made) made.destroy();
    for (const runDir of readdirSync(this.folder)) {
      const pins = join(this.folder, runDir, "bpf");
      if (existsSync(pins) && statSync(pins).dev !== statSync(this.folder).dev) unmount(pins);
    }
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Asked by making one. */
export function kernelHasIpip(net: Namespace): boolean {
  try {
    net.exec("ip", "link", "add", "coprobe", "type", "ipip", "external");
  } catch {
    return false;
  }
  net.exec("ip", "link", "del", "coprobe");
  return true;
}
