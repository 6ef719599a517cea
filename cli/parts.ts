/** What `careof` starts in its own process. `cli/main.ts` alone knows where they are. */
export interface Parts {
  /** Each resolves after a clean shutdown, which `signal` asks for. @throws CareofError, also for its configuration */
  readonly homeAgent: (configFile: string, signal: AbortSignal) => Promise<void>;
  readonly agent: (configFile: string, signal: AbortSignal) => Promise<void>;
  readonly heartbeat: (configFile: string, signal: AbortSignal) => Promise<void>;
  /** Resolves to the exit code. */
  readonly demo: (args: readonly string[], signal: AbortSignal) => Promise<number>;
  /** Resolves to the exit code. */
  readonly doctor: (options: DoctorOptions) => Promise<number>;
}

export interface DoctorOptions {
  readonly output: "text" | "json";
  /** Of the home agent or of a host agent; null looks at the machine alone. */
  readonly configFile: string | null;
  /** Sets what a sysctl can mend; `persist` also for the machine's next start. */
  readonly fix: boolean;
  readonly persist: boolean;
  readonly write: (text: string) => void;
}
