import { z } from "zod";
import type { HostId } from "../../model/ids.js";
import { ORDERS, type Order } from "../drains/drain.js";
import type { MoveWishes } from "../handover/move-plan.js";
import { wishWords } from "./move-wishes.js";
import type { HostView } from "./operations.js";

/**
 * How a drain is doing. `running`: VMs move away. `stopping`: interrupted, and what moves goes on to its end. `interrupted`: nothing moves any more. `completed`: no VM
 * is there. `incomplete`: over, and some were left. `undrained`: it is over, and the host takes VMs again.
 */
const summary = {
  host: z.string(),
  state: z.enum(["running", "stopping", "interrupted", "completed", "incomplete", "undrained"]),
  to: z.array(z.string()),
  limit: z.number(),
  order: z.enum(ORDERS),
  /** How its VMs move otherwise than configured. */
  wishes: wishWords,
  actor: z.string(),
  startedAt: z.iso.datetime(),
  total: z.number(),
  /** VMs that are elsewhere, or run nowhere any more. */
  moved: z.number(),
  moving: z.number(),
  waiting: z.number(),
  left: z.number(),
};

export const drainSummary = z.object(summary);
/** The data of the event `drain`. */
export type DrainSummary = z.infer<typeof drainSummary>;

export const drainView = z.object({
  ...summary,
  vms: z.array(z.object({
    vm: z.string(),
    state: z.enum(["waiting", "moving", "moved", "stopped", "left"]),
    to: z.string().nullable(),
    migration: z.string().nullable(),
    /** Why it waits, or was left. */
    reason: z.string().nullable(),
    detail: z.string(),
  })),
});
export type DrainView = z.infer<typeof drainView>;

/** What is not said stays as it was, or takes the configuration's. */
export interface DrainWish {
  readonly to?: readonly HostId[] | undefined;
  readonly limit?: number | undefined;
  readonly order?: Order | undefined;
  /** How the VMs move; of these too each stays as it was where it is not said. */
  readonly wishes?: MoveWishes;
}

/** What the API may ask about draining. Every refusal is a CareofError whose code is the reason, and has changed nothing. */
export interface DrainOperations {
  /** @throws CareofError `unknown-host`, `not-draining` */
  drain(host: HostId): DrainView;
  /**
   * The host takes no VMs from now on, whatever happens to this process, and those that are there move away. Resolves when that is on disk and has begun. Again: what was left is
   * tried again, an interrupted one goes on. @throws CareofError `unknown-host`, `not-permitted`, `store-unavailable`
   */
  beginDrain(host: HostId, wish: DrainWish, actor: string): Promise<DrainView>;
  /** No other VM begins to move; those that do go on, or (`cancel`) are cancelled. The host still takes none. @throws CareofError `unknown-host`, `not-draining`, `store-unavailable` */
  interruptDrain(host: HostId, options: { readonly cancel: boolean }): Promise<DrainView>;
  /** The host takes VMs again. What moves goes on, nothing comes back. Also for a host that is not drained. @throws CareofError `unknown-host`, `store-unavailable` */
  undrain(host: HostId): Promise<HostView>;
}
