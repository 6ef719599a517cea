import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { createInterface, type Interface } from "node:readline";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { inNamespace, must } from "../../deploy/lab/command.js";
import { countedMoves } from "../../deploy/lab/counted.js";
import { namespacesOf, newRunId, PLAN } from "../../deploy/lab/plan.js";
import { REPOSITORY } from "../../deploy/lab/program.js";
import { labDirectory, register, removeRun } from "../../deploy/lab/registry.js";
import { Traffic, trafficProgram } from "../../deploy/lab/traffic.js";
import { CareofError } from "../../model/errors.js";
import type { HandoverCase } from "./cases.js";
import type { Turn } from "./moves.js";
import type { ControlCounted } from "./outcome.js";

const ARRIVAL_MS = 400;
const ANSWER_MS = 60_000;
const answer = z.union([z.object({ ok: z.literal(true) }), z.object({ error: z.string() })]);

/**
 * The same guest, the same traffic and the same migration, but without any change of network: two TAPs on one bridge, the correspondent beside them. What a
 * correspondent hears nothing of here is the hypervisor's share.
 */
export class Control {
  readonly #run: string;
  readonly #case: HandoverCase;
  readonly #host: ChildProcessWithoutNullStreams;
  readonly #lines: Interface;

  private constructor(run: string, of: HandoverCase, host: ChildProcessWithoutNullStreams) {
    this.#run = run;
    this.#case = of;
    this.#host = host;
    this.#lines = createInterface({ input: host.stdout });
  }

  static async open(of: HandoverCase): Promise<Control> {
    const run = newRunId();
    register(run);
    try {
      const { c, h } = namespacesOf(run);
      await makeBridge(c, h);
      const host = spawnHost(run);
      const control = new Control(run, of, host);
      await control.#answered();
      return control;
    } catch (thrown) {
      await removeRun(run);
      throw thrown;
    }
  }

  async run(turn: Turn, say: (counted: ControlCounted) => void): Promise<readonly ControlCounted[]> {
    const { pps, bulkMbit } = this.#case;
    const traffic = new Traffic({ program: await trafficProgram(), namespace: namespacesOf(this.#run).c, to: PLAN.guest.address, waitS: 40, pps, bulkMbit });
    try {
      await traffic.ready(ANSWER_MS);
      const counted = await countedMoves(traffic, { ...turn, arrivalMs: ARRIVAL_MS }, async () => {
        const done = this.#answered();
        this.#host.stdin.write("migrate\n");
        await done;
      }, ({ window }) => { say(window); });
      return counted.map(({ window }) => window);
    } finally {
      traffic.kill();
    }
  }

  async close(): Promise<void> {
    this.#host.stdin.end();
    const left = await removeRun(this.#run);
    if (left.length > 0) process.stderr.write(`left over: ${left.join(", ")}\n`);
  }

  async #answered(): Promise<void> {
    const line = await new Promise<string>((resolve, reject) => {
      const timer = setTimeout(() => { reject(new CareofError("timed-out", "the control's host does not answer")); }, ANSWER_MS);
      this.#lines.once("line", (text) => {
        clearTimeout(timer);
        resolve(text);
      });
    });
    const said = answer.parse(JSON.parse(line));
    if ("error" in said) throw new CareofError("control-failed", `the control's migration failed: ${said.error}`);
  }
}

/** control-host.ts, in the namespace of the bridge. */
function spawnHost(run: string): ChildProcessWithoutNullStreams {
  const directory = join(labDirectory(run), "guests");
  mkdirSync(directory, { mode: 0o700 });
  const image = join(REPOSITORY, ".cache", "guest");
  const append = ["console=ttyS0", "quiet", "panic=-1", `careof.ip=${PLAN.guest.address}/32`, `careof.gw=${PLAN.gateway}`].join(" ");
  const program = fileURLToPath(new URL("control-host.js", import.meta.url));
  const command = inNamespace(namespacesOf(run).h, [process.execPath, program, directory, join(image, "vmlinuz"), join(image, "initramfs.gz"), PLAN.guest.mac, append]);
  const host = spawn(command[0] ?? "", command.slice(1), { stdio: "pipe", detached: true });
  host.stderr.pipe(process.stderr);
  return host;
}

/** Two TAPs on one bridge, and a correspondent beside them. It has the gateway's address, so that the guest reaches it without a router. */
async function makeBridge(correspondent: string, host: string): Promise<void> {
  for (const name of [correspondent, host]) await must(["ip", "netns", "add", name]);
  await must(inNamespace(host, ["ip", "-batch", "-"]), {
    input: [
      `link add home0 type veth peer name home0 netns ${correspondent}`, "link add br0 type bridge", "link set br0 up", "link set home0 master br0", "link set home0 up",
      ...["tap0", "tap1"].flatMap((name) => [`tuntap add dev ${name} mode tap vnet_hdr`, `link set ${name} txqueuelen 10000`, `link set ${name} master br0`, `link set ${name} up`]),
    ].join("\n"),
  });
  await must(inNamespace(correspondent, ["ip", "-batch", "-"]), {
    input: ["link set lo up", `addr add ${PLAN.gateway}/32 dev home0`, "link set home0 up", `route add ${PLAN.guest.address}/32 dev home0 src ${PLAN.gateway}`].join("\n"),
  });
}
