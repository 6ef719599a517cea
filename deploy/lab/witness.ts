import { spawn, type ChildProcess } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { z } from "zod";
import { inNamespace } from "./command.js";
import { HOSTS, PLAN, type HostName } from "./plan.js";
import type { Lab } from "./lab.js";
import { REPOSITORY } from "./program.js";

const SOCKET = "careof-lab-witness";
const lineSchema = z.object({ t: z.number(), runs: z.boolean(), status: z.string() });

/**
 * Writes a program that starts QEMU as the agent asks, with a second monitor for the witness; for `qemu.binary` of an agent's configuration. The product
 * itself lets nobody add a monitor. @returns its path
 */
export function witnessedQemu(directory: string): string {
  const file = join(directory, "qemu-witnessed");
  const monitor = `-chardev socket,id=witness,path=${SOCKET},abstract=on,tight=off,server=on,wait=off -mon chardev=witness,mode=control`;
  writeFileSync(file, `#!/bin/sh\nexec qemu-system-x86_64 "$@" ${monitor}\n`, { mode: 0o755 });
  return file;
}

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
