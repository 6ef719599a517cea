import { HOSTS, PLAN } from "../lab/plan.js";
import type { TrafficSample } from "../lab/traffic.js";

/** What a person sees of the demo. */
export interface Screen {
  /** One line that stays. */
  say(line: string): void;
  /** Where the guest is now; `null` between two hosts. */
  guestAt(host: string | null): void;
  /** What is going on, replaced by the next one. */
  phase(text: string): void;
  sample(sample: TrafficSample): void;
  /** Takes away what was only for the moment. */
  close(): void;
}

/** For pipes and logs: a line with its second for everything that changes. */
export class LineScreen implements Screen {
  readonly #write: (text: string) => void;
  readonly #start = performance.now();
  #phase = "";

  constructor(write: (text: string) => void) {
    this.#write = write;
  }

  say(line: string): void {
    this.#write(`${((performance.now() - this.#start) / 1000).toFixed(1).padStart(6)} s  ${line}\n`);
  }

  guestAt(host: string | null): void {
    if (host !== null) this.say(`${PLAN.guest.name} ${PLAN.guest.address} is in care of ${host}`);
  }

  /** Once for each kind of phase: its figures change many times a second. */
  phase(text: string): void {
    const kind = text.replace(/[0-9.,]+/g, "");
    if (kind !== this.#phase && text !== "") this.say(text);
    this.#phase = kind;
  }

  sample(): void {
    // A line ten times a second would bury the rest.
  }

  close(): void {
    this.#phase = "";
  }
}

const BARS = "▁▂▃▄▅▆▇█";
/** Rates kept, of 100 ms each. */
const KEPT = 120;
/** What stands before the bars in their line. */
const BEFORE_BARS = 35;

/** For terminals: lines that stay, and below them a view that is drawn again with every sample. */
export class TerminalScreen implements Screen {
  readonly #write: (text: string) => void;
  readonly #columns: () => number;
  readonly #start = performance.now();
  readonly #rates: number[] = [];
  #host: string | null = null;
  #phase = "";
  #sample: TrafficSample | null = null;
  #drawn = 0;

  /** `columns` is the terminal's width now: a line that wraps could not be drawn again. */
  constructor(write: (text: string) => void, columns: () => number) {
    this.#write = write;
    this.#columns = columns;
  }

  say(line: string): void {
    this.#erase();
    this.#write(`\x1b[2m${((performance.now() - this.#start) / 1000).toFixed(1).padStart(6)} s\x1b[0m  ${line}\n`);
    this.#draw();
  }

  guestAt(host: string | null): void {
    this.#host = host;
    this.#redraw();
  }

  phase(text: string): void {
    this.#phase = text;
    this.#redraw();
  }

  sample(sample: TrafficSample): void {
    this.#sample = sample;
    this.#rates.push((sample.bulkDown.reduce((sum, each) => sum + each, 0) * 8) / 1e5);
    if (this.#rates.length > KEPT) this.#rates.shift();
    this.#redraw();
  }

  close(): void {
    this.#erase();
    this.#sample = null;
    this.#host = null;
    this.#phase = "";
  }

  #redraw(): void {
    this.#erase();
    this.#draw();
  }

  #erase(): void {
    if (this.#drawn > 0) this.#write(`\x1b[${String(this.#drawn)}A\x1b[J`);
    this.#drawn = 0;
  }

  #draw(): void {
    const lines: string[] = [];
    if (this.#host !== null || this.#sample !== null) {
      lines.push("", `   ${HOSTS.map((host) => `${host} ${PLAN.hosts[host].careOf} ${this.#host === host ? `\x1b[1;32m[ ${PLAN.guest.name} ]\x1b[0m` : "[      ]"}`).join("      ")}`);
    }
    if (this.#sample !== null) {
      const most = Math.max(...this.#rates, 1);
      const bars = this.#rates.slice(-Math.max(1, this.#columns() - BEFORE_BARS - 1)).map((rate) => BARS[Math.min(BARS.length - 1, Math.floor((rate / most) * (BARS.length - 0.01)))] ?? " ").join("");
      const { sentDown, guestUnique, highestUp, uniqueUp, rttMs } = this.#sample;
      lines.push(`   TCP to the guest ${(this.#rates.at(-1) ?? 0).toFixed(1).padStart(6)} Mbit/s  \x1b[36m${bars}\x1b[0m`);
      lines.push(this.#clipped(`   UDP to the guest ${String(guestUnique)} of ${String(sentDown)}, from it ${String(uniqueUp)} of ${String(highestUp)}; a request takes ${rttMs.toFixed(1)} ms`));
    }
    if (this.#phase !== "") lines.push(this.#clipped(`   ${this.#phase}`));
    if (lines.length > 0) this.#write(`${lines.join("\n")}\n`);
    this.#drawn = lines.length;
  }

  #clipped(line: string): string {
    return line.slice(0, this.#columns() - 1);
  }
}
