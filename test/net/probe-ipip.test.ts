import t from "tap";
import { fix, persist, type Settings } from "../../deploy/doctor/fix.js";
import { CareofError } from "../../model/errors.js";
import type { DataPlane } from "../../net/data-plane.js";
import type { Probe } from "../../net/probe.js";
import { probeAuto, probeDataPlanes } from "../../net/probe-ipip.js";
import { readSysctl, writeSysctl } from "../../net/sysctl.js";
import { Namespaces } from "./lab/namespaces.js";

const all = new Namespaces();
const host = all.make("host");
t.teardown(() => { all.destroy(); });

t.test("the ipip data plane goes by what the kernel makes of \"frag needed\"", (t) => {
  const asked: (readonly [string, string, string | null])[] = [];
  const onlyIpip = (driver: "bpf" | "ipip", end: "home" | "host", uplink: string | null): void => {
    asked.push([driver, end, uplink]);
    if (driver === "bpf") throw new CareofError("unsupported", "no BPF here");
  };
  const rows = (wanted: DataPlane): readonly Probe[] => host.within(() => probeDataPlanes(wanted, "host", "uplink", onlyIpip));
  const set = (value: string): void => { host.sysctl("net.ipv4.ip_no_pmtu_disc", value); };
  const settings: Settings = { file: "/nowhere", read: (name) => host.within(() => readSysctl(name)), write: (name, value) => { host.within(() => { writeSysctl(name, value); }); }, readFile: () => "", writeFile: () => undefined };
  t.same(rows("auto").map(({ name, ok }) => [name, ok]), [["data plane", true]], "nothing to say of what every machine has");
  for (const [value, says, fixed] of [["1", /552 bytes/, "0"], ["2", /ignores "frag needed"/, "2"], ["3", /ignores "frag needed"/, "3"]] as const) {
    set(value);
    for (const found of [rows("auto"), rows("ipip"), host.within(() => probeAuto(onlyIpip))]) {
      t.match(found, [{ name: "data plane", ok: true, found: /^ipip/ }, { name: "path MTU", ok: "warn", found: says, mend: /set it to 0/ }], value);
      t.equal(found.length, 2);
    }
    t.equal(host.within(() => probeDataPlanes("bpf", "host", "uplink", () => undefined)).length, 1, "bpf does not ask the kernel");
    const fixes = fix(rows("auto"), settings);
    t.equal(host.exec("sysctl", "-n", "net.ipv4.ip_no_pmtu_disc").trim(), fixed, `--fix makes it ${fixed}`);
    t.equal(fixes.length, value === fixed ? 0 : 1);
  }
  set("0");
  t.equal(rows("auto").length, 1);
  let text = "";
  const lasting: Settings = { ...settings, writeFile: (after) => { text = after; } };
  for (const found of [rows("auto"), rows("ipip"), host.within(() => probeAuto(onlyIpip))]) {
    text = "";
    t.same([fix(found, lasting), persist(found, lasting)], [[], true], "what is right already is to stay so");
    t.match(text, /^net\.ipv4\.ip_no_pmtu_disc = 0$/m);
  }
  for (const value of ["2", "3"]) {
    set(value);
    t.equal(persist([...rows("ipip"), ...rows("bpf")], { ...lasting, writeFile: (after) => { text = after; } }) && text.includes("pmtu_disc"), false, "somebody's protection is not made to go with the next start");
  }
  set("0");
  t.ok(asked.some(([driver, end, uplink]) => driver === "ipip" && end === "home" && uplink === null), "without a configuration both ends are tried");
  t.end();
});
