import type { Logger } from "../../model/log.js";
import type { Body } from "../../proto/messages.js";
import type { Hold } from "../hold.js";
import type { Guest, StreamOptions } from "../hypervisor/driver.js";
import type { PassedOn } from "./left-behind.js";
import type { OldPathRim } from "./old-path.js";
import type { SourceRelay } from "./relay.js";
import type { SourceState } from "./source-shapes.js";
import type { Urgency } from "./urgency.js";

/** What a source's migration needs of the host around it. */
export interface SourceRim extends OldPathRim {
  readonly log: Logger;
  readonly hold?: Hold;
  readonly urgency: Urgency;
  readonly guest: Guest | null;
  readonly stream: Omit<StreamOptions, "socket">;
  openRelay(): Promise<SourceRelay>;
  /** Durable when it returns. @throws CareofError */
  record(state: "active" | "released" | "resumed", machine: SourceState): void;
  clearStamps(): void;
  /** By the reverse tunnel, behind everything that the guest has sent. @throws CareofError `kernel-refused` */
  sendUpMarker(token: number): void;
  forward(): void;
  /** The guest is elsewhere for good: a packet that it had not taken goes there. @throws CareofError `kernel-refused` */
  passOn(packet: Buffer): PassedOn;
  deliver(): void;
  /** To the home agent: `say` once, if it is there; `report` until it is answered. */
  say(body: Body): void;
  report(body: Body<"released"> | Body<"sourceEnded">): void;
  /** The guest is gone for good: what else of it goes at once. */
  destroyed(): Promise<void>;
}
