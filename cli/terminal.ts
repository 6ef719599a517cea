/**
 * The person or the pipe at the other end of a command. Contract: `out` is the result (a pipe gets nothing else), `err` is what happens meanwhile and
 * errors. Nothing is ever asked.
 */
export interface Terminal {
  out(text: string): void;
  err(text: string): void;
  /** Whether standard output, and standard error, can be drawn on. */
  readonly outIsLive: boolean;
  readonly errIsLive: boolean;
  /** Characters that fit into a line of standard output; null when nobody looks (a pipe gets lines as long as they are). */
  readonly columns: number | null;
  /** Lines of the screen; null likewise. */
  readonly rows: number | null;
  /** Characters that fit into a line of standard error, which may be a terminal where standard output is a pipe; null likewise. */
  readonly errColumns: number | null;
  /** Takes Ctrl-C and SIGTERM over until the returned function is called. */
  onInterrupt(listener: () => void): () => void;
}

/** What of a process's own stream is asked. */
export interface Stream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
  write(text: string): unknown;
}

/** Of a terminal that does not know its size: a serial console says 0 × 0. */
const ORDINARY_COLUMNS = 80;
const ORDINARY_ROWS = 24;

export class ProcessTerminal implements Terminal {
  readonly #stdout: Stream;
  readonly #stderr: Stream;

  constructor(stdout: Stream = process.stdout, stderr: Stream = process.stderr) {
    this.#stdout = stdout;
    this.#stderr = stderr;
  }

  out(text: string): void {
    this.#stdout.write(text);
  }

  err(text: string): void {
    this.#stderr.write(text);
  }

  get outIsLive(): boolean {
    return this.#stdout.isTTY === true;
  }

  get errIsLive(): boolean {
    return this.#stderr.isTTY === true;
  }

  get columns(): number | null {
    return this.outIsLive ? sizeOr(this.#stdout.columns, ORDINARY_COLUMNS) : null;
  }

  get rows(): number | null {
    return this.outIsLive ? sizeOr(this.#stdout.rows, ORDINARY_ROWS) : null;
  }

  get errColumns(): number | null {
    return this.errIsLive ? sizeOr(this.#stderr.columns, ORDINARY_COLUMNS) : null;
  }

  onInterrupt(listener: () => void): () => void {
    process.on("SIGINT", listener);
    process.on("SIGTERM", listener);
    return () => {
      process.off("SIGINT", listener);
      process.off("SIGTERM", listener);
    };
  }
}

function sizeOr(size: number | undefined, ordinary: number): number {
  return size === undefined || size === 0 ? ordinary : size;
}

/** Text of somebody else made fit for a terminal: no control characters, so that it cannot move the cursor. */
export function plain(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, "?");
}
