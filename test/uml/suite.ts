import { join } from "node:path";
import t from "tap";

/**
 * What runs in user-mode-linux (boot.sh), whose kernel 6.1 has the ipip device: the tests of the drivers once more with ipip at either end or both, with bpf because this
 * kernel is an old one, and what needs the device itself. `suite.js NAME...` runs only the lines whose title has one of these words.
 */

const tests = join(import.meta.dirname, "..");
const LIMIT_MS = 200_000;

/** File below test/, and the drivers of the home agent and the hosts. */
const LINES: readonly (readonly [file: string, drivers: string])[] = [
  ["net/contract.test.js", "ipip,ipip"],
  ["net/contract.test.js", "bpf,ipip"],
  ["net/contract.test.js", "ipip,bpf"],
  ["net/packets.test.js", "ipip,ipip"],
  ["net/packets.test.js", "bpf,bpf"],
  ["net/traffic.test.js", "ipip,ipip"],
  ["net/load.test.js", "ipip,ipip"],
  ["uml/mixed.js", "bpf,ipip"],
  ["uml/mixed.js", "ipip,bpf"],
  ["uml/mixed.js", "ipip,ipip"],
  ["uml/mixed.js", "bpf,bpf"],
  ["uml/device.js", "ipip,ipip"],
  ["uml/path.js", "ipip,ipip"],
];

const wanted = process.argv.slice(2);
t.setTimeout(LINES.length * LIMIT_MS);
for (const [file, drivers] of LINES) {
  const title = `${file.replace(/(\.test)?\.js$/, "")} (home agent ${drivers.replace(",", ", hosts ")}, Linux 6.1)`;
  if (wanted.length > 0 && !wanted.some((word) => title.includes(word))) continue;
  await t.spawn(process.execPath, [join(tests, file)], { env: { ...process.env, CAREOF_TEST_DRIVERS: drivers }, timeout: LIMIT_MS }, title);
}
