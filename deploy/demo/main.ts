import { writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { CareofError, toCareofError } from "../../model/errors.js";
import { cleanAbandoned, Lab } from "../lab/lab.js";
import { lastWords, partDied } from "./ending.js";
import { checkMachine } from "./machine.js";
import { demoOptions, USAGE, type DemoOptions } from "./options.js";
import { picture } from "./picture.js";
import { paperSeries, type DemoRecord } from "./record.js";
import { report } from "./report.js";
import { play } from "./scenario.js";
import { LineScreen, TerminalScreen, type Screen } from "./screen.js";
import { summary } from "./summary.js";

/**
 * The demo: a real guest moves between two subnets and back while a correspondent talks to it. Removes what it made however it ends, and first what an
 * earlier run left that could not.
 * @returns the exit code: 0 both moves completed and every TCP session survived; 1 not so, with the reason on standard error; 2 wrong usage
 */
export async function runDemo(args: readonly string[], signal: AbortSignal): Promise<number> {
  let options: DemoOptions | null;
  try {
    options = demoOptions(args);
  } catch (thrown) {
    process.stderr.write(`${toCareofError(thrown).message}\n${USAGE}`);
    return 2;
  }
  if (options === null) {
    process.stdout.write(USAGE);
    return 0;
  }
  const write = (text: string): boolean => process.stdout.write(text);
  const screen: Screen = process.stdout.isTTY ? new TerminalScreen(write, () => process.stdout.columns) : new LineScreen(write);
  try {
    await checkMachine();
    const cleaned = await cleanAbandoned();
    if (cleaned.length > 0) screen.say(`removed what ${cleaned.length === 1 ? "an earlier run" : `${String(cleaned.length)} earlier runs`} left`);
    const record = await inLab(options, screen, signal);
    finish(record, options);
    const good = record.result.tcp.survived && record.result.moves.every((move) => move.result === "completed");
    return good ? 0 : 1;
  } catch (thrown) {
    screen.close();
    process.stderr.write(lastWords(thrown));
    return 1;
  }
}

async function inLab(options: DemoOptions, screen: Screen, signal: AbortSignal): Promise<DemoRecord> {
  screen.phase("making five network namespaces");
  const lab = await Lab.make();
  let keep = options.keep;
  const over = new AbortController();
  try {
    return await Promise.race([play(lab, options, screen, over.signal), accident(lab, signal, over.signal)]);
  } catch (thrown) {
    keep = false;
    throw thrown;
  } finally {
    screen.close();
    over.abort();
    if (keep) {
      lab.leave();
      screen.say(`left running: namespaces co-${lab.run}-{c,h,r,a,b}, files in ${lab.directory}; the next run removes them`);
    } else {
      const left = await lab.close();
      if (left.length > 0) process.stderr.write(`careof demo: could not remove ${left.join(", ")}\n`);
    }
  }
}

/** Rejects when a part dies or the person interrupts. */
async function accident(lab: Lab, signal: AbortSignal, over: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    lab.onDeath((part) => {
      reject(partDied(part));
    });
    const interrupted = (): void => {
      reject(new CareofError("interrupted", "interrupted; everything that it made is removed"));
    };
    if (signal.aborted) interrupted();
    else signal.addEventListener("abort", interrupted, { once: true, signal: over });
  });
}

function finish(record: DemoRecord, options: DemoOptions): void {
  const paper = paperSeries();
  writeFileSync(options.report, report(record, paper));
  if (options.svg !== null) writeFileSync(options.svg, `${picture(record, paper)}\n`);
  if (options.json !== null) writeFileSync(options.json, `${JSON.stringify(record.result, null, 2)}\n`);
  process.stdout.write(`\n${summary(record.result, paper)}The plot is in ${resolve(options.report)}\n`);
}
