import { hash, timingSafeEqual } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { CareofError } from "../model/errors.js";
import { hostId, type HostId } from "../model/ids.js";
import type { HostConfig } from "./config.js";

/** A longer header is nobody's name and token. */
const MAX_HEADER = 1024;

/**
 * Who is at the other end of a connection: the one place where that is decided. Today by a token per host, `Authorization: Bearer NAME:TOKEN`, of which only the
 * sha256 is stored; TLS client certificates would be read here.
 * @throws CareofError `bad-token`, `unknown-host`
 */
export function identify(request: Pick<IncomingMessage, "headers">, host: (name: HostId) => HostConfig | null): HostId {
  const header = request.headers.authorization ?? "";
  const match = header.length > MAX_HEADER ? null : /^Bearer ([^:\s]+):(\S+)$/.exec(header);
  if (match?.[1] === undefined || match[2] === undefined) throw new CareofError("bad-token", "the header Authorization: Bearer NAME:TOKEN is missing or malformed");
  const given = Buffer.from(hash("sha256", match[2]), "hex");
  let listed: HostConfig | null;
  try {
    listed = host(hostId(match[1]));
  } catch (cause) {
    throw new CareofError("unknown-host", "no such host is listed", { cause });
  }
  if (listed === null) throw new CareofError("unknown-host", `the host ${match[1]} is not listed`);
  if (!timingSafeEqual(given, Buffer.from(listed.tokenHash, "hex"))) throw new CareofError("bad-token", `the token of ${match[1]} is not the right one`);
  return listed.name;
}
