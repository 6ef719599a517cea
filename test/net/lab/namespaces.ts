import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Netlink } from "../../../net/netlink/client.js";
import { changeLink, requireLink, type LinkChange } from "../../../net/netlink/links.js";
import { inNamespace } from "../../../net/netns.js";
import { unmount } from "../../../net/syscall.js";
import { writeSysctl } from "../../../net/sysctl.js";
import { run } from "./command.js";

/**
 * One network namespace of a test. Never entered by `ip netns exec`, which would remount /sys: a command inherits the namespace of the thread that starts it. What needs no command has none, since starting a
 * process takes a tenth of a second in user-mode-linux.
 */
export class Namespace {
  readonly name: string;
  readonly path: string;

  constructor(name: string) {
    this.name = name;
    this.path = `/run/netns/${name}`;
    run("ip", ["netns", "add", name]);
    this.change("lo", { up: true });
  }

  /** Runs synchronous work, or the synchronous beginning of asynchronous work, in here. */
  within<T>(work: () => T): T {
    return inNamespace(this.path, work);
  }

  /** As `ip link set NAME …`. */
  change(name: string, change: LinkChange): void {
    this.within(() => {
      const netlink = new Netlink();
      try {
        changeLink(netlink, requireLink(netlink, name), change);
      } finally {
        netlink.close();
      }
    });
  }

  /** Lines for `ip -batch`. */
  ip(...lines: readonly string[]): void {
    this.feed(`${lines.join("\n")}\n`, "ip", "-batch", "-");
  }

  exec(command: string, ...given: readonly string[]): string {
    return this.within(() => run(command, given));
  }

  /** As `exec`, for a command that reads its standard input. */
  feed(input: string, command: string, ...given: readonly string[]): void {
    this.within(() => run(command, given, input));
  }

  sysctl(name: string, value: string): void {
    this.within(() => { writeSysctl(name.split("."), value); });
  }

  spawn(command: string, ...given: readonly string[]): ChildProcessWithoutNullStreams {
    return this.within(() => spawn(command, given, { stdio: "pipe" }));
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
    b.change(bName, { up: true });
  }

  destroy(): void {
    const there = this.#made.filter(({ path }) => existsSync(path)).map(({ name }) => `netns del ${name}\n`);
    if (there.length > 0) run("ip", ["-batch", "-"], there.join(""));
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
