import { addressBytes, addressFromBytes, macBytes, macFromBytes, type IpAddress, type Mac } from "../model/address.js";
import { toCareofError, CareofError } from "../model/errors.js";
import { epoch, hostId, millis, parseMigrationId, vmId, type Epoch, type HostId, type MigrationId, type Millis, type VmId } from "../model/ids.js";
import { isReason, type Reason } from "../model/reasons.js";

/**
 * How one field goes over the wire. `read` trusts nothing of what the generated decoder hands out; `write` makes what the generated encoder takes. Both throw
 * CareofError `malformed-frame` that starts with `at`, the field's path (`register.vms[2].vm`).
 */
export interface Field<T, W> {
  readonly read: (wire: unknown, at: string) => T;
  readonly write: (value: T, at: string) => W;
}

/** What the generated classes allow for a field: unset is null or undefined. */
type Unset = null | undefined;

export function malformed(at: string, what: string, cause?: unknown): CareofError {
  return new CareofError("malformed-frame", `${at}: ${what}`, { cause });
}

function checked<T>(at: string, run: () => T): T {
  try {
    return run();
  } catch (thrown) {
    throw malformed(at, toCareofError(thrown).message, thrown);
  }
}

// ---- numbers ----------------------------------------------------------------------------------------------------------------

/** protobufjs hands a 64-bit field out as an object of two halves when it can, whatever its declarations say. */
function isLong(wire: unknown): wire is { readonly low: number; readonly high: number } {
  return typeof wire === "object" && wire !== null && "low" in wire && typeof wire.low === "number" && "high" in wire && typeof wire.high === "number";
}

function whole(wire: unknown, at: string, min: number, max: number): number {
  const value = isLong(wire) ? (wire.high >>> 0) * 2 ** 32 + (wire.low >>> 0) : wire;
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < min || value > max) {
    throw malformed(at, `not a whole number from ${String(min)} to ${String(max)}`);
  }
  return value;
}

export function integer(min: number, max: number): Field<number, number> {
  return { read: (wire, at) => whole(wire, at, min, max), write: (value, at) => whole(value, at, min, max) };
}

export const uint32 = integer(0, 0xffff_ffff);
/** Up to 2^53 − 1 in a uint64. */
export const uint53 = integer(0, Number.MAX_SAFE_INTEGER);
export const port = integer(0, 0xffff);

export const epochField: Field<Epoch, number> = { read: (wire, at) => epoch(uint53.read(wire, at)), write: uint53.write };

function finite(wire: unknown, at: string, min: number): number {
  if (typeof wire !== "number" || !Number.isFinite(wire) || wire < min) throw malformed(at, "not a finite number in range");
  return wire;
}

/** A rate or the like, in a double: 0 or more. */
export const amount: Field<number, number> = { read: (wire, at) => finite(wire, at, 0), write: (value, at) => finite(value, at, 0) };
/** Milliseconds with fractions, in a double: 0 or more. */
export const instant: Field<Millis, number> = { read: (wire, at) => millis(finite(wire, at, 0)), write: (value, at) => finite(value, at, 0) };
/** A duration in whole milliseconds, in a uint32; fractions are rounded. */
export const duration: Field<Millis, number> = {
  read: (wire, at) => millis(uint32.read(wire, at)),
  write: (value, at) => uint32.write(Math.round(value), at),
};
/** A stamp that may be missing: 0 on the wire. */
export const maybeInstant: Field<Millis | null, number> = {
  read: (wire, at) => (wire === 0 ? null : instant.read(wire, at)),
  write: (value, at) => (value === null ? 0 : instant.write(value, at)),
};
/** A measured duration that may be missing: negative on the wire. */
export const maybeDuration: Field<Millis | null, number> = {
  read: (wire, at) => (finite(wire, at, -Infinity) < 0 ? null : instant.read(wire, at)),
  write: (value, at) => (value === null ? -1 : instant.write(value, at)),
};
export const flag: Field<boolean, boolean> = {
  read: (wire, at) => {
    if (typeof wire !== "boolean") throw malformed(at, "not a boolean");
    return wire;
  },
  write: (value) => value,
};

// ---- text -------------------------------------------------------------------------------------------------------------------

/** `max` is in UTF-16 units. */
export function text(max: number): Field<string, string> {
  const check = (value: unknown, at: string): string => {
    if (typeof value !== "string") throw malformed(at, "not text");
    if (value.length > max) throw malformed(at, `longer than ${String(max)} characters`);
    return value;
  };
  return { read: check, write: check };
}

function textThat(max: number, is: (value: string) => boolean, what: string): Field<string, string> {
  const check = (value: unknown, at: string): string => {
    const found = text(max).read(value, at);
    if (!is(found)) throw malformed(at, `not ${what}`);
    return found;
  };
  return { read: check, write: check };
}

export function absolutePath(max: number): Field<string, string> {
  return textThat(max, (value) => value.startsWith("/") && !value.includes("\0"), "an absolute path");
}
/** Of a unix socket: what Linux takes. */
export const socketPath = absolutePath(107);
/** What Linux takes (dev_valid_name). */
export const interfaceName = textThat(15, (value) => value !== "" && value !== "." && value !== ".." && !/[\s/:]/.test(value) && !value.includes("\0"), "the name of an interface");

function named<T extends string>(parse: (text: string) => T): Field<T, string> {
  return { read: (wire, at) => { const raw = text(128).read(wire, at); return checked(at, () => parse(raw)); }, write: (value) => value };
}

