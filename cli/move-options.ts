import { InvalidArgumentError, Option, type Command } from "commander";
import type { MoveWishes } from "./api-client.js";

/** As commander hands them over; what was not said is not there. */
export interface MoveOptions {
  readonly bandwidth?: number;
  readonly downtimeLimit?: number;
  readonly autoConverge?: boolean;
  readonly channels?: number;
  readonly timeout?: number;
  readonly onTimeout?: "abort" | "force";
  readonly postcopy?: boolean;
  readonly encrypt?: boolean;
}

const UNITS: Readonly<Record<string, number>> = { "": 1, k: 1e3, M: 1e6, G: 1e9 };

/** Options of a move that differ from what the home agent's `handover` says. */
export function withMoveOptions(command: Command): Command {
  return command
    .option("--bandwidth <rate>", "at most so many bytes a second, such as 50M, for the memory, and for each disk that moves with its guest; 0 is unlimited", rate)
    .option("--downtime-limit <ms>", "stop the guest when the rest can be copied within this", milliseconds)
    .option("--auto-converge", "slow a guest down that writes faster than is copied")
    .option("--no-auto-converge", "do not, whatever is configured")
    .option("--channels <n>", "copy over so many connections side by side, 1 to 16", channels)
    .option("--timeout <seconds>", "longest time for the copy of the memory (default: the home agent's handover.timeoutMs, 10 min); disks that move with the guest do not count: their copy ends when no byte came for a minute", seconds)
    .addOption(new Option("--on-timeout <policy>", "then abort: the guest stays; force: it is stopped, the rest is copied, and it moves (default: the home agent's handover.onTimeout, abort)").choices(["abort", "force"]))
    .option("--postcopy", "a copy that does not converge ends by postcopy: the guest goes on at the target before all its memory is there, and is lost with either host meanwhile")
    .option("--no-postcopy", "do not, whatever is configured")
    .option("--encrypt", "encrypt memory and disks on their way, whatever is configured")
    .option("--no-encrypt", "send them in clear, which takes less time and fewer processors: for a network that you trust with all that the guest has in its memory");
}

/** In the API's words. */
export function moveWishes({ bandwidth, downtimeLimit, autoConverge, channels: streams, timeout, onTimeout, postcopy, encrypt }: MoveOptions): MoveWishes {
  return {
    ...(bandwidth === undefined ? {} : { bandwidth }),
    ...(downtimeLimit === undefined ? {} : { downtimeLimitMs: downtimeLimit }),
    ...(autoConverge === undefined ? {} : { autoConverge }),
    ...(streams === undefined ? {} : { channels: streams }),
    ...(timeout === undefined ? {} : { timeoutMs: timeout }),
    ...(onTimeout === undefined ? {} : { onTimeout }),
    ...(postcopy === undefined ? {} : { postcopy }),
    ...(encrypt === undefined ? {} : { encrypt }),
  };
}

/** Below this no guest is ever copied: whoever says `50` thinks of another tool's unit (virsh: MiB a second, Proxmox: KiB). */
const LEAST_RATE = 1000;

function rate(text: string): number {
  const [, digits = "", unit = ""] = /^([0-9]{1,12}(?:\.[0-9]{1,3})?)([kMG]?)$/.exec(text) ?? [];
  if (digits === "") throw new InvalidArgumentError("a number of bytes a second, or with k, M or G (thousand, million, thousand million).");
  const wanted = Number(digits) * (UNITS[unit] ?? 1);
  if (wanted > 0 && wanted < LEAST_RATE) throw new InvalidArgumentError(`${text} are bytes a second, and fewer than 1k: say ${digits}M for ${digits} million of them, or 0 for unlimited.`);
  if (wanted > Number.MAX_SAFE_INTEGER) throw new InvalidArgumentError("more than any link carries: 0 is unlimited.");
  return Math.round(wanted);
}

function milliseconds(text: string): number {
  return bounded(text, 1, 3_600_000, "whole milliseconds, 1 to 3600000");
}

function channels(text: string): number {
  return bounded(text, 1, 16, "a number from 1 to 16");
}

/** In milliseconds. */
function seconds(text: string): number {
  if (!/^[0-9]{1,4}(\.[0-9]{1,3})?$/.test(text) || Number(text) <= 0 || Number(text) > 3600) throw new InvalidArgumentError("seconds, more than 0 and at most 3600.");
  return Math.round(Number(text) * 1000);
}

function bounded(text: string, min: number, max: number, what: string): number {
  if (!/^[0-9]{1,9}$/.test(text) || Number(text) < min || Number(text) > max) throw new InvalidArgumentError(`${what}.`);
  return Number(text);
}
