import { pino, type Logger as PinoLogger } from "pino";

/** Structured log. Fields by convention: `vm host epoch migration reason code err`. */
export type Logger = PinoLogger;

export type LogLevel = "trace" | "debug" | "info" | "warn" | "error" | "silent";

/** One JSON object a line on standard output, secrets never among the fields. */
export function createLogger(part: string, level: LogLevel = "info"): Logger {
  return pino({ name: part, level, base: { part }, timestamp: pino.stdTimeFunctions.isoTime, redact: ["token", "secret", "key", "*.token", "*.secret", "*.key"] });
}
