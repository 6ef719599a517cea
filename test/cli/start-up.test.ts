import type { ChildProcessWithoutNullStreams } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import t from "tap";
import { stringify } from "yaml";
import { z } from "zod";
import { CLAIMS } from "../../net/end-claim.js";
import { kernelHasIpip, Namespaces, type Namespace } from "../net/lab/namespaces.js";

/*
 * What a home agent and a host agent say of their data plane when they start: which it is, and why; and that they do not start in one network namespace. Real processes, from their
 * configuration files.
 */

const main = fileURLToPath(new URL("../../cli/main.js", import.meta.url));
t.setTimeout(200_000); // a busy machine

const all = new Namespaces();
t.teardown(() => { all.destroy(); });
const far = all.make("far");
/** Of its own for each: what a home agent leaves on an uplink is in a host agent's way there. */
const [homeAgent, host, both, other] = ["home", "host", "both", "other"].map((name) => {
  const machine = all.make(name);
  all.connect(machine, "uplink", far, name);
  machine.ip("address add 192.0.2.1/24 dev uplink");
  return machine;
}) as [Namespace, Namespace, Namespace, Namespace];
const ipip = kernelHasIpip(homeAgent);

const said = z.object({ dataPlane: z.string(), reason: z.string(), uplink: z.string(), msg: z.string() });
type Outcome = { readonly said: z.infer<typeof said> } | { readonly code: unknown; readonly stderr: string };

let runs = 0;

function begin(machine: Namespace, part: "home-agent" | "agent", config: object): { readonly child: ChildProcessWithoutNullStreams; readonly directory: string } {
  const directory = join(all.folder, `run${String(runs++)}`);
  mkdirSync(directory);
  writeFileSync(join(directory, "token"), "secret-secret-secret-1\n", { mode: 0o600 });
  const file = join(directory, "config.yaml");
  writeFileSync(file, stringify({ ...config, stateDir: join(directory, "state"), runDir: directory, ...(part === "agent" ? { tokenFile: join(directory, "token") } : {}) }));
  return { child: machine.spawn(process.execPath, main, part, "--config", file), directory };
}

/** Starts it, and ends it as soon as it has named its data plane; else its exit code, and what it complained of. */
async function startUp(machine: Namespace, part: "home-agent" | "agent", config: object): Promise<Outcome & { readonly directory: string }> {
  const { child, directory } = begin(machine, part, config);
  const ended = once(child, "exit");
  let stderr = "";
  child.stderr.on("data", (text: Buffer) => { stderr += text.toString(); });
  let found: z.infer<typeof said> | null = null;
  for await (const line of createInterface({ input: child.stdout })) {
    const read = line.startsWith("{") ? said.safeParse(JSON.parse(line)) : null;
    if (read?.success !== true) continue;
    found = read.data;
    child.kill("SIGTERM");
  }
  const [code] = (await ended) as [unknown];
  return found === null ? { code, stderr, directory } : { said: found, directory };
}

function configOf(part: "home-agent" | "agent", uplink: string, wanted: string, homeAgent = "192.0.2.9"): object {
  return part === "home-agent"
    ? { name: "home-1", tunnel: { uplink, address: "192.0.2.1", dataPlane: wanted }, home: { prefixes: ["198.51.100.0/24"] }, listen: { agents: "127.0.0.1:0", heartbeats: "127.0.0.1:0", api: "127.0.0.1:0" } }
    : { name: "host-a", careOf: "192.0.2.1", uplink, homeAgent: `ws://${homeAgent}:4434/v1/agent`, qemu: { accel: "tcg" }, tunnel: { dataPlane: wanted } };
}

/** Where the kernel has ipip a process takes its time (user-mode-linux): what is configured says so in test/uml/path.ts, and this is what is left. */
const ELSEWHERE = process.env["CAREOF_TEST_DRIVERS"] !== undefined;

const noIpip = /no ipip device/;
const noBpf = "bpf does not work here: the uplink lo is not an Ethernet interface";

t.test("the start-up line says which data plane it is and why, or the refusal does", async (t) => {
  const table: readonly [wanted: "auto" | "bpf" | "ipip", uplink: string, driver: "bpf" | "ipip", reason: string | RegExp, refused: RegExp][] = [
    ["auto", "uplink", "bpf", "this kernel takes the BPF programs", /^$/],
    ["bpf", "uplink", "bpf", "configured", /^$/],
    ["ipip", "uplink", "ipip", "configured", noIpip],
  ];
  for (const part of ["home-agent", "agent"] as const) {
    const rows = part === "home-agent" ? [...table, ["auto", "lo", "ipip", new RegExp(`^${noBpf}`), /bpf: the uplink lo is not an Ethernet.*; ipip: .*no ipip device/] as const] : table;
    for (const [wanted, uplink, driver, reason, refused] of rows) {
      if (ELSEWHERE && !(wanted === "auto" && driver === "ipip")) continue;
      await t.test(`${part}: ${wanted} on ${uplink}`, async (t) => {
        const outcome = await startUp(part === "agent" ? host : homeAgent, part, configOf(part, uplink, wanted));
        if (driver === "ipip" && !ipip) {
          t.match(outcome, { code: 1, stderr: refused });
          return;
        }
        t.match(outcome, { said: { dataPlane: driver, reason, uplink, msg: `data plane: ${driver} (` } });
        t.match(outcome, "said" in outcome ? { said: { msg: `data plane: ${driver} (${outcome.said.reason})` } } : { said: {} });
      });
    }
  }
});

t.test("whichever end starts second is refused before it has touched anything, also when the first has no tunnel yet", { skip: ELSEWHERE && "processes take their time here" }, async (t) => {
  const table = [[both, "home-agent", "agent", "data plane: ", /a home agent of careof runs in this network namespace/], [other, "agent", "home-agent", "host agent is ready", /a host agent of careof runs in this network namespace/]] as const;
  for (const [machine, first, second, ready, refused] of table) {
    // A host agent that knows its home agent by a name does not know where its tunnels end before it has registered.
    const { child } = begin(machine, first, configOf(first, "uplink", "auto", "home.invalid"));
    t.teardown(() => { child.kill("SIGKILL"); });
    const ended = once(child, "exit");
    const lines: string[] = [];
    for await (const line of createInterface({ input: child.stdout })) {
      lines.push(line);
      if (!line.includes(ready)) continue;
      const outcome = await startUp(machine, second, configOf(second, "uplink", "auto", "home.invalid"));
      t.match(outcome, { code: 1, stderr: refused }, `${second} beside ${first}`);
      t.same(["state", "bpf", "guests"].filter((name) => existsSync(join(outcome.directory, name))), [], "nothing is made");
      child.kill("SIGTERM");
    }
    t.same(await ended, [0, null]);
    t.equal(lines.some((line) => line.includes("data plane: ")), first === "home-agent");
    const number = String(machine.within(() => statSync("/proc/thread-self/ns/net").ino));
    t.same(readdirSync(CLAIMS).filter((name) => name.startsWith(number)), [], "the claim goes with the process");
  }
});
