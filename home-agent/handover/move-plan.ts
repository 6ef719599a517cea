import type { Millis } from "../../model/ids.js";
import type { HandoverConfig } from "../config.js";

/** How one move's memory is copied, and what becomes of it when that takes too long. */
export type MovePlan = Pick<HandoverConfig, "maxBandwidth" | "downtimeLimitMs" | "timeoutMs" | "onTimeout" | "forceMs" | "autoConverge" | "channels" | "postcopy" | "encrypt">;

/** What an operator wants otherwise than configured, for one move. */
export type MoveWishes = Partial<MovePlan>;

export function movePlan(wishes: MoveWishes, { maxBandwidth, downtimeLimitMs, timeoutMs, onTimeout, forceMs, autoConverge, channels, postcopy, encrypt }: HandoverConfig): MovePlan {
  const plan = { maxBandwidth, downtimeLimitMs, timeoutMs, onTimeout, forceMs, autoConverge, channels, postcopy, encrypt, ...wishes };
  // What is only configured holds where it can be; what is wished is refused where it cannot.
  return { ...plan, postcopy: plan.postcopy && (wishes.postcopy === true || plan.channels === 1) };
}

/** The longest that the source itself lets a copy take. */
export function copyLimit({ timeoutMs, onTimeout, forceMs, postcopy }: MovePlan): Millis {
  return (onTimeout === "force" || postcopy ? timeoutMs + forceMs : timeoutMs) as Millis;
}
