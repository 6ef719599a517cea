import type { CareofError } from "../../model/errors.js";

const STATUS: Readonly<Record<string, number>> = {
  "unknown-vm": 404, "unknown-host": 404, "unknown-migration": 404, "unknown-path": 404,
  "method-not-allowed": 405, "body-too-large": 413, "not-json": 415,
  "foreign-origin": 403, "foreign-host": 421,
  "too-many": 429,
  "not-listed": 409, "not-owner": 409, "not-permitted": 409, "not-bound": 409, "not-running": 409, "not-moving": 409, "already-here": 409, "already-moving": 409,
  "already-running": 409, "guest-unreachable": 409, "host-gone": 409, "start-pending": 409, "stop-pending": 409, "start-failed": 409, "stop-failed": 409, "both-claim": 409, "released-unknown": 409,
  "foreign-care-of": 409, unsupported: 409, "prepare-failed": 409, "relay-failed": 409, "migrate-failed": 409, "source-gone": 409, "target-gone": 409, "postcopy-broken": 409,
  "cancelled-by-operator": 409, "no-resources": 409, "host-draining": 409, "no-host-fits": 409, "not-enough-memory": 409, "not-draining": 404,
  "store-unavailable": 503, "shutting-down": 503, "not-ready": 503,
  "timed-out": 504,
};

/** RFC 9110 §15 status of an error: malformed words are the client's (400), a configuration that does not fit is the operator's (422), what is not known here is ours (500). */
export function statusOf(error: CareofError): number {
  return STATUS[error.code] ?? (error.code.startsWith("malformed") ? 400 : error.code.startsWith("config-") || error.code === "key-unreadable" ? 422 : 500);
}
