import { accessSync, constants, existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import type { Clock } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { endProcess, isAlive, pause, spawnDetached, tail } from "./process.js";

export type AcceleratorWish = "auto" | "kvm" | "tcg";

export interface AcceleratorChoice {
  readonly accelerator: "kvm" | "tcg";
  readonly reason: string;
}

/** A kernel on working KVM says its first word after about 0.4 s and reaches its root device within 1.5 s. */
const FIRST_WORD_MS = 3000;
const BOOT_MS = 10_000;
/** What a kernel without a root device says when everything up to there has worked. */
const BOOTED = /VFS: |Kernel panic|Run \/init|Unable to mount root/;

export interface ProbeOptions {
  readonly binary: string;
  readonly wish: AcceleratorWish;
  /** Kernel to boot; `null` takes the newest of /boot. */
  readonly kernel: string | null;
  /** Where the answer is remembered until the next boot of this machine. */
  readonly directory: string;
  readonly clock: Clock;
  /** For tests. */
  readonly device?: string;
}

const remembered = z.strictObject({ bootId: z.string(), binary: z.string(), kernel: z.string().nullable(), accelerator: z.enum(["kvm", "tcg"]), reason: z.string() });

/**
 * KVM if a bounded boot of a real kernel shows that it works, else TCG, with the reason. A /dev/kvm that is there proves nothing: under some
 * hypervisors guests hang behind the firmware. @throws CareofError `unsupported` when KVM is wished for by name and does not work
 */
export async function chooseAccelerator(options: ProbeOptions): Promise<AcceleratorChoice> {
  if (options.wish === "tcg") return { accelerator: "tcg", reason: "configured" };
  const device = options.device ?? "/dev/kvm";
  const unusable = deviceProblem(device);
  if (unusable !== null) return without(options, unusable);
  const kernel = options.kernel ?? bootKernel();
  const file = join(options.directory, "accelerator.json");
  const bootId = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  const known = recall(file);
  if (known?.bootId === bootId && known.binary === options.binary && known.kernel === kernel) {
    return known.accelerator === "kvm" ? { accelerator: "kvm", reason: known.reason } : without(options, known.reason);
  }
  const result = await boot(options, kernel);
  writeFileSync(`${file}.new`, JSON.stringify({ bootId, binary: options.binary, kernel, ...result }), { mode: 0o600 });
  renameSync(`${file}.new`, file);
  return result.accelerator === "kvm" ? result : without(options, result.reason);
}

function without(options: ProbeOptions, reason: string): AcceleratorChoice {
  if (options.wish === "kvm") throw new CareofError("unsupported", `KVM is configured and does not work here: ${reason}`);
  return { accelerator: "tcg", reason };
}

function deviceProblem(device: string): string | null {
  try {
    accessSync(device, constants.R_OK | constants.W_OK);
    return null;
  } catch (thrown) {
    return `${device}: ${toCareofError(thrown).message}`;
  }
}

function bootKernel(): string | null {
  if (!existsSync("/boot")) return null;
  const newest = readdirSync("/boot").filter((name) => name.startsWith("vmlinuz-")).sort().at(-1);
  return newest === undefined ? null : join("/boot", newest);
}

function recall(file: string): z.infer<typeof remembered> | null {
  if (!existsSync(file)) return null;
  try {
    return remembered.parse(JSON.parse(readFileSync(file, "utf8")));
  } catch (thrown) {
    if (thrown instanceof SyntaxError || thrown instanceof z.ZodError) return null; // torn by a crash: probe again
    throw thrown;
  }
}

async function boot(options: ProbeOptions, kernel: string | null): Promise<AcceleratorChoice> {
  if (kernel === null) return { accelerator: "tcg", reason: "/dev/kvm is there, but no kernel in /boot (or qemu.probeKernel) to try it with" };
  const { directory, clock } = options;
  const console = join(directory, "probe.console");
  const log = join(directory, "probe.log");
  rmSync(console, { force: true });
  const args = [
    "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-machine", "q35", "-accel", "kvm", "-m", "128M",
    "-kernel", kernel, "-append", "console=ttyS0 panic=-1", "-serial", `file:${console}`,
  ];
  const spawned = await spawnDetached(options.binary, args, log);
  const started = clock.monotonic();
  try {
    for (;;) {
      const said = existsSync(console) ? readFileSync(console, "latin1") : "";
      const took = clock.monotonic() - started;
      if (BOOTED.test(said)) return { accelerator: "kvm", reason: `booted ${kernel} in ${took.toFixed(0)} ms` };
      if (!isAlive(spawned.identity)) return { accelerator: "tcg", reason: `KVM refuses a guest: ${tail(log) === "" ? "QEMU ended" : tail(log)}` };
      if (took > (said === "" ? FIRST_WORD_MS : BOOT_MS)) return { accelerator: "tcg", reason: `a guest on KVM hangs: ${said === "" ? "not a word" : "not booted"} after ${took.toFixed(0)} ms` };
      await pause(clock);
    }
  } finally {
    await endProcess(spawned.identity, clock);
    rmSync(console, { force: true });
  }
}
