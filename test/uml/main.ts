import { join } from "node:path";
import t from "tap";

/**
 * What runs in user-mode-linux (boot.sh), whose kernel 6.1 has the ipip device: the tests of the drivers once more with ipip at either end or both, with bpf because this
 * kernel is an old one, and what needs the device itself. Each line boots one of its own, one after the other: two at a time take as long on two processors (a user-mode-linux is slow where another one is beside it), and then nothing in them is in time. A boot and a process that runs tests cost as much as many tests, so there are few lines.
 * `main.js NAME...` runs only the lines whose title has one of these words.
 */

const tests = join(import.meta.dirname, "..");
const boot = join(import.meta.dirname, "../../../test/uml/boot.sh");
const LIMIT_MS = 500_000;
const AT_ONCE = 1;

/** File below test/, and the drivers of the home agent and the hosts; the longest first. */
const LINES: readonly (readonly [file: string, drivers: string])[] = [
  ["net/load.test.js", "ipip,ipip"],
  ["uml/path.js", "ipip,ipip"],
  ["net/traffic.test.js", "ipip,ipip"],
  ["net/packets.test.js", "ipip,ipip"],
  ["net/holds.test.js", "ipip,ipip"],
  ["net/packets.test.js", "bpf,bpf"],
  ["net/contract.test.js", "ipip,ipip"],
  ["net/contract.test.js", "bpf,ipip"],
  ["net/contract.test.js", "ipip,bpf"],
  ["net/paths.test.js", "ipip,ipip"],
  ["net/slow-path.test.js", "ipip,ipip"],
  ["uml/device.js", "ipip,ipip"],
  ["uml/by-hand.js", "ipip,ipip"],
  ["uml/by-hand.js", "bpf,bpf"],
];

const wanted = process.argv.slice(2);
t.jobs = AT_ONCE;
t.setTimeout(LINES.length * LIMIT_MS);
const lines = LINES
  .map(([file, drivers]) => ({ file, drivers, title: `${file.replace(/(\.test)?\.js$/, "")} (home agent ${drivers.replace(",", ", hosts ")}, Linux 6.1)` }))
  .filter(({ title }) => wanted.length === 0 || wanted.some((word) => title.includes(word)));
await Promise.all(lines.map(({ drivers, file, title }) => t.spawn(
  "bash", [boot, "env", `CAREOF_TEST_DRIVERS=${drivers}`, process.execPath, join(tests, file)], { buffered: true, timeout: LIMIT_MS }, title,
)));
