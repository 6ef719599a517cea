/**
 * Every failure that careof reports. `code` is stable: it is the HTTP body's `code`, the log field and what scripts match on.
 * `retryable` says that the same call may succeed later with nothing changed by the caller.
 */
export class CareofError extends Error {
  readonly code: string;
  readonly retryable: boolean;

  constructor(code: string, message: string, options: { readonly retryable?: boolean; readonly cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "CareofError";
    this.code = code;
    this.retryable = options.retryable ?? false;
  }
}

/** The error as one of ours: what is thrown by the platform becomes `internal`, with itself as cause. */
export function toCareofError(thrown: unknown, code = "internal"): CareofError {
  if (thrown instanceof CareofError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new CareofError(code, message, { cause: thrown });
}
