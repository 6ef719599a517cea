import { Command, InvalidArgumentError, Option } from "commander";
import type { Clock } from "../model/clock.js";
import { toCareofError } from "../model/errors.js";
import { hostId, vmId, type HostId, type VmId } from "../model/ids.js";
import { ApiClient, type ApiLimits } from "./api-client.js";
import type { Parts } from "./parts.js";
import type { Terminal } from "./terminal.js";

/** What every command works with. */
export interface Context {
  readonly terminal: Terminal;
  readonly parts: Parts;
  /** Its timers keep the process alive. */
  readonly clock: Clock;
  readonly version: string;
  readonly apiLimits?: Partial<ApiLimits>;
  /** What the command decided; 0 until then. */
  exitCode: number;
}

export type Output = "text" | "json";

/** What every command that talks to the home agent knows. */
export interface OperatorOptions {
  readonly output: Output;
  readonly api: URL;
}

const DEFAULT_API = "http://127.0.0.1:8434";

export function outputOption(): Option {
  return new Option("-o, --output <format>", "text for people, json for programs").choices(["text", "json"]).default("text");
}

/** A command of the operators: `--output` and `--api`, and `run` gives the exit code. */
export function operatorCommand(name: string, description: string, examples: string): Command {
  return new Command(name)
    .description(description)
    .addOption(outputOption())
    .addOption(new Option("--api <url>", "where the home agent's HTTP API is").env("CAREOF_API").argParser(apiUrl).default(new URL(DEFAULT_API), DEFAULT_API))
    .addHelpText("after", `\nExamples:\n${examples}`);
}

export function client(context: Context, options: OperatorOptions): ApiClient {
  return new ApiClient(options.api, context.apiLimits, context.clock);
}

/** The result on standard output: one line of JSON, or the text. */
export function show(context: Context, options: { readonly output: Output }, value: unknown, text: () => string): void {
  context.terminal.out(options.output === "json" ? `${JSON.stringify(value)}\n` : text());
}

export function vmArgument(text: string): VmId {
  return argument(() => vmId(text));
}

export function hostArgument(text: string): HostId {
  return argument(() => hostId(text));
}

function apiUrl(text: string): URL {
  return argument(() => {
    const url = new URL(text);
    if (url.protocol !== "http:" && url.protocol !== "https:") throw new TypeError("it must begin with http:// or https://");
    return url;
  });
}

function argument<T>(parse: () => T): T {
  try {
    return parse();
  } catch (thrown) {
    throw new InvalidArgumentError(toCareofError(thrown).message);
  }
}
