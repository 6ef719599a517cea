/**
 * Why something was decided. The same word is the log field, the metric label and the reply; where RFC 5944 §3.4 has a code
 * for it, that goes along on the wire.
 */
export const REASONS = {
  accepted: 0,
  unspecified: 128,
  "not-listed": 129,
  "not-owner": 129,
  "not-permitted": 129,
  "foreign-care-of": 129,
  "too-many": 130,
  "no-resources": 130,
  "bad-tag": 131,
  "unknown-key": 131,
  "bad-token": 132,
  "unknown-host": 132,
  replayed: 133,
  "stale-epoch": 133,
  "stale-nonce": 133,
  "clock-skew": 133,
  malformed: 134,
  "unknown-vm": 136,
  "already-here": 128,
  "already-moving": 128,
  "already-running": 128,
  "not-moving": 128,
  "not-running": 128,
  "not-bound": 128,
  "guest-unreachable": 128,
  "host-gone": 128,
  "host-draining": 128,
  "not-draining": 128,
  "no-host-fits": 128,
  "not-enough-memory": 130,
  "unsupported": 128,
  "unsupported-version": 128,
  "store-unavailable": 128,
  "start-pending": 128,
  "stop-pending": 128,
  "start-failed": 128,
  "stop-failed": 128,
  "prepare-failed": 128,
  "relay-failed": 128,
  "migrate-failed": 128,
  "no-room": 130,
  "disk-exists": 128,
  "disk-failed": 128,
  "source-gone": 128,
  "target-gone": 128,
  "timed-out": 128,
  "cancelled-by-operator": 128,
  "both-claim": 128,
  "released-unknown": 128,
  "postcopy-broken": 128,
  "shutting-down": 128,
} as const;

export type Reason = keyof typeof REASONS;

export function isReason(text: string): text is Reason {
  return Object.hasOwn(REASONS, text);
}

/** RFC 5944 §3.4 code of the reason: 0 accepted, 128 unspecified where the RFC has no better one. */
export function replyCode(reason: Reason): number {
  return REASONS[reason];
}
