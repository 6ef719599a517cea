import { accessSync, constants, existsSync } from "node:fs";
import { cpus, release } from "node:os";
import { delimiter, join } from "node:path";
import { CareofError } from "../../model/errors.js";
import { command } from "../lab/command.js";
import { REPOSITORY } from "../lab/program.js";

/** Programs that the lab spawns, and the Debian package that brings each. */
const PROGRAMS: readonly (readonly [string, string])[] = [["ip", "iproute2"], ["nsenter", "util-linux"], ["umount", "mount"], ["gcc", "gcc"], ["qemu-system-x86_64", "qemu-system-x86"]];

const GUEST_IMAGE = ["vmlinuz", "initramfs.gz"].map((name) => join(REPOSITORY, ".cache", "guest", name));

/** Refuses, before anything is made, a machine that cannot run the lab. @throws CareofError `unsupported-machine`, one sentence */
export async function checkMachine(): Promise<void> {
  const refuse = (why: string): never => {
    throw new CareofError("unsupported-machine", why);
  };
  if (process.platform !== "linux") refuse("The demo needs Linux.");
  if (process.getuid?.() !== 0) refuse("The demo makes network namespaces and must be run as root.");
  if (!existsSync(join(REPOSITORY, "deploy", "lab", "traffic.c"))) refuse("This installed copy of careof has no demo: run `npm run demo` in a clone of the repository.");
  if (!GUEST_IMAGE.every((file) => existsSync(file))) refuse("The demo's guest is not built yet: `npm run demo` builds it.");
  for (const [program, debian] of PROGRAMS) {
    if (!onPath(program)) refuse(`The program ${program} is missing (Debian package ${debian}); \`npm run demo\` installs it.`);
  }
  if (!existsSync("/dev/net/tun")) refuse("/dev/net/tun is missing: this machine cannot make TAP interfaces for a guest.");
  const namespaces = await command(["unshare", "--net", "true"]);
  if (namespaces.code !== 0) refuse(`This machine does not let root make network namespaces: ${namespaces.stderr.trim()}`);
}

function onPath(program: string): boolean {
  return (process.env["PATH"] ?? "").split(delimiter).some((directory) => {
    try {
      accessSync(join(directory, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

export function describeMachine(): string {
  return `${String(cpus().length)} CPUs (${cpus()[0]?.model.trim() ?? "unknown"}), Linux ${release()}, Node ${process.version}`;
}
