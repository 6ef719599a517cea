import { CareofError, toCareofError } from "../../model/errors.js";
import type { Part } from "../lab/part.js";

const LOG_LINES = 12;

/** An end with the logs that explain it: shown before the sentence, so that the sentence is the last thing a person reads. */
export class DemoEnd extends CareofError {
  readonly logs: string;

  constructor(code: string, message: string, logs: string) {
    super(code, message);
    this.logs = logs;
  }
}

/** `part` is one that ended on its own. */
export function partDied(part: Pick<Part, "name" | "end" | "tail">): DemoEnd {
  const how = part.end === null ? "ended" : part.end.signal !== null ? `was killed by ${part.end.signal}` : `ended with exit code ${String(part.end.code)}`;
  const log = part.tail(LOG_LINES);
  const where = log === "" ? "It had logged nothing" : "The end of its log is above";
  return new DemoEnd("part-died", `${part.name} ${how} in the midst of it. ${where}; everything that the demo made is removed.`, log);
}

/** What is said of a demo that did not reach its end: logs, if they explain it, and the sentence last. */
export function lastWords(thrown: unknown): string {
  const sentence = `careof demo: ${toCareofError(thrown).message}\n`;
  return thrown instanceof DemoEnd && thrown.logs !== "" ? `${thrown.logs}\n\n${sentence}` : sentence;
}
