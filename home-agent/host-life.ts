/** Which life of a host agent speaks, as it says at registration. */
export interface HostLife {
  /** Random, new with every start of the process. */
  readonly instance: string;
  /** RFC 5847 §3: kept on the host's disk, one more at every start. It begins anew only with a new disk. */
  readonly restartCounter: number;
}

/** Whether a host that was `before` still has what it wrote then: the same process, or one that was started from the same disk. */
export function keptItsState(before: HostLife | null, now: HostLife): boolean {
  return before !== null && (now.instance === before.instance || now.restartCounter > before.restartCounter);
}
