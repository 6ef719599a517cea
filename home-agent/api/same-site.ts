import type { IncomingMessage } from "node:http";
import { isIP } from "node:net";
import { CareofError } from "../../model/errors.js";

/**
 * What keeps the web pages that an operator's browser shows away from an API that asks for no password. A page's own requests carry its Origin (RFC 6454); one whose
 * name was made to resolve to this address (DNS rebinding) carries that name as Host. Programs send no Origin, and the address, `localhost` or `name` (what the
 * configuration listens on) as Host.
 * @throws CareofError `foreign-host`, `foreign-origin`
 */
export function requireSameSite({ headers }: IncomingMessage, name: string): void {
  const { host, origin } = headers;
  if (host !== undefined && !isOurs(host, name)) throw new CareofError("foreign-host", `this is not "${host.slice(0, 100)}": call it by its address or as localhost`);
  if (origin !== undefined && (host === undefined || origin.toLowerCase() !== `http://${host.toLowerCase()}`)) {
    throw new CareofError("foreign-origin", `a page of ${origin.slice(0, 100)} has no business here`);
  }
}

/** An address cannot be made to mean something else; of names only those that nobody else gives. */
function isOurs(host: string, name: string): boolean {
  const match = /^(?:\[([^\]]*)\]|([^:]*))(?::[0-9]{1,5})?$/.exec(host);
  const called = (match?.[1] ?? match?.[2] ?? "").toLowerCase();
  return isIP(called) !== 0 || called === "localhost" || (called !== "" && called === name.toLowerCase());
}
