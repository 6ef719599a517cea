import { linkSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { BorrowedSettings } from "../../net/borrowed-settings.js";
import type { SysctlName } from "../../net/sysctl.js";
import { Namespaces } from "./lab/namespaces.js";

const all = new Namespaces();
const machine = all.make("m");
const directory = mkdtempSync(join(tmpdir(), "careof-borrowed-"));
t.teardown(() => {
  all.destroy();
  rmSync(directory, { recursive: true, force: true });
});

const DROP: SysctlName = ["net", "ipv4", "conf", "lo", "drop_gratuitous_arp"];
const DELAY: SysctlName = ["net", "ipv4", "neigh", "lo", "proxy_delay"];
const setting = (name: SysctlName): string => machine.exec("sysctl", "-n", name.join(".")).trim();

/** In a file of its own, with what is warned of. */
function made(name: string, content: string | null = null): { readonly file: string; readonly warned: string[]; readonly borrow: (name: SysctlName, ours: string) => void; readonly giveBack: () => void } {
  const file = join(directory, name);
  if (content !== null) writeFileSync(file, content);
  const warned: string[] = [];
  const settings = new BorrowedSettings(file, (detail) => { warned.push(detail); });
  return { file, warned, borrow: (name, ours) => { machine.within(() => { settings.borrow(name, ours); }); }, giveBack: () => { machine.within(() => { settings.giveBack(); }); } };
}

t.test("what was borrowed stands in the file as a whole, whenever a crash comes", (t) => {
  machine.exec("sysctl", "-w", `${DELAY.join(".")}=40`, `${DROP.join(".")}=0`);
  const { file, warned, borrow, giveBack } = made("whole");
  borrow(DELAY, "0");
  const first = readFileSync(file, "utf8");
  linkSync(file, `${file}.first`);
  borrow(DROP, "1");
  t.equal(readFileSync(`${file}.first`, "utf8"), first, "what was there is not written over");
  t.equal(readFileSync(file, "utf8"), `${first}${DROP.join("/")} 0 1 .\n`, "but replaced");
  t.same([setting(DELAY), setting(DROP)], ["0", "1"]);
  rmSync(`${file}.first`);
  giveBack();
  t.same([setting(DELAY), setting(DROP)], ["40", "0"]);
  t.same(readdirSync(directory), [], "and nothing is left");
  t.same(warned, []);
  t.end();
});

t.test("a file that makes no sense, or only in part", (t) => {
  const good = `${DELAY.join("/")} 44 0 .\n`;
  const cases: readonly (readonly [string, string, number, string])[] = [
    ["cut off by a crash", `${good}${DROP.join("/")} 0`, 1, ""],
    ["of a version that ended its lines otherwise", `${DROP.join("/")} 0 1\n${good}`, 1, ""],
    ["with more words", `${DROP.join("/")} 0 1 . now\n${good}`, 1, ""],
    ["no text at all", `\0\x01\xff${"x".repeat(10_000)}\n\0\n${good}`, 2, ""],
    ["what is no setting of the network's", `net/../kernel/panic 0 1 .\n${good}`, 1, ""],
    ["what is no interface's any more", `net/ipv4/conf/gone0/drop_gratuitous_arp 0 1 .\n${good}`, 0, ""],
    ["a value that the kernel does not take", `${DROP.join("/")} banana 1 .\n${good}`, 1, `${DROP.join("/")} banana 1 .\n`],
  ];
  for (const [name, content, warnings, left] of cases) {
    machine.exec("sysctl", "-w", `${DELAY.join(".")}=0`, `${DROP.join(".")}=1`);
    const { file, warned, giveBack } = made("broken", content);
    t.doesNotThrow(giveBack, name);
    t.doesNotThrow(giveBack, name);
    t.equal(setting(DELAY), "44", `${name}: what can be read is put back`);
    t.equal(setting(DROP), "1", `${name}: the rest stays as it is`);
    t.equal(warned.length, warnings, `${name}: it is said, once: ${warned.join("; ")}`);
    t.equal(readdirSync(directory).length === 0 ? "" : readFileSync(file, "utf8"), left, name);
    rmSync(file, { force: true });
  }
  const { file, warned, giveBack } = made("directory");
  mkdirSync(file);
  t.doesNotThrow(giveBack);
  t.match(warned, [/cannot be read/]);
  t.end();
});
