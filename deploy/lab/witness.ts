import { spawn, type ChildProcess } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { z } from "zod";
import { inNamespace } from "./command.js";
import { HOSTS, PLAN, type HostName } from "./plan.js";
import type { Lab } from "./lab.js";
import { REPOSITORY } from "./traffic.js";

const SOCKET = "careof-lab-witness";
const lineSchema = z.object({ t: z.number(), runs: z.boolean(), status: z.string() });

/** For a VM's `qemu.extraArgs`: a monitor for the witness. */
export const WITNESS_ARGS: readonly string[] = ["-chardev", `socket,id=witness,path=${SOCKET},abstract=on,server=on,wait=off`, "-mon", "chardev=witness,mode=control"];

export interface Sighting extends z.infer<typeof lineSchema> {
  readonly host: HostName;
}

/** Knows, apart from everything that the product says, on which host the guest executes: by QEMU's own events. */
export class Witness {
  readonly sightings: Sighting[] = [];
  readonly #children: ChildProcess[] = [];

  constructor(lab: Lab) {
    for (const host of HOSTS) {
      const words = inNamespace(lab.namespace(PLAN.hosts[host].node), [process.execPath, join(REPOSITORY, "dist", "deploy", "lab", "run-watch.js"), SOCKET]);
      const child = spawn(words[0] ?? "", words.slice(1), { stdio: ["ignore", "pipe", "ignore"], detached: true });
      child.on("error", (cause) => { throw cause; });
      createInterface({ input: child.stdout }).on("line", (text) => {
        const line = lineSchema.parse(JSON.parse(text));
        this.sightings.push({ host, ...line });
      });
      this.#children.push(child);
    }
  }

  /** Hosts on which the guest executes now. */
  running(): HostName[] {
    return HOSTS.filter((host) => this.sightings.findLast((each) => each.host === host)?.runs === true);
  }

  /** Times at which the guest executed on two hosts at once: none, or invariant I1 is broken. */
  doubles(): Sighting[] {
    const running = new Set<HostName>();
    const found: Sighting[] = [];
    for (const each of [...this.sightings].sort((one, other) => one.t - other.t)) {
      if (each.runs) running.add(each.host);
      else running.delete(each.host);
      if (running.size > 1) found.push(each);
    }
    return found;
  }

  close(): void {
    for (const child of this.#children) child.kill("SIGKILL");
  }
}
