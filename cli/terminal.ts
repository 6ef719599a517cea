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
  /** Characters that fit into a line; null when nobody looks (a pipe gets lines as long as they are). */
  readonly columns: number | null;
  /** Lines of the screen; null likewise. */
  readonly rows: number | null;
  /** Takes Ctrl-C and SIGTERM over until the returned function is called. */
  onInterrupt(listener: () => void): () => void;
}

export class ProcessTerminal implements Terminal {
  out(text: string): void {
    process.stdout.write(text);
  }

  err(text: string): void {
    process.stderr.write(text);
  }

  get outIsLive(): boolean {
    return process.stdout.isTTY;
  }

  get errIsLive(): boolean {
    return process.stderr.isTTY;
  }

  get columns(): number | null {
    return process.stdout.isTTY ? process.stdout.columns : null;
  }

  get rows(): number | null {
    return process.stdout.isTTY ? process.stdout.rows : null;
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

/** Text of somebody else made fit for a terminal: no control characters, so that it cannot move the cursor. */
export function plain(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, "?");
}
