import { z } from "zod";
import { parsed } from "../../model/config.js";
import { CareofError } from "../../model/errors.js";
import { hostId, millis, vmId, type HostId } from "../../model/ids.js";
import { wishesOf, wishWords, wordsOf } from "../api/move-wishes.js";
import type { Stored } from "../store/store.js";
import { newStay, ORDERS, type Drain } from "./drain.js";

const record = z.object({
  to: z.array(parsed(hostId)),
  limit: z.number().int().min(1),
  order: z.enum(ORDERS),
  /** A home agent that knew none has written none. */
  wishes: wishWords.default({}).transform(wishesOf),
  actor: z.string(),
  startedAt: z.number().transform((value) => millis(value)),
  phase: z.enum(["running", "interrupted", "ended"]),
  vms: z.array(parsed(vmId)),
});

/** What of a drain survives this process: the mark itself, the wish, and which VMs it is about. What has become of them shows. */
export function durableDrain({ to, limit, order, wishes, actor, startedAt, phase, stays }: Drain): Stored {
  return { to, limit, order, wishes: wordsOf(wishes), actor, startedAt, phase, vms: stays.map((stay) => stay.vm) };
}

/** @throws CareofError `store-corrupt` for what this version cannot have written */
export function restoreDrain(host: HostId, value: Stored): Drain {
  const read = record.safeParse(value);
  if (!read.success) throw new CareofError("store-corrupt", `the record of the drain of ${host} cannot be read: ${read.error.issues[0]?.path.map(String).join(".") ?? ""} ${read.error.issues[0]?.message ?? ""}`);
  const { vms, ...wish } = read.data;
  return { host, ...wish, cancelling: false, stays: vms.map(newStay) };
}
