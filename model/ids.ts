import type { Brand } from "./brand.js";
import { CareofError } from "./errors.js";

/** Names a virtual machine, unique under one home agent: 1 to 63 characters of `a-z 0-9 . _ -`, starting with a letter or digit. */
export type VmId = Brand<string, "VmId">;
/** Names a host, by the same rule as a VM. */
export type HostId = Brand<string, "HostId">;
/** Names one migration: the VM and the epoch that it reserved, `web1@7`. */
export type MigrationId = Brand<string, "MigrationId">;
/**
 * Orders the owners of one VM. Issued by the home agent only, written to disk before use, never reused, only grows; 0 is
 * "never bound". An integer up to 2^53 − 1.
 */
export type Epoch = Brand<number, "Epoch">;
/** Milliseconds, of a wall clock (since 1970) or of a duration; fractions allowed. */
export type Millis = Brand<number, "Millis">;
/** Which of a VM's keys signed a heartbeat: 0 to 2^32 − 1. */
export type KeyId = Brand<number, "KeyId">;

const NAME = /^[a-z0-9][a-z0-9._-]{0,62}$/;

function name(kind: "vm" | "host", text: string): string {
  if (!NAME.test(text)) {
    throw new CareofError(`malformed-${kind}`, `"${text.slice(0, 80)}" is not a ${kind} name: 1 to 63 of a-z 0-9 . _ -, starting with a letter or digit`);
  }
  return text;
}

/** @throws CareofError `malformed-vm` */
export function vmId(text: string): VmId {
  return name("vm", text) as VmId;
}

/** @throws CareofError `malformed-host` */
export function hostId(text: string): HostId {
  return name("host", text) as HostId;
}

/** @throws CareofError `malformed-epoch` unless a whole number from 0 to 2^53 − 1. */
export function epoch(value: number): Epoch {
  if (!Number.isSafeInteger(value) || value < 0) throw new CareofError("malformed-epoch", `${String(value)} is not an epoch`);
  return value as Epoch;
}

export const NEVER_BOUND: Epoch = epoch(0);

export function nextEpoch(after: Epoch): Epoch {
  return epoch(after + 1);
}

/** @throws CareofError `malformed-duration` for what is not a finite number. */
export function millis(value: number): Millis {
  if (!Number.isFinite(value)) throw new CareofError("malformed-duration", `${String(value)} is not a number of milliseconds`);
  return value as Millis;
}

/** @throws CareofError `malformed-key-id` */
export function keyId(value: number): KeyId {
  if (!Number.isInteger(value) || value < 0 || value > 0xffff_ffff) throw new CareofError("malformed-key-id", `${String(value)} is not a key id`);
  return value as KeyId;
}

export function migrationId(vm: VmId, reserved: Epoch): MigrationId {
  return `${vm}@${String(reserved)}` as MigrationId;
}

/** @throws CareofError `malformed-migration` */
export function parseMigrationId(text: string): { readonly id: MigrationId; readonly vm: VmId; readonly epoch: Epoch } {
  const match = /^([^@]+)@([1-9][0-9]{0,15})$/.exec(text);
  if (match?.[1] === undefined || match[2] === undefined) throw new CareofError("malformed-migration", `"${text.slice(0, 100)}" is not a migration's name`);
  const vm = vmId(match[1]);
  const reserved = epoch(Number(match[2]));
  return { id: migrationId(vm, reserved), vm, epoch: reserved };
}