export const vm: Field<VmId, string> = named(vmId);
export const host: Field<HostId, string> = named(hostId);
export const migration: Field<MigrationId, string> = named((raw) => parseMigrationId(raw).id);

/** Text for people: cut instead of refused when it is sent. */
export const detail: Field<string, string> = { read: text(4096).read, write: (value) => value.slice(0, 4096) };

/** One of the words. */
export function word<T extends string>(...words: readonly T[]): Field<T, string> {
  return {
    read: (wire, at) => {
      const found = words.find((candidate) => candidate === wire);
      if (found === undefined) throw malformed(at, `not one of ${words.join(", ")}`);
      return found;
    },
    write: (value) => value,
  };
}

/** One of the numbers of a protobuf enumeration. */
export function enumeration<T extends string, W extends number>(numbers: Readonly<Record<T, W>>): Field<T, W> {
  const words = new Map<unknown, T>();
  for (const key in numbers) words.set(numbers[key], key);
  return {
    read: (wire, at) => {
      const found = words.get(wire);
      if (found === undefined) throw malformed(at, `not one of ${[...words.values()].join(", ")}`);
      return found;
    },
    write: (value) => numbers[value],
  };
}

/** A newer peer may have reasons that we have not: any other word is `unspecified` here. */
export const reason: Field<Reason, string> = {
  read: (wire, at) => {
    if (typeof wire !== "string" || !/^[a-z][a-z0-9-]{0,63}$/.test(wire)) throw malformed(at, "not a reason");
    return isReason(wire) ? wire : "unspecified";
  },
  write: (value) => value,
};

// ---- bytes ------------------------------------------------------------------------------------------------------------------

/** Copied, so that it does not hold on to the frame. */
export function bytes(min: number, max: number): Field<Uint8Array, Uint8Array> {
  const check = (value: unknown, at: string): Uint8Array => {
    // Unset is an empty array there, and not one of bytes.
    const found = Array.isArray(value) && value.length === 0 ? new Uint8Array(0) : value;
    if (!(found instanceof Uint8Array)) throw malformed(at, "not bytes");
    if (found.length < min || found.length > max) {
      throw malformed(at, `${String(found.length)} bytes instead of ${min === max ? String(min) : `${String(min)} to ${String(max)}`}`);
    }
    return new Uint8Array(found);
  };
  return { read: check, write: check };
}

export const address: Field<IpAddress, Uint8Array> = {
  read: (wire, at) => { const raw = bytes(0, 64).read(wire, at); return checked(at, () => addressFromBytes(raw)); },
  write: addressBytes,
};
export const macAddress: Field<Mac, Uint8Array> = {
  read: (wire, at) => { const raw = bytes(6, 6).read(wire, at); return checked(at, () => macFromBytes(raw)); },
  write: macBytes,
};

// ---- what is made of others -------------------------------------------------------------------------------------------------

/** Empty text is none. */
export function orEmpty<T extends string>(field: Field<T, string>): Field<T | null, string> {
  return {
    read: (wire, at) => (wire === "" ? null : field.read(wire, at)),
    write: (value, at) => (value === null ? "" : field.write(value, at)),
  };
}

export function optional<T, W>(field: Field<T, W>): Field<T | null, W | Unset> {
  return {
    read: (wire, at) => (wire === null || wire === undefined ? null : field.read(wire, at)),
    write: (value, at) => (value === null ? null : field.write(value, at)),
  };
}

export function list<T, W>(field: Field<T, W>, max: number): Field<readonly T[], W[]> {
  return {
    read: (wire, at) => {
      if (!Array.isArray(wire)) throw malformed(at, "not a list");
      if (wire.length > max) throw malformed(at, `more than ${String(max)} entries`);
      return wire.map((entry: unknown, index) => field.read(entry, `${at}[${String(index)}]`));
    },
    write: (value, at) => {
      if (value.length > max) throw malformed(at, `more than ${String(max)} entries`);
      return value.map((entry, index) => field.write(entry, `${at}[${String(index)}]`));
    },
  };
}

/** One field for every property; the names are those of the generated class, which the types enforce. */
export type Fields<T, W> = { readonly [K in keyof T]-?: K extends keyof W ? Field<T[K], W[K]> : never };

/** A field whose types are forgotten: only what came out of the same field may be written. */
interface AnyField {
  readonly read: (wire: unknown, at: string) => unknown;
  readonly write: (value: never, at: string) => unknown;
}

/** A message. Fields of `W` that `T` has not are ignored when read and unset when written. */
export function message<T extends object, W extends object>(fields: Fields<T, W>): Field<T, W> {
  const entries = Object.entries<AnyField>(fields);
  const each = (from: unknown, at: string, run: (field: AnyField, value: unknown, at: string) => unknown): Record<string, unknown> => {
    if (typeof from !== "object" || from === null) throw malformed(at, "missing");
    const made: Record<string, unknown> = {};
    for (const [name, field] of entries) made[name] = run(field, Reflect.get(from, name), `${at}.${name}`);
    return made;
  };
  // `Fields` has a field for each property, and each field takes and makes its type: what TypeScript cannot follow through the loop.
  return {
    read: (wire, at) => each(wire, at, (field, value, where) => field.read(value, where)) as T,
    write: (value, at) => each(value, at, (field, property, where) => field.write(property as never, where)) as W,
  };
}
