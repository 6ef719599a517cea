import { readFileSync, statSync } from "node:fs";
import { CareofError, toCareofError } from "../model/errors.js";
import type { Logger } from "../model/log.js";

/** Who can read the token can be this host. */
const OTHERS = 0o077;

/** The host's token: the first line of its file. One that others can read is used, and warned of. @throws CareofError `token-unreadable` */
export function readToken(file: string, log: Logger): string {
  let text: string;
  let mode: number;
  try {
    text = readFileSync(file, "utf8");
    ({ mode } = statSync(file));
  } catch (cause) {
    throw new CareofError("token-unreadable", `cannot read the token file ${file}: ${toCareofError(cause).message}`, { cause });
  }
  const token = text.split("\n")[0]?.trim() ?? "";
  if (!/^[\x21-\x7e]{16,512}$/.test(token)) throw new CareofError("token-unreadable", `the first line of ${file} is not a token (16 to 512 printable characters)`);
  if ((mode & OTHERS) !== 0) log.warn({ file, mode: (mode & 0o777).toString(8) }, "others can read this host's token, and be this host: chmod 600");
  return token;
}
