import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { dirname, resolve } from "node:path";
import { z } from "zod";
import { fields, readConfig, type Endpoint } from "../model/config.js";
import { CareofError } from "../model/errors.js";
import { keyId, millis, type KeyId, type Millis, type VmId } from "../model/ids.js";
import type { LogLevel } from "../model/log.js";
import { HeartbeatKey } from "../proto/heartbeat-key.js";

export interface HeartbeatConfig {
  readonly vm: VmId;
  readonly keyId: KeyId;
  readonly key: HeartbeatKey;
  readonly to: Endpoint;
  readonly interval: Millis;
  readonly logLevel: LogLevel;
}

/** The file as it is written; the README lists its keys. */
export const heartbeatSchema = z.strictObject({
  vm: fields.vm,
  keyId: fields.keyId.default(keyId(1)),
  keyFile: z.string().min(1),
  to: fields.endpoint.refine((to) => isIP(to.address) !== 0 && to.port > 0, "not an address in digits with a port from 1"),
  intervalMs: z.int().min(10).max(3_600_000).default(500),
  log: z.strictObject({ level: fields.logLevel }).default({ level: "info" }),
});

/**
 * Reads the service's file and the key file that it names, relative to itself.
 * @throws CareofError of `readConfig`; `key-unreadable`, `malformed-key`
 */
export function readHeartbeatConfig(file: string): HeartbeatConfig {
  const read = readConfig(file, heartbeatSchema);
  return {
    vm: read.vm,
    keyId: read.keyId,
    key: readKey(resolve(dirname(file), read.keyFile)),
    to: read.to,
    interval: millis(read.intervalMs),
    logLevel: read.log.level,
  };
}

function readKey(file: string): HeartbeatKey {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new CareofError("key-unreadable", `cannot read the key file ${file}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
  return HeartbeatKey.fromHex(text);
}
