import { z } from "zod";
import { millis } from "../../model/ids.js";
import { MAX_CHANNELS } from "../../proto/messages.js";
import type { MoveWishes } from "../handover/move-plan.js";

/** An hour, as in the configuration. */
const MAX_MS = 3_600_000;
const duration = z.number().min(1).max(MAX_MS).optional();

/** What one move may want otherwise than configured: keys of `POST /v1/migrations`, and for all its moves of `POST /v1/hosts/{host}/drain`. Bytes per second, 0 is unlimited; milliseconds. */
export const wishFields = {
  bandwidth: z.number().int().min(0).max(Number.MAX_SAFE_INTEGER).optional(),
  downtimeLimitMs: duration,
  autoConverge: z.boolean().optional(),
  channels: z.number().int().min(1).max(MAX_CHANNELS).optional(),
  timeoutMs: duration,
  onTimeout: z.enum(["abort", "force"]).optional(),
  postcopy: z.boolean().optional(),
  encrypt: z.boolean().optional(),
};

export const wishWords = z.object(wishFields);
export type WishWords = z.output<typeof wishWords>;

export function wishesOf({ bandwidth, downtimeLimitMs, timeoutMs, autoConverge, channels, onTimeout, postcopy, encrypt }: WishWords): MoveWishes {
  return {
    ...(bandwidth === undefined ? {} : { maxBandwidth: bandwidth }),
    ...(downtimeLimitMs === undefined ? {} : { downtimeLimitMs: millis(downtimeLimitMs) }),
    ...(timeoutMs === undefined ? {} : { timeoutMs: millis(timeoutMs) }),
    ...(autoConverge === undefined ? {} : { autoConverge }),
    ...(channels === undefined ? {} : { channels }),
    ...(onTimeout === undefined ? {} : { onTimeout }),
    ...(postcopy === undefined ? {} : { postcopy }),
    ...(encrypt === undefined ? {} : { encrypt }),
  };
}

/** `wishesOf` backwards. */
export function wordsOf({ maxBandwidth, downtimeLimitMs, timeoutMs, autoConverge, channels, onTimeout, postcopy, encrypt }: MoveWishes): WishWords {
  return {
    ...(maxBandwidth === undefined ? {} : { bandwidth: maxBandwidth }),
    ...(downtimeLimitMs === undefined ? {} : { downtimeLimitMs }),
    ...(autoConverge === undefined ? {} : { autoConverge }),
    ...(channels === undefined ? {} : { channels }),
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
    ...(onTimeout === undefined ? {} : { onTimeout }),
    ...(postcopy === undefined ? {} : { postcopy }),
    ...(encrypt === undefined ? {} : { encrypt }),
  };
}
