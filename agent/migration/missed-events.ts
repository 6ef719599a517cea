import type { Millis } from "../../model/ids.js";
import type { GuestStatus, StreamStatus } from "../hypervisor/driver.js";
import type { SourceEvent, SourceState } from "./source-shapes.js";

export interface Found {
  readonly status: GuestStatus;
  readonly stream: StreamStatus;
  /** The hypervisor had been told to send before it was asked: else its word is of an earlier migration, by which the guest may have come here. */
  readonly sending: boolean;
  /** What the stream was last said to be; `null`: nothing yet. */
  readonly heard: StreamStatus | null;
  readonly at: Millis;
}

/**
 * What the source's machine would have been told while the guest's monitor did not answer. Only that of somebody else's process comes back (agent/hypervisor/monitor.ts), and the hypervisor tells nothing
 * twice: a guest that has stopped at the gate meanwhile would stand there until the time is over. A stop that was not seen has the time of this look, the first at which it is known.
 */
export function missedEvents(state: Pick<SourceState, "stopAt" | "phase">, { status, stream, sending, heard, at }: Found): readonly SourceEvent[] {
  if (status === "gone") return [{ kind: "guest", status, stream }];
  if (!sending) return [];
  return [
    ...(status === "running" && state.phase === "stopped" ? [{ kind: "resumed" } as const] : []),
    ...(status !== "running" && state.stopAt === null ? [{ kind: "stopped", at } as const] : []),
    ...(stream === "none" || stream === heard ? [] : [{ kind: "stream", status: stream } as const]),
  ];
}
