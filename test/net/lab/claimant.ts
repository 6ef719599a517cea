import { createInterface } from "node:readline";
import { toCareofError } from "../../../model/errors.js";
import { EndClaim } from "../../../net/end-claim.js";

/* A process that claims the end that it is told, "home" or "host", and lets go of it by "none"; it answers with one line each: "claimed", the error's code, "none". */

let claim: EndClaim | null = null;

function take(word: string): string {
  claim?.close();
  claim = null;
  if (word === "none") return word;
  try {
    claim = new EndClaim(word === "home" ? "home" : "host");
    return "claimed";
  } catch (thrown) {
    return toCareofError(thrown).code;
  }
}

for await (const line of createInterface({ input: process.stdin })) process.stdout.write(`${take(line)}\n`);
