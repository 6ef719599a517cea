import { inNamespace } from "../../deploy/lab/command.js";
import { Lab } from "../../deploy/lab/lab.js";
import { Part } from "../../deploy/lab/part.js";

/** Makes a lab for reaper.test.ts, says its name, and waits to be killed; with `keep` leaves it running and ends. */
const lab = await Lab.start({ agent: { qemu: { accel: "tcg" } } });
// As a QEMU, which no SIGTERM of its agent ends.
const stubborn = new Part("stubborn", inNamespace(lab.namespace("a"), ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]), `${lab.directory}/stubborn.log`);
if (process.argv[2] === "keep") {
  stubborn.leave();
  lab.leave();
  // As cli/main.ts ends: connections to the API would hold it.
  setTimeout(() => { process.exit(); }, 500);
} else {
  setInterval(() => undefined, 1000);
}
process.stdout.write(`${lab.run}\n`);
